"""Threads, locks and clocks are the system's, and behave as those of ``threading`` do."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
import weakref

import pytest

from loopwatch import system
from loopwatch.system import Event, Thread
from tests.waiting import PATIENCE_SECONDS, blocking_until

pytestmark = pytest.mark.blocks


def test_a_set_event_stays_set_until_it_is_cleared():
    event = Event()
    assert (event.is_set(), event.wait(0.001)) == (False, False)
    event.set()
    event.set()
    assert [event.is_set(), event.wait(0), event.wait(0), event.is_set()] == [True] * 4
    event.clear()
    event.clear()
    assert (event.is_set(), event.wait(0.001)) == (False, False)


def test_an_event_wakes_the_thread_that_waits_for_it():
    event, woke = Event(), []
    thread = Thread(lambda: woke.append(event.wait(PATIENCE_SECONDS)), name="loopwatch-test")
    event.set()
    thread.join(PATIENCE_SECONDS)
    assert woke == [True]


def test_a_thread_lives_as_long_as_its_function_and_keeps_nothing_of_it():
    class Function:
        def __call__(self, event):
            event.wait(PATIENCE_SECONDS)

    event, function = Event(), Function()
    kept = weakref.ref(function)
    thread = Thread(function, event, name="loopwatch-test")
    thread.join(0.001)
    assert thread.is_alive()
    assert "loopwatch-test" in [one.name for one in threading.enumerate()]
    del function
    event.set()
    thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive()
    blocking_until(lambda: (gc.collect(), kept())[1] is None, "the function to be freed")


def test_a_thread_that_waits_for_its_own_end_does_not_wait():
    made, started, waited = [], Event(), []

    def wait_for_itself():
        started.wait(PATIENCE_SECONDS)
        made[0].join(PATIENCE_SECONDS)
        waited.append(made[0].is_alive())

    made.append(Thread(wait_for_itself, name="loopwatch-test"))
    started.set()
    made[0].join(PATIENCE_SECONDS - 1)
    assert waited == [True]


def test_another_thread_reads_the_cpu_clock_of_a_thread():
    clocks, done, computed = [], Event(), []

    def compute():
        clocks.append(system.own_cpu_clock())
        end = time.thread_time() + 0.05
        while time.thread_time() < end:
            pass
        computed.append(time.thread_time_ns())
        done.wait(PATIENCE_SECONDS)

    thread = Thread(compute, name="loopwatch-test")
    blocking_until(lambda: computed, "the thread to compute")
    read = time.clock_gettime_ns(clocks[0])
    done.set()
    thread.join(PATIENCE_SECONDS)
    assert read == pytest.approx(computed[0], abs=10_000_000)


def test_the_cpu_clock_is_none_where_the_system_does_not_know_its_number(monkeypatch):
    monkeypatch.setattr(system, "own_number", lambda: 2**22)  # above the largest number of a thread
    assert system.own_cpu_clock() is None


REPLACED = """
import _thread, sys, threading, time
def replace(module, name):
    found = getattr(module, name)
    def replaced(*arguments, **options):
        assert not sys._getframe(1).f_globals["__name__"].startswith("loopwatch"), name
        return found(*arguments, **options)  # importlib has a use for it, too
    setattr(module, name, replaced)

for name in ("allocate_lock", "get_ident", "start_new_thread"):
    replace(_thread, name)
replace(time, "sleep"), replace(time, "pthread_getcpuclockid")
from loopwatch import hot, system
system.sleep(0)
assert system.get_ident() == threading.main_thread().ident
assert system.own_cpu_clock() is not None
hot.Pool([1]).read()
_thread.get_ident = lambda: 1
assert system.threads_are_greenlets()
"""


@pytest.mark.parametrize("pure", [[], ["LOOPWATCH_PURE"]])
def test_what_was_replaced_before_the_import_is_not_used(pure):
    done = subprocess.run(
        [sys.executable, "-c", REPLACED],
        env={**os.environ, **dict.fromkeys(pure, "1")}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
