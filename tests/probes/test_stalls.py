"""A loop that is held is named: by whom, where, why and for how long. What is no stall is not."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

import loopwatch
from loopwatch import Config, LoopWatch, hot
from loopwatch.probes import stalls
from loopwatch.testing import block_loop, burn_cpu
from tests.only import only
from tests.quiet import waking_thread, withheld
from tests.serving import ROOT, wait_until
from tests.waiting import until

LOOK_SECONDS, MARGIN_SECONDS = 0.02, 0.0125


def stalls_of(run, work, **settings):
    """Return the stalls while ``work`` runs on a loop that is idle before and after."""

    async def main():
        async with LoopWatch(Config(**settings)) as watch:
            await asyncio.sleep(0.15)
            work()
            await asyncio.sleep(0.15)
        return watch

    return run(main).stalls


def lasts(stall, took, lost, loop_kind):
    """Compare a stall with the time that is known to have been slept, and what its threads had to wait for a CPU.

    On asyncio the loop's own clock measures it; on uvloop it is known to a look of the watcher's at worst.
    """
    early = MARGIN_SECONDS if loop_kind == "asyncio" else LOOK_SECONDS + lost
    late = (MARGIN_SECONDS if loop_kind == "asyncio" else LOOK_SECONDS) + lost
    assert took - early <= stall.duration <= took + late


@pytest.mark.contended
@pytest.mark.blocks
def test_a_stall_is_told_with_all_that_is_known_of_it(run):
    before = time.time()
    stall = only(stalls_of(run, lambda: block_loop(0.3)))
    assert before < stall.started_at < time.time()
    assert (stall.cause, stall.route, stall.method) == ("blocking", None, None)
    assert stall.task.startswith("Task-")
    assert (
        stall.function
        == "tests.probes.test_stalls:test_a_stall_is_told_with_all_that_is_known_of_it.<locals>.<lambda>"
    )
    assert stall.filename == "tests/probes/test_stalls.py"
    assert any("stalls_of" in line for line in stall.stack)
    assert stall.call == "loopwatch.testing.block_loop"
    assert "in tests.probes.test_stalls" in str(stall)


@pytest.mark.contended
@pytest.mark.blocks
def test_the_duration_is_exact_on_asyncio_and_within_a_look_on_uvloop(run, loop_kind):
    async def main():
        async with LoopWatch() as watch:
            await asyncio.sleep(0.15)
            before = withheld()
            took = block_loop(0.25)
            await asyncio.sleep(0.15)
            lost = withheld() - before
        return watch, took, lost

    watch, took, lost = run(main)
    stall = only(watch.stalls)
    lasts(stall, took, lost, loop_kind)


@pytest.mark.contended
@pytest.mark.blocks
def test_a_stall_that_lasts_until_the_stop_is_told(run):
    async def main():
        async with LoopWatch() as watch:
            await asyncio.sleep(0.15)
            before = withheld()
            took = block_loop(0.3)
            lost = withheld() - before
        return watch, took, lost

    watch, took, lost = run(main)
    wait_until(lambda: watch.stalls, "the stall")
    stall = only(watch.stalls)
    assert stall.cause == "blocking"
    lasts(stall, took, lost, "any")


@pytest.mark.quick_on_asyncio
@pytest.mark.contended
@pytest.mark.blocks
def test_a_stall_whose_line_cannot_be_found_is_a_stall_all_the_same(run, monkeypatch):
    def fails(*_):
        raise LookupError

    monkeypatch.setattr(stalls.Sampler, "name", fails)
    stall = only(stalls_of(run, lambda: block_loop(0.3)))
    assert (stall.function, stall.cause) == ("", "blocking")


@pytest.mark.quick_on_asyncio
@pytest.mark.contended
@pytest.mark.blocks
def test_the_watcher_goes_on_after_looks_that_failed(run, monkeypatch):
    """The first few at its usual pace; then it rests."""
    look, looks, failing = stalls.StallsProbe._look, [], stalls._MOST_FAILED + 2

    def fails_for_long(self, *its):
        looks.append(its)
        if len(looks) <= failing:
            raise LookupError
        return look(self, *its)

    monkeypatch.setattr(stalls.StallsProbe, "_look", fails_for_long)
    monkeypatch.setattr(stalls, "_REST_SECONDS", 0.05)

    async def main():
        async with LoopWatch() as watch:
            await until(lambda: block_loop(0.02) and len(looks) > failing, "the watcher to look again")
            block_loop(0.3)
            await asyncio.sleep(0.15)
        return watch

    watch = run(main)
    assert "block_loop" in only(watch.stalls).call
    assert watch.failures.read() == {"watcher": failing}


@pytest.mark.quick_on_asyncio
@pytest.mark.contended
@pytest.mark.blocks
def test_what_is_shorter_than_the_threshold_is_no_stall(run):
    assert stalls_of(run, lambda: block_loop(0.3), stall_seconds=0.36) == ()
    stall = only(stalls_of(run, lambda: block_loop(0.3), stall_seconds=0.24))
    assert stall.duration > 0.24


@pytest.mark.quick_on_asyncio
@pytest.mark.contended
@pytest.mark.blocks
def test_a_thread_that_computes_beside_is_never_called_blocking(run):
    """The loop computes too: it has to share the GIL, and neither sleeps."""
    ended = threading.Event()

    def compete():
        while not ended.is_set():
            sum(range(1000))

    rivals = [threading.Thread(target=compete) for _ in range(2)]

    def work():
        for rival in rivals:
            rival.start()
        try:
            burn_cpu(0.15)
        finally:
            ended.set()

    found = stalls_of(run, work)
    for rival in rivals:
        rival.join()
    assert found
    assert all(stall.cause in {"gil", "cpu", "starved", "unknown"} for stall in found)


@pytest.mark.quick_on_asyncio
@pytest.mark.contended
@pytest.mark.blocks
def test_a_garbage_collection_is_called_one(run):
    gc.disable()
    junk = [[number] for number in range(300_000)]
    gc.enable()

    def collect():
        """As often as it takes on this machine to be a stall."""
        enough = time.perf_counter() + 0.25
        while time.perf_counter() < enough:
            gc.collect()

    stall = only(stalls_of(run, collect))
    assert stall.cause == "gc"
    assert "gc.freeze" in stall.remedy
    del junk


@pytest.mark.quick_on_asyncio
@pytest.mark.contended
@pytest.mark.blocks
def test_c_code_that_keeps_the_gil_is_named(run):
    stall = only(stalls_of(run, lambda: pow(3, 4_000_000) > 0))
    assert stall.cause in {"cpu", "starved", "unknown"}
    assert "test_c_code_that_keeps_the_gil" in stall.function


POLLS_AND_IS_STOPPED = """
import asyncio, os, signal, sys, time
import loopwatch
async def main(when):
    async with loopwatch.LoopWatch() as watch:
        await asyncio.sleep(0.3)
        stops = [signal.SIGSTOP]
        stop = lambda: stops and (os.kill(os.getpid(), stops.pop()), time.sleep(0.001))  # it comes a little later
        if when == "while the watcher looks":
            watch._stalls._each_second = stop
            watch._stalls._next_second = 0
        else:
            asyncio.get_running_loop().call_later(0.3, stop)
        for spin in [0.004] * 100 + [0.03] * 15:  # the longer ones draw the watcher's attention
            end = time.perf_counter() + spin
            while time.perf_counter() < end:
                pass
            await asyncio.sleep(0)
        await asyncio.sleep(0.3)
    print([stall.duration for stall in watch.stalls if stall.duration > 0.5], flush=True)
