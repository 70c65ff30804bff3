"""Tracers and metrics tools of others see what they see without loopwatch, in whatever order the two come."""

from __future__ import annotations

import collections
import importlib.util
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.apps.traced import ROUTES
from tests.serving import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.once]

SECONDS = 120
"""How long one process may take: some tools take a second to be imported where nothing else runs."""

OURS = {"import", "install", "middleware", "wrap"}
FIRST, LAST = "begin make install add start ask", "begin make add install start ask"
ADDED, AROUND = "begin make middleware add start ask", "begin make add wrap start ask"
IMPORTED = "import begin make add install start ask"
BEGUN_LAST = "make install begin add start ask"
BEGUN_WITHIN = "make install start begin ask"
ADDED_LATE = "begin make install start add ask"
REMOVED, REMOVED_LAST = f"{FIRST} remove ask", f"{LAST} remove ask"

# Where ADDED is missing, the tool makes a span for each middleware, and so one for LoopWatchMiddleware too.
TOOLS = {
    "sentry": ("sentry_sdk", (FIRST, LAST, ADDED, AROUND, IMPORTED, BEGUN_LAST, BEGUN_WITHIN)),
    "sentry-middleware-spans": ("sentry_sdk", (FIRST, LAST, AROUND, BEGUN_LAST, BEGUN_WITHIN)),
    "sentry-middleware": ("sentry_sdk", (FIRST, LAST, ADDED, AROUND)),
    "sentry-around": ("sentry_sdk", (FIRST, LAST, ADDED, AROUND, ADDED_LATE)),
    "logfire": ("logfire", (FIRST, LAST, ADDED, AROUND, IMPORTED, BEGUN_LAST, REMOVED, REMOVED_LAST)),
    "logfire-around": ("logfire", (FIRST, LAST, ADDED, AROUND, ADDED_LATE)),
    "elastic": ("elasticapm", (FIRST, LAST, ADDED, AROUND, IMPORTED)),
    "datadog": ("ddtrace", (FIRST, LAST, ADDED, AROUND, IMPORTED, BEGUN_LAST, REMOVED, REMOVED_LAST)),
    "datadog-middleware": ("ddtrace", (FIRST, LAST, ADDED, AROUND)),
    "newrelic": ("newrelic", (FIRST, LAST, AROUND, IMPORTED)),
    "newrelic-around": ("newrelic", (FIRST, LAST, AROUND, ADDED_LATE)),
    "instrumentator": ("prometheus_fastapi_instrumentator", (FIRST, LAST, ADDED, AROUND)),
    "instrumentator-without-page": ("prometheus_fastapi_instrumentator", (FIRST, LAST, ADDED, AROUND)),
    "starlette-exporter": ("starlette_exporter", (FIRST, LAST, ADDED, AROUND)),
}

TRIED_WHERE_INSTALLED = {"logfire", "ddtrace", "newrelic"}
"""Packages that are large, or compiled, and so not among what developing needs."""

HERE = [
    tool
    for tool, (package, _) in TOOLS.items()
    if package not in TRIED_WHERE_INSTALLED or importlib.util.find_spec(package) is not None
]


def outcome(tool, steps):
    """Take the steps in a process of its own; return what it has printed."""
    command = [sys.executable, "-m", "tests.apps.traced", tool, *steps]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, f"{' '.join(steps)}\n{done.stderr}"
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("tool", HERE)
def test_both_see_each_request_once_in_any_order(tool):
    _, orders = TOOLS[tool]
    measured = [tuple(order.split()) for order in orders]
    bare = {steps: tuple(step for step in steps if step not in OURS) for steps in measured}
    with ThreadPoolExecutor(2) as processes:
        runs = {steps: processes.submit(outcome, tool, steps) for steps in {*measured, *bare.values()}}
    for steps in measured:
        found, expected = runs[steps].result(), runs[bare[steps]].result()
        order = " ".join(steps)
        assert collections.Counter(found["seen"]) == collections.Counter(expected["seen"]), order
        assert found["seen"], f"{order}: the tool has seen nothing"
        assert found["answers"] == expected["answers"], order
        assert found["log"] == expected["log"], order
        assert found["requests"] == ROUTES, order
        assert found["in_thread"], f"{order}: the time in a worker thread is missing"
        assert found["failures"] == {}, order
        assert (found["page"], found["is_told"]) == (200, True), order
        if found["with_states"]:
            assert found["with_states"].count(True) == sum(ROUTES.values()), order
