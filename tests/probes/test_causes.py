"""Evidence of which the cause is known, and evidence that tells none."""

from __future__ import annotations

import gc
import threading
import time
import types

import pytest

from loopwatch.probes import causes
from loopwatch.probes.causes import Collections, Evidence, cause_between
from loopwatch.probes.remedies import remedy_for
from loopwatch.probes.stops import stopped_for
from loopwatch.testing import FakeClock

NONE = Evidence(at=0, cpu=0, process_cpu=0, in_gc=0, run_queue=0, withheld=0, voluntary=0, asleep=False)


def after_half_a_second(**seconds_and_counts):
    """What was seen of 0.5 s: seconds, and counts of switches."""
    values = {
        name: value if name in {"voluntary", "asleep"} or value is None else round(value * 1e9)
        for name, value in seconds_and_counts.items()
    }
    return NONE._replace(**{"at": 500_000_000, **values})


@pytest.mark.parametrize(
    ("seen", "cause"),
    [
        # The first three are measured: a sleep, a Python loop, a Python loop beside one other busy thread.
        ({"voluntary": 1, "asleep": True}, "blocking"),
        ({"cpu": 0.5, "process_cpu": 0.5, "voluntary": 6}, "cpu"),
        ({"cpu": 0.26, "process_cpu": 0.5, "run_queue": 0.1, "voluntary": 93}, "gil"),
        ({"process_cpu": 0.5, "voluntary": 1}, "blocking"),
        ({"process_cpu": 0.02, "voluntary": 2000}, "blocking"),
        ({"voluntary": 0, "asleep": True}, "blocking"),
        ({"voluntary": 0, "asleep": None}, "blocking"),
        ({"voluntary": 0, "asleep": False}, "starved"),
        ({"cpu": 0.1, "process_cpu": 0.1, "run_queue": 0.4, "voluntary": 2}, "starved"),
        ({"cpu": 0.1, "process_cpu": 0.1, "withheld": 0.4, "voluntary": 2}, "blocking"),
        ({"cpu": 0.2, "process_cpu": 0.2, "withheld": 0.4, "voluntary": 2}, "starved"),
        ({"cpu": 0.45, "process_cpu": 0.45, "in_gc": 0.4}, "gc"),
        ({"cpu": 0.25, "process_cpu": 0.25, "voluntary": 2}, "unknown"),
        ({"voluntary": None}, "unknown"),
        ({"cpu": None}, "unknown"),
        ({"cpu": 0.5, "run_queue": None, "voluntary": None, "withheld": None}, "cpu"),
    ],
)
def test_evidence_tells_the_cause_or_nothing(seen, cause):
    assert cause_between(NONE, after_half_a_second(**seen)) == cause


def test_a_watcher_that_was_kept_out_tells_of_another_threads_c_code():
    seen = after_half_a_second(process_cpu=0.5, voluntary=None)
    assert cause_between(NONE, seen, kept_out=True) == "gil"


def test_the_time_in_collections_is_known_for_an_instant_that_has_passed(monkeypatch):
    clock = FakeClock()
    monkeypatch.setattr(causes, "time", types.SimpleNamespace(perf_counter_ns=clock))
    collections = Collections(threading.get_ident())
    start = clock()
    for _ in range(2):
        clock.advance(0.1)
        collections._hear("start", {})
        clock.advance(0.2)
        assert collections.total_at(clock()) == collections.total(clock())
        collections._hear("stop", {})
    times = {0.0: 0.0, 0.1: 0.0, 0.2: 0.1, 0.3: 0.2, 0.4: 0.2, 0.5: 0.3, 0.6: 0.4, 0.7: 0.4}
    for at, in_collections in times.items():
        assert collections.total_at(start + round(at * 1e9)) == pytest.approx(in_collections * 1e9), at
    assert collections.total(clock()) == pytest.approx(0.4e9)


def test_a_collection_takes_as_long_as_this_thread_computes_meanwhile():
    gc.disable()
    junk = [[number] for number in range(100_000)]
    collections = Collections(threading.get_ident())
    collections.start()
    try:
        before, computed = time.perf_counter_ns(), time.thread_time_ns()
        gc.collect()
        computed, after = time.thread_time_ns() - computed, time.perf_counter_ns()
    finally:
        collections.stop()
        gc.enable()
    del junk
    assert 0.8 * computed <= collections.total(after) <= after - before
    assert collections.total_at(before) == 0
    assert collections.total_at(after) == collections.total(after)


def test_collections_of_another_thread_do_not_count():
    collections = Collections(threading.get_ident() + 1)
    collections.start()
    try:
        gc.collect()
    finally:
        collections.stop()
    assert collections.total(time.perf_counter_ns()) == 0


def test_no_time_at_all_tells_nothing():
    assert cause_between(NONE, NONE) == "unknown"


def test_a_process_was_stopped_for_the_time_in_which_nothing_of_it_ran_or_waited_for_a_cpu():
    half = 500_000_000
    assert stopped_for(NONE, after_half_a_second(), half, 0) == half
    assert stopped_for(NONE, after_half_a_second(), half, half // 2) == half // 2
    assert stopped_for(NONE, after_half_a_second(process_cpu=0.4), half, 0) == half // 5
    assert stopped_for(NONE, after_half_a_second(run_queue=0.1, withheld=0.1), half, 0) == half
    assert stopped_for(NONE, after_half_a_second(run_queue=0.3), half, 0) == 0
    assert stopped_for(NONE, after_half_a_second(withheld=0.5), half, 0) == 0


@pytest.mark.parametrize(
    ("names", "part"),
    [
        (["time.sleep"], "asyncio.sleep"),
        (["requests.get"], "httpx.AsyncClient"),
        (["", "requests.api.get"], "httpx.AsyncClient"),
        (["sqlite3.Cursor.execute"], "aiosqlite"),
        (["psycopg2.extensions.cursor.execute"], "asyncpg"),
        (["open"], "anyio.open_file"),
        (["subprocess.run"], "create_subprocess_exec"),
        (["_thread.lock.acquire"], "asyncio.Lock"),
        (["requests_of_mine.get"], "`def`"),
        ([], "`def`"),
    ],
)
def test_the_call_decides_the_remedy_and_else_there_is_the_general_rule(names, part):
    assert part in remedy_for("blocking", names)


@pytest.mark.parametrize(
    ("cause", "part"),
    [("gc", "gc.freeze"), ("gil", "another process"), ("starved", "CPU limit"), ("cpu", "process")],
)
def test_what_is_not_the_calls_fault_has_a_remedy_of_its_own(cause, part):
    assert part in remedy_for(cause, [] if cause == "cpu" else ["time.sleep"])
