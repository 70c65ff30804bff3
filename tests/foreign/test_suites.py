"""asyncio's own tests, and behaviours that uvloop documents, have the same outcomes on measured loops."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.serving import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.every_interpreter]

TRIES = 3
SUITE_SECONDS = 300
ASYNCIO = [
    f"test.test_asyncio.test_{name}"
    for name in ("base_events", "futures", "runners", "taskgroups", "tasks", "timeouts")
]
UVLOOP = ["tests.foreign.uvloop_behaviours"]
LOOKS_AT_A_MOCK = "test.test_asyncio.test_base_events.BaseEventLoopTests.test_run_forever_pre_stopped"
"""It asks a mock, which it put in place of the selector, how its ``select`` was called: the clock is there then."""


def outcomes(tmp_path, kind, names):
    """Run tests in a process of their own, measured or bare; return each one's outcome, and what was measured."""
    folder = tmp_path / kind
    folder.mkdir(exist_ok=True)  # asyncio's tests write into the working directory
    out = folder / "outcomes.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.foreign.suite", out, kind, *names],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, check=False, timeout=SUITE_SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return *json.loads(out.read_text()).values(), done.stdout


def without_subtests(names):
    """Return the tests that these outcomes belong to: that of a subtest names its test first."""
    return {name.partition(" ")[0] for name in names}


def same_outcomes(tmp_path, names):
    """Run a suite bare and measured, and again what differs; return that, bare outcomes, and what was measured."""
    first = None
    for _ in range(TRIES):
        with ThreadPoolExecutor() as threads:
            runs = [threads.submit(outcomes, tmp_path, kind, names) for kind in ("bare", "measured")]
            (bare, *_), (measured, totals, said) = (one.result() for one in runs)
        first = first or (bare, totals)
        differ = (one for one in bare.keys() | measured.keys() if bare.get(one) != measured.get(one))
        names = sorted(without_subtests(differ) - {LOOKS_AT_A_MOCK})
        if not names:
            break
    return names, *first, said


@pytest.mark.timeout(TRIES * SUITE_SECONDS + 60)
def test_asyncios_own_tests_have_the_same_outcomes(tmp_path):
    if not importlib.util.find_spec("test") or not importlib.util.find_spec("test.test_asyncio"):
        pytest.skip(
            "this interpreter comes without its own tests (on Debian: apt-get install libpython3-testsuite)"
        )
    differing, bare, totals, said = same_outcomes(tmp_path, ASYNCIO)
    assert differing == [], said
    assert len(bare) > 1000
    assert totals["loops"] > 900
    assert totals["iterations"] > totals["loops"]
    assert totals["failures"] == {}


def test_what_uvloop_documents_has_the_same_outcomes(tmp_path):
    differing, bare, totals, said = same_outcomes(tmp_path, UVLOOP)
    assert differing == [], said
    assert set(bare.values()) == {"passed"}
    assert totals["loops"] > 20
    assert totals["iterations"] > totals["loops"]
    assert totals["failures"] == {}
