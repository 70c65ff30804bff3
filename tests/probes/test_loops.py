"""What a loop was known to do is what each clock says of it."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any, NamedTuple

import pytest

from loopwatch import Config, LoopWatch
from loopwatch.failures import Failures
from loopwatch.hot import Lookout, Stage, describe_core
from loopwatch.probes import loops
from loopwatch.probes.loops.base import RecentWorst
from loopwatch.probes.loops.heartbeat import HeartbeatClock
from loopwatch.probes.loops.libuv import LibuvClock, _Look
from loopwatch.probes.loops.selector import SelectorClock
from loopwatch.testing import FakeClock, block_loop
from tests.quiet import withheld
from tests.requests import request_on
from tests.waiting import blocking_until

SECOND = 1_000_000_000


@pytest.mark.skipif(Lookout is None, reason="the plain core has no lookout")
def test_a_lookout_that_was_let_go_asks_nothing_of_a_loop_that_is_gone():
    loop = pytest.importorskip("uvloop").new_event_loop()
    clock = LibuvClock(loop, Failures())

    async def begin():
        clock.start(Stage(Failures().report))
        return clock.lookout()

    lookout = loop.run_until_complete(begin())
    clock.stop()
    loop.close()
    stage = Stage(None)

    def watch():
        lookout.wait(time.perf_counter_ns(), -1, stage.overdue_address(), 0.001, 0.001, 10.0)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        blocking_until(lookout.seen, "a look")
    finally:
        lookout.end()
        watcher.join()
    seen = lookout.seen()
    assert seen
    assert all((held, idle, iterations) == (0, 0, 0) for _, held, _, _, idle, iterations in seen)


@pytest.mark.contended
def test_a_look_that_is_interrupted_does_not_take_idle_time_for_busy_time():
    """Between its two readings the thread loses its CPU three times, while the loop sleeps."""
    uvloop, late = pytest.importorskip("uvloop"), []

    def interrupted():
        if late and late.pop(0):
            time.sleep(0.02)
        return time.perf_counter_ns()

    async def main():
        loop = asyncio.get_running_loop()
        clock = LibuvClock(loop, Failures(), clock=interrupted)
        clock.start(Stage(Failures().report))
        late.extend([False, True] * 3)
        held = await loop.run_in_executor(None, clock.look)
        clock.stop()
        return held

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(main()) < 0.01 * SECOND
    assert late == []


class Measured(NamedTuple):
    """What a loop's clock says of a while, and what is known of it by other clocks."""

    reading: Any
    blocked: list[float]
    shortest: float
    longest: float
    lost: float
    """What threads of this process had to wait for a CPU: a step that had to is longer, too."""

    def agrees(self, error, late=0.01):
        """Compare busy and idle time, and the share of time in which lag was above 100 ms, with what is known.

        ``error`` is relative; beside the blocks the loop may be busy for ``late`` seconds.
        """
        blocked, reading = sum(self.blocked), self.reading
        assert blocked * (1 - error) <= reading.busy <= blocked * (1 + error) + late + self.lost
        total = reading.busy + reading.idle
        assert self.shortest * (1 - error / 5) <= total <= self.longest * (1 + error / 5)
        above = sum(block - 0.1 for block in self.blocked)
        assert above / self.longest * (1 - error) <= share_above(reading, 0.1)
        assert share_above(reading, 0.1) <= (above + self.lost) / self.shortest * (1 + error)


def share_above(reading, bound):
    """Return the share of time in which lag was above a bucket bound."""
    lag = reading.lag
    below = lag.cumulative()[lag.bounds.index(bound)]
    return 1 - below / lag.count


async def measured(watch, work):
    """Let a loop do what is known; return what is known of it. ``work`` returns the blocks that it made."""
    before, outer = withheld(), time.perf_counter()
    first, inner = watch.snapshot(), time.perf_counter()
    blocked = await work()
    shortest = time.perf_counter() - inner
    reading, longest = (watch.snapshot() - first).loop, time.perf_counter() - outer
    return Measured(reading, blocked, shortest, longest, withheld() - before)


def blocks_of_300_ms(watch):
    """Three blocks of 300 ms, each followed by 300 ms of nothing; return what was read and what was done."""

    async def work():
        blocked = []
        for _ in range(3):
            await asyncio.sleep(0.3)
            blocked.append(block_loop(0.3))
        await asyncio.sleep(0.3)
        return blocked

    async def main():
        async with watch:
            return await measured(watch, work)

    return main


@pytest.mark.contended
@pytest.mark.blocks
def test_three_blocks_of_300_ms_are_what_they_are(run):
    found = run(blocks_of_300_ms(LoopWatch()))
    found.agrees(error=0.1)
    worst = max(found.blocked)
    assert worst - 0.015 <= found.reading.lag_max <= worst + 0.015 + found.lost


class Blocking(asyncio.Protocol):
    """Blocks in a transport callback: no task, no handle that a wrapper of call_soon would see."""

    def __init__(self, blocked):
        self.blocked = blocked

    def data_received(self, data):
        self.blocked.append(block_loop(0.3))


