"""Several loops in one process are one page, and a counter on it never falls."""

from __future__ import annotations

import asyncio
import gc
import threading

import anyio.to_thread
import pytest
from prometheus_client import REGISTRY

from loopwatch import LoopWatch, catalogue
from loopwatch.testing import block_loop
from tests.waiting import blocking_until, until


def value(name, **labels):
    return REGISTRY.get_sample_value(f"loopwatch_{name}", labels)


async def work(pieces):
    for _ in range(pieces):
        await anyio.to_thread.run_sync(int)


@pytest.mark.contended
@pytest.mark.blocks
def test_loops_in_several_threads_add_up_and_of_lag_the_worst_is_told(run):
    blocked, watches, may_end, failures = [], [], threading.Event(), []

    def thread(pieces, seconds):
        async def main():
            async with LoopWatch() as watch:
                await work(pieces)
                await asyncio.sleep(0.1)
                took = block_loop(seconds)
                await until(lambda: any(stall.duration > seconds / 2 for stall in watch.stalls), "the stall")
                watches.append(watch)
                blocked.append(took)
                await until(may_end.is_set, "the end")

        try:
            run(main)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=thread, args=args) for args in ((3, 0.3), (4, 0.2))]
    for one in threads:
        one.start()
    try:
        blocking_until(lambda: failures or len(blocked) == 2, "both loops")
        assert value("threadpool_run_duration_seconds_count", pool="anyio") == 7
        assert value("threadpool_limit", pool="anyio") == 80  # forty for each loop
        assert max(blocked) - 0.01 < value("loop_lag_max_seconds") < sum(blocked)
        counts = [value("loop_stall_duration_seconds_count", cause=cause) or 0 for cause in catalogue.CAUSES]
        assert sum(counts) == sum(len(watch.stalls) for watch in watches) >= 2
    finally:
        may_end.set()
        for one in threads:
            one.join()
    assert not failures


def pieces_told():
    return value("threadpool_run_duration_seconds_count", pool="anyio")


@pytest.mark.blocks  # the registry's other collectors read files
def test_what_a_watch_counted_that_has_ended_stays_while_another_goes_on():
    async def main():
        async with LoopWatch():
            await work(1)
            again = LoopWatch()
            told = []
            for _ in range(2):
                async with again:
                    await work(2)
                    told.append(pieces_told())
                told.append(pieces_told())
            async with LoopWatch() as short:
                await work(4)
            del short
            gc.collect()  # nobody can start it again
            return [*told, pieces_told()]

    # Of two watches on one loop, the later one counts the work.
    assert asyncio.run(main()) == [1 + 2, 3, 3 + 2, 5, 5 + 4]
    assert pieces_told() is None