kind, when = sys.argv[1:]
if kind == "uvloop":
    import uvloop
    uvloop.run(main(when))
else:
    asyncio.run(main(when))
"""


STOPPED = [
    ("uvloop", "while a callback runs"),
    pytest.param("asyncio", "while a callback runs", marks=pytest.mark.slow),
    pytest.param("asyncio", "while the watcher looks", marks=pytest.mark.slow),
    pytest.param("uvloop", "while the watcher looks", marks=pytest.mark.slow),
]


@pytest.mark.contended
@pytest.mark.parametrize(("loop_kind", "when"), STOPPED)
def test_a_process_that_was_stopped_has_not_stalled(loop_kind, when):
    with subprocess.Popen(
        [sys.executable, "-c", POLLS_AND_IS_STOPPED, loop_kind, when], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            _, status = os.waitpid(process.pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status)
            time.sleep(1.0)
            os.kill(process.pid, signal.SIGCONT)
            assert process.stdout.readline() == "[]\n"
        finally:
            process.kill()  # one that is stopped never ends


LATE_STALLS, LATE_STALL_SECONDS = 10, 0.2


@pytest.mark.slow
@pytest.mark.blocks
@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="only Linux lets a thread wait for everybody else")
def test_a_watcher_that_gets_no_cpu_does_not_take_the_process_for_stopped():
    """While the loop sleeps nothing of the process runs; but its watcher wants to, and that is no SIGSTOP.

    On asyncio, whose clock tells each stall by itself: on uvloop the watcher may take two for one then.
    """

    async def main():
        async with LoopWatch() as watch:
            await asyncio.sleep(0.2)
            (watcher,) = [thread for thread in threading.enumerate() if thread.name == "loopwatch-watcher"]
            hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in os.sched_getaffinity(0)]
            try:
                os.sched_setscheduler(watcher.native_id, os.SCHED_IDLE, os.sched_param(0))
                for _ in range(LATE_STALLS):
                    block_loop(LATE_STALL_SECONDS)
                    await asyncio.sleep(0.05)
            finally:
                for hog in hogs:
                    hog.kill()
                    hog.wait()
        return watch

    watch = asyncio.run(main())
    wait_until(lambda: len(watch.stalls) >= LATE_STALLS, f"{LATE_STALLS} stalls")
    assert min(stall.duration for stall in watch.stalls[:LATE_STALLS]) >= LATE_STALL_SECONDS * 0.95


@pytest.mark.quick_on_asyncio
@pytest.mark.contended
@pytest.mark.blocks
def test_the_log_tells_of_a_long_stall_before_it_ends(run, caplog):
    caplog.clear()
    caplog.set_level("WARNING", "loopwatch")
    ended = []

    def work():
        block_loop(1.2)
        ended.append(time.time())

    stalls_of(run, work)
    record = only(record for record in caplog.records if "held the event loop" in record.message)
    assert record.created < ended[0]
    assert record.message.endswith("(and still does)")
    assert record.stall_cause == "blocking"


@pytest.mark.quick_on_asyncio
@pytest.mark.contended
@pytest.mark.blocks
def test_a_stall_that_lasts_is_told_with_evidence_of_that_instant(run, caplog, monkeypatch):
    """Even if the watcher looked closely at its beginning only."""
    monkeypatch.setattr(stalls, "_CLOSE_LOOKS", 2)
    monkeypatch.setattr(stalls, "_EACH", 1000)
    caplog.clear()
    caplog.set_level("WARNING", "loopwatch")
    stalls_of(run, lambda: block_loop(0.8))
    record = only(record for record in caplog.records if record.getMessage().endswith("(and still does)"))
    assert record.stall_cause == "blocking"


@pytest.mark.quick_on_asyncio
@pytest.mark.contended
@pytest.mark.blocks
def test_listeners_are_called_off_the_loop_and_may_fail_or_block(run, caplog):
    caplog.clear()
    caplog.set_level("ERROR", "loopwatch")
    heard, loop_thread, blocking, release = [], threading.get_ident(), threading.Event(), threading.Event()

    async def main():
        async with LoopWatch() as watch:

            @watch.on_stall
            def fails(stall):
                raise RuntimeError("theirs")

            @watch.on_stall
            def hears(stall):
                heard.append((threading.get_ident(), stall))

            @watch.on_stall
            def blocks(stall):
                blocking.set()
                release.wait(30)

            await asyncio.sleep(0.1)
            for number in range(2):
                block_loop(0.15)
                await until(lambda number=number: len(watch.stalls) > number, "the stall")
                await asyncio.sleep(0.1)
            assert blocking.is_set()
            assert not release.is_set()
            release.set()
            await until(lambda: len(heard) == len(watch.stalls), "the listeners")
        return watch

    watch = run(main)
    assert len(watch.stalls) == 2
    assert [stall for _, stall in heard] == list(watch.stalls)
    assert all(thread != loop_thread for thread, _ in heard)
    assert watch.snapshot().dropped == {"listener": 2}
    assert sum("theirs" in record.message for record in caplog.records) == 1
    with pytest.raises(TypeError, match="must be a function"):
        watch.on_stall(main)


@pytest.mark.contended
@pytest.mark.blocks
def test_stalls_are_counted_by_cause_and_by_who_held_the_loop(run):
    async def main():
        async with LoopWatch() as watch:
            await asyncio.sleep(0.1)
            block_loop(0.2)
            await asyncio.sleep(0.1)
        return watch

    watch = run(main)
    snapshot = watch.snapshot()
    assert {cause: histogram.count for cause, histogram in snapshot.stall_durations.items()} == {"blocking": 1}
    assert snapshot.stall_times == {("_none", "_none", "blocking"): pytest.approx(watch.stalls[0].duration)}


@pytest.mark.quick_on_asyncio
@pytest.mark.contended
def test_an_idle_loops_watcher_uses_next_to_nothing(run):
    async def main():
        async with LoopWatch() as watch:
            await asyncio.sleep(0.2)
            before = watch.snapshot().self_time["watcher"]
            await asyncio.sleep(2)
            return watch.snapshot().self_time["watcher"] - before

    with waking_thread() as yardstick:
        used = run(main)
    assert used < 4 * yardstick()  # 0.5 % of a core, on one that is left alone


def test_the_log_names_a_culprit_once_a_minute_and_counts_the_rest(caplog):
    from loopwatch.exporters.log import StallLog

    caplog.set_level(logging.WARNING, "loopwatch")
    now = [0.0]
    log = StallLog(0.05, clock=lambda: now[0])

    def stall(started, function="app:slow"):
        hold = loopwatch.Hold(
            started, 0.2, "/a", "GET", "Task-1", "blocking", function, "app.py", 3, "time.sleep", (), "use another"
        )
        return loopwatch.Stall.of(started, 0.2, [hold])

    for second in range(10):
        now[0] = float(second)
        log.hear(stall(1000.0 + second))
    assert len(caplog.records) == 1
    now[0] = 61.0
    log.hear(stall(1061.0))
    assert len(caplog.records) == 2
    assert "[9 more like it" in caplog.records[1].message
    assert caplog.records[1].stall_held_back == 9
    assert caplog.records[0].stall_route == "/a"
    for number in range(50):  # a flood of different ones
        log.hear(stall(1062.0 + number, f"app:f{number}"))
    assert len(caplog.records) < 30


POLLS = 30_000


def switches_of(status):
    (line,) = [line for line in status.read_text().splitlines() if line.startswith("voluntary_ctxt_switches")]
    return int(line.split()[1])


@pytest.mark.blocks  # it reads files
@pytest.mark.skipif(hot.Lookout is None, reason="the plain core looks in Python")
def test_a_loop_that_polls_all_the_time_is_watched_without_asking_for_the_gil(run):
    """Who waits for the GIL is woken at each poll, in vain."""

    async def main():
        async with LoopWatch():
            await asyncio.sleep(0.2)
            (watcher,) = [thread for thread in threading.enumerate() if thread.name == "loopwatch-watcher"]
            status = pathlib.Path(f"/proc/self/task/{watcher.native_id}/status")
            before = switches_of(status)
            for _ in range(POLLS):
                await asyncio.sleep(0)
            return switches_of(status) - before

    assert run(main) < POLLS / 10


@pytest.mark.contended
@pytest.mark.blocks
def test_a_stall_that_is_the_last_thing_a_watch_sees_is_told_when_it_has_ended(run):
    async def main():
        async with LoopWatch() as watch:
            await asyncio.sleep(0.15)
            before = withheld()
            took = block_loop(0.2)
            lost = withheld() - before
        return took, lost, watch.stalls

    took, lost, found = run(main)
    lasts(only(found), took, lost, "any")


@pytest.mark.contended
@pytest.mark.blocks
def test_a_stall_that_is_the_last_thing_a_loop_does_is_told_when_it_is_closed(run):
    watch, took, lost = LoopWatch(), [], []

    async def main():
        watch.start()
        await asyncio.sleep(0.15)
        before = withheld()
        took.append(block_loop(0.2))
        lost.append(withheld() - before)

    in_a_thread = threading.Thread(target=run, args=(main,))  # which ends, too
    in_a_thread.start()
    in_a_thread.join()
    stall = only(watch.stalls)
    lasts(stall, took[0], lost[0], "any")


LAST_WORDS = """
import asyncio, loopwatch, loopwatch.testing
async def main():
    async with loopwatch.LoopWatch() as watch:
        await asyncio.sleep(0.15)
        loopwatch.testing.block_loop(0.2)
    watch.stop()
async def unmanaged():
    loopwatch.LoopWatch().start()
    await asyncio.sleep(0.15)
    loopwatch.testing.block_loop(0.2)
asyncio.run({main}())
"""


@pytest.mark.blocks
@pytest.mark.parametrize("main", ["main", "unmanaged"])
@pytest.mark.parametrize("times", [1, pytest.param(5, marks=pytest.mark.slow)])
def test_a_stall_that_is_the_last_thing_a_process_does_is_logged(main, times):
    for _ in range(times):
        command = [sys.executable, "-c", LAST_WORDS.format(main=main)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
        assert done.stderr.count(f" ms in __main__:{main} (") == 1, done.stderr