@pytest.mark.contended
@pytest.mark.blocks
def test_a_blocking_data_received_is_seen(run):
    async def main():
        loop, blocked = asyncio.get_running_loop(), []
        server = await loop.create_server(lambda: Blocking(blocked), "127.0.0.1", 0)
        address = server.sockets[0].getsockname()

        async def work():
            _, writer = await asyncio.open_connection(*address)
            for _ in range(2):
                writer.write(b"x")
                await asyncio.sleep(0.5)
            writer.close()
            return blocked

        async with LoopWatch() as watch:
            found = await measured(watch, work)
        server.close()
        return found

    found = run(main)
    assert len(found.blocked) == 2
    found.agrees(error=0.1)


@pytest.mark.contended
@pytest.mark.blocks
def test_a_stall_in_progress_already_shows(run):
    """Another thread reads while the loop is stuck; the figures only grow."""
    blocks, has_read = threading.Event(), threading.Event()

    async def main():
        async with LoopWatch() as watch:
            await asyncio.sleep(0.1)
            before = withheld()
            during = asyncio.get_running_loop().run_in_executor(None, read_twice, watch)
            await asyncio.sleep(0)
            blocks.set()
            assert has_read.wait(30)
            result = await during
            return result, watch.snapshot(), withheld() - before

    def read_twice(watch):
        assert blocks.wait(30)
        time.sleep(0.2)
        first = watch.snapshot()
        time.sleep(0.15)
        second = watch.snapshot()
        has_read.set()
        return first, second

    (first, second), after, lost = run(main)
    near = 0.02 + lost
    assert 0.1 < first.loop.lag_max < second.loop.lag_max <= after.loop.lag_max
    assert second.loop.lag_max - first.loop.lag_max == pytest.approx(second.taken_at - first.taken_at, abs=near)
    assert first.loop.busy < second.loop.busy < after.loop.busy
    assert second.taken_at - second.loop.responsive_at == pytest.approx(second.loop.lag_max, abs=near)
    assert after.loop.responsive_at > second.taken_at
    for older, newer in ((first, second), (second, after)):
        assert all(a <= b for a, b in zip(older.loop.lag.cumulative(), newer.loop.lag.cumulative(), strict=True))


def test_an_idle_loop_is_not_woken(run):
    async def main():
        async with LoopWatch() as watch:
            await asyncio.sleep(0.05)
            before = watch.snapshot().loop.iterations
            await asyncio.sleep(1.0)
            return watch.snapshot().loop.iterations - before

    assert run(main) <= 2  # the timer of the sleep itself


@pytest.mark.contended
@pytest.mark.blocks
def test_busy_iterations_shorter_than_the_watchers_interval_are_told_apart_by_steps(run):
    """40 blocks of 5 ms in a request's steps, with short iterations between: no threshold shows them."""
    blocked = []

    async def steps():
        for _ in range(40):
            blocked.append(block_loop(0.005))
            for _ in range(3):
                await asyncio.sleep(0.001)
        return blocked

    async def main():
        async with LoopWatch() as watch:
            return await measured(watch, lambda: request_on(watch).drive(steps()))

    blocked.clear()
    found = run(main)
    above, share = sum(block - 0.0025 for block in blocked), share_above(found.reading, 0.0025)
    assert 0.75 * above / found.longest <= share <= (1.25 * above + found.lost) / found.shortest


def test_the_selector_is_restored_to_what_was_there():
    async def main():
        selector = asyncio.get_running_loop()._selector
        async with LoopWatch():
            assert "select" in selector.__dict__
        assert "select" not in selector.__dict__
        selector.select = found = lambda timeout=None: type(selector).select(selector, timeout)
        async with LoopWatch():
            assert selector.select is not found
            await asyncio.sleep(0)
        assert selector.select is found

    asyncio.run(main())


def test_a_wrapper_that_came_on_top_is_left_alone_and_still_works():
    async def main():
        selector = asyncio.get_running_loop()._selector
        async with LoopWatch() as watch:
            ours = selector.select
            selector.select = theirs = lambda timeout=None: ours(timeout)
        assert selector.select is theirs
        reading = watch.snapshot().loop
        await asyncio.sleep(0.01)
        assert watch.snapshot().loop == reading  # stopped: nothing is counted any more

    asyncio.run(main())


@pytest.mark.contended
@pytest.mark.blocks
def test_any_other_loop_gets_a_heartbeat_corrected_for_coordinated_omission(caplog, monkeypatch):
    caplog.clear()
    caplog.set_level("INFO", "loopwatch")
    monkeypatch.setattr(SelectorClock, "supports", staticmethod(lambda _: False))
    found = asyncio.run(blocks_of_300_ms(LoopWatch())())
    assert [record.message for record in caplog.records if "clock" in record.message] == [
        (
            "loopwatch: measuring asyncio.unix_events._UnixSelectorEventLoop with the heartbeat clock "
            f"(nothing but a heartbeat is to be had from this kind of loop) and the {describe_core()}"
        )
    ]
    assert found.reading.iterations is None
    found.agrees(error=0.15)  # a beat may be late by its interval


