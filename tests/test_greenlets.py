"""Where gevent or eventlet puts greenlets in the place of threads, an app starts, is served, and ends."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from tests.serving import ROOT, free_port, on_both_loops

ALWAYS = {"bodies": ["hello"] * 3, "pages": [True] * 2, "failures": {}}
WATCHED = {"clock": True}
NO_WORK = {"pools": 0, "in threads": 0}


def skip_without(name):
    if importlib.util.find_spec(name) is None:  # to import it here would warn
        pytest.skip(f"{name} is not installed")


def run(code_or_file, *arguments):
    """Run a program in this interpreter; return what it printed and what it logged."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))}
    done = subprocess.run(
        [sys.executable, *code_or_file, *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def seen_and_logged(patcher, when, loop):
    printed, logged = run(["tests/apps/greenlets.py"], patcher, when, loop, str(free_port()))
    return json.loads(printed.splitlines()[-1]), logged


def assert_saw(seen, expected):
    assert {name: seen[name] for name in expected} == expected


@pytest.mark.parametrize("when", ["before", pytest.param("after", marks=pytest.mark.slow)])
@pytest.mark.parametrize("patcher", ["gevent", "eventlet"])
def test_where_threads_are_greenlets_loopwatch_has_none_and_the_loop_renders_the_page(patcher, when):
    skip_without(patcher)

    def check(loop):
        seen, logged = seen_and_logged(patcher, when, loop)
        assert_saw(seen, ALWAYS | NO_WORK)
        assert seen["waited"] or loop == "uvloop"  # for work in greenlets, which uvloop gives no turn
        assert logged.count("has replaced threads") == logged.count("metrics_port is not served") == 1

    on_both_loops(check)


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
def test_beside_gevent_that_leaves_threads_alone_everything_is_measured(when):
    skip_without("gevent")

    def check(loop):
        seen, logged = seen_and_logged("gevent-but-threads", when, loop)
        assert_saw(seen, ALWAYS | WATCHED)
        assert (seen["pools"], seen["in threads"] > 0.04) == ((1, True) if loop == "asyncio" else (0, False))
        assert "has replaced threads" not in logged

    on_both_loops(check)


HUBS = """
from gevent import monkey; monkey.patch_all(thread=False)
import os, time
from loopwatch.system import Thread

def use_a_hub():
    time.sleep(0.001)  # a greenlet's: gevent makes a hub for this thread

def descriptors():
    for _ in range(5):
        thread = Thread(use_a_hub, name="loopwatch-test")
        thread.join(30)
        assert not thread.is_alive()
    return len(os.listdir("/proc/self/fd"))

print(descriptors(), descriptors())
"""


def test_a_thread_leaves_no_hub_of_gevents_open():
    skip_without("gevent")
    before, after = run(["-c", HUBS])[0].split()
    assert before == after
