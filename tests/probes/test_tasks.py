"""Tasks are counted exactly, or nearly so where there are very many, whatever the loop does meanwhile."""

from __future__ import annotations

import asyncio
import random
import sys
import threading

import pytest

import loopwatch
from loopwatch.probes import tasks
from loopwatch.probes.tasks import count_tasks
from tests.waiting import PATIENCE_SECONDS, blocking_until, until


async def for_ever():
    await asyncio.get_running_loop().create_future()


async def nothing():
    pass


def test_tasks_that_are_done_or_of_another_loop_are_not_counted(run):
    async def others(loops, may_end):
        theirs = [asyncio.create_task(for_ever()) for _ in range(10)]
        loops.append(asyncio.get_running_loop())
        await asyncio.to_thread(may_end.wait, PATIENCE_SECONDS)
        return theirs

    async def main():
        loops, may_end = [asyncio.get_running_loop()], threading.Event()
        thread = threading.Thread(target=lambda: asyncio.run(others(loops, may_end)))
        thread.start()
        await until(lambda: len(loops) == 2, "the other loop")
        mine = [asyncio.create_task(for_ever()) for _ in range(30)]
        done = [asyncio.create_task(nothing()) for _ in range(20)]
        await asyncio.gather(*done)
        counted = [count_tasks(loop) for loop in loops]
        may_end.set()
        await asyncio.to_thread(thread.join)
        return counted, len(mine)

    assert run(main)[0] == [31, 11]


def test_the_apps_random_numbers_stay_as_they_were_seeded(run, monkeypatch):
    monkeypatch.setattr(tasks, "MOST_LOOKED_AT", 5)

    async def main():
        every = [asyncio.create_task(for_ever()) for _ in range(20)]
        before = random.getstate()
        count_tasks(asyncio.get_running_loop())
        return before == random.getstate(), len(every)

    assert run(main)[0]


def test_a_task_that_does_not_say_its_loop_is_not_counted(run):
    class Odd:
        def done(self):
            return False

    async def main():
        odd = Odd()
        register = getattr(asyncio.tasks, "_register_task")  # noqa: B009 # as loops with tasks of their own do
        register(odd)
        try:
            return count_tasks(asyncio.get_running_loop()) if sys.version_info < (3, 14) else 1
        finally:
            asyncio.tasks._unregister_task(odd)

    assert run(main) == 1


def test_of_very_many_some_stand_for_all(run, monkeypatch):
    monkeypatch.setattr(tasks, "MOST_LOOKED_AT", 500)

    async def main():
        loop = asyncio.get_running_loop()
        every = [asyncio.create_task(for_ever()) for _ in range(4000)]
        all_of_them = count_tasks(loop)
        for task in every[:2000]:
            task.cancel()
        await asyncio.wait(every[:2000])
        return all_of_them, count_tasks(loop), len(every)

    all_of_them, half, _ = run(main)
    assert all_of_them == pytest.approx(4001, rel=0.1)  # exact, but for what other tests left behind
    assert half == pytest.approx(2000, rel=0.4)  # eight standard deviations, or exactly where C counts


def test_a_snapshot_is_whole_while_tasks_come_and_go(run):
    """As ``all_tasks`` begins anew whenever a task is made, it hardly ever ended here."""

    async def main():
        watch = loopwatch.LoopWatch()
        watch.start()
        every = [asyncio.create_task(for_ever()) for _ in range(20_000)]
        taken = []
        reader = threading.Thread(target=lambda: taken.extend(watch.snapshot().loop for _ in range(20)))
        reader.start()
        while reader.is_alive():
            await asyncio.gather(*(asyncio.create_task(nothing()) for _ in range(10)))
        reader.join()
        watch.stop()
        return taken, watch.failures.read(), len(every)

    taken, failures, _ = run(main)
    assert [reading.tasks == pytest.approx(20_000, rel=0.1) for reading in taken] == [True] * 20
    assert failures == {}


def test_a_reading_that_fails_is_one_reading(run, monkeypatch):
    async def main():
        watch = loopwatch.LoopWatch()
        watch.start()
        monkeypatch.setattr("loopwatch.probes.loops.base.count_tasks", lambda loop: 1 / 0)
        failed = watch.snapshot()
        monkeypatch.undo()
        busy = watch.snapshot().loop.busy
        blocking_until(lambda: watch.snapshot().loop.busy > busy, "the loop's busy time to grow")
        watch.stop()
        return failed.loop, watch.snapshot().loop, watch.failures.read()

    failed, last, failures = run(main)
    assert failed is None
    assert last.busy > 0
    assert failures == {"loop clock": 1}