def test_the_clock_is_chosen_by_the_kind_of_loop_and_the_log_says_why(run, loop_kind, caplog):
    caplog.set_level("INFO", "loopwatch")

    async def main():
        clock = loops.choose(asyncio.get_running_loop(), Config(), Failures())
        async with LoopWatch():
            pass
        return clock

    clock = run(main)
    assert type(clock) is {"asyncio": SelectorClock, "uvloop": LibuvClock}[loop_kind]
    chosen = [record.message for record in caplog.records if "measuring" in record.message]
    assert [message.split("with the ", 1)[1] for message in chosen] == [
        f"{clock.name} clock ({clock.reason}) and the {describe_core()}"
    ]


def test_the_heartbeat_counts_lateness_from_when_the_beat_was_due():
    time_now = FakeClock()
    loop = asyncio.new_event_loop()
    clock = HeartbeatClock(loop, Failures(), interval_seconds=0.02, clock=time_now)
    clock.start(Stage(None))
    time_now.advance(0.02)
    clock._on_beat()
    time_now.advance(0.32)
    clock._on_beat()
    time_now.advance(0.52)  # overdue by half a second, and still so
    reading = clock.read()
    clock.stop()
    loop.close()
    assert reading.busy == pytest.approx(0.8)
    assert reading.idle == pytest.approx(0.06)
    assert reading.lag_max == pytest.approx(0.5)


def test_the_worst_lag_is_forgotten_after_a_minute():
    worst = RecentWorst()
    for second, busy in ((100, 5), (100, 9), (100, 7), (130, 3), (159, 1)):
        worst.add(busy, second * SECOND)
    assert worst.read(159 * SECOND) == 9
    assert worst.read(160 * SECOND) == 9
    assert worst.read(161 * SECOND) == 3
    assert worst.read(300 * SECOND) == 0


class FakeLibuv:
    """libuv's two figures, set by the test."""

    def __init__(self, time_now):
        self.time_now, self.idle, self.count = time_now, 0, 0

    def clock(self):
        clock = LibuvClock(asyncio.new_event_loop(), Failures(), clock=self.time_now)
        clock._look = lambda: _Look(self.time_now(), self.idle, self.count)
        clock._origin = clock._window = clock._look()
        return clock

    def pass_time(self, idle=0.0, busy=0.0, iterations=0):
        self.time_now.advance(idle + busy)
        self.idle += round(idle * SECOND)
        self.count += iterations


def test_libuvs_figures_are_folded_into_periods():
    libuv = FakeLibuv(FakeClock())
    clock = libuv.clock()
    libuv.pass_time(idle=0.5, busy=0.01, iterations=1)
    clock._fold(clock._look())  # one iteration of 10 ms, and the next has begun
    libuv.pass_time(busy=0.2)
    assert clock._fold(clock._look()) == 0.2 * SECOND
    libuv.pass_time(busy=0.1, idle=0.3, iterations=1)
    clock._fold(clock._look())
    libuv.pass_time(busy=0.008, iterations=4)  # four of 2 ms, as far as anyone can tell
    clock._fold(clock._look())
    reading = clock._read_locked()
    clock._loop.close()
    assert reading.busy == pytest.approx(0.318)
    assert reading.idle == pytest.approx(0.8)
    assert reading.iterations == 6
    assert reading.lag_max == pytest.approx(0.3)
    expected = (0.3**2 + 0.01**2 + 4 * 0.002**2) / 2
    assert reading.lag.sum == pytest.approx(1000 * expected, rel=1e-6)


def test_a_period_that_began_before_the_look_that_saw_it_is_known_by_when_its_poll_ended():
    libuv = FakeLibuv(FakeClock())
    clock = libuv.clock()
    libuv.pass_time(idle=0.01, busy=0.045, iterations=3)
    running = clock._look()._replace(running=round(0.04 * SECOND))
    assert clock._fold(running) == 0.04 * SECOND
    libuv.pass_time(busy=0.26)
    assert clock._fold(clock._look()) == pytest.approx(0.3 * SECOND)
    libuv.pass_time(idle=0.1, iterations=1)
    reading = clock._read_locked()
    clock._loop.close()
    assert reading.lag_max == pytest.approx(0.3)
    assert reading.busy == pytest.approx(0.305)


def test_steps_that_share_one_iteration_of_libuv_are_one_period():
    libuv = FakeLibuv(FakeClock())
    clock = libuv.clock()
    clock._long_steps.extend([(0, 4_000_000), (0, 4_000_000), (1, 1_500_000)])
    libuv.pass_time(busy=0.01, iterations=3)
    clock._fold(clock._look())
    reading = clock._read_locked()
    clock._loop.close()
    assert reading.lag_max == pytest.approx(0.008)
    assert reading.lag.sum == pytest.approx(1000 * (0.008**2 + 0.0015**2 + 0.0005**2) / 2, rel=1e-6)
