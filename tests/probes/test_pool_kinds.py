"""A pool is a kind: what the same code makes for each call is one pool, and what it has counted stays."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import threading
import time
import weakref
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Annotated

import anyio
import anyio.to_process
import anyio.to_thread
import httpx
import pytest
from fastapi import Depends, FastAPI
from prometheus_client.parser import text_string_to_metric_families
from starlette.concurrency import iterate_in_threadpool, run_in_threadpool

import loopwatch
from loopwatch import Config, LoopWatch
from loopwatch.hot import Member
from tests.waiting import blocking_until, until

pytestmark = pytest.mark.quick_on_asyncio

HERE = f"{__name__}."
PATIENCE_SECONDS = 30
MODULES = {Member.__module__, "loopwatch.probes.pools", "loopwatch.probes.users"}


def work():
    pass


def connect():
    try:
        yield "a connection"
    finally:
        time.sleep(0.01)


Connection = Annotated[str, Depends(connect)]


def client_of(app):
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


def named(watch):
    """Return the pools that have counted something or stand there since the start, by name."""
    return {pool.pool: pool for pool in watch.snapshot().pools}


def kinds(watch):
    """Return the pools that are neither of the two defaults."""
    return {name: pool for name, pool in named(watch).items() if name not in {"anyio", "asyncio"}}


async def collected(gone):
    await until(lambda: gc.collect() >= 0 and gone() is None, "an object to be gone")


async def hold(run, may_end):
    """Start work by ``run(function)``, and return its task once a thread runs it."""
    began = threading.Event()

    def held():
        began.set()
        may_end.wait(PATIENCE_SECONDS)

    task = asyncio.ensure_future(run(held))
    await until(began.is_set, "the work to begin")
    return task


@contextlib.asynccontextmanager
async def one_for_each_call():
    """Yield a function that runs another in an executor made for it alone."""
    executors = []

    def run(function):
        executor = ThreadPoolExecutor(1)
        executors.append(executor)
        return asyncio.get_running_loop().run_in_executor(executor, function)

    yield run
    for executor in executors:
        executor.shutdown(wait=False)


def test_dependencies_with_yield_are_one_pool_whose_counters_stay(run):
    app = FastAPI()

    @app.get("/")
    async def root(connection: Connection):
        return connection

    @app.get("/fails")
    async def fails(connection: Connection):
        raise ZeroDivisionError

    watch = loopwatch.install(app)
    pool, seen, counts = "limiter:fastapi.concurrency.contextmanager_in_threadpool", set(), [0]

    async def call(client, path):
        with contextlib.suppress(ZeroDivisionError):
            await client.get(path)
        now = named(watch)
        seen.update(now)
        counts.append(now[pool].run_times.count)

    async def main():
        async with watch, client_of(app) as client:
            await asyncio.gather(*(call(client, "/fails" if number % 3 else "/") for number in range(30)))
            for path in ("/", "/fails", "/"):
                await call(client, path)
            gc.collect()
            page = (await client.get("/metrics")).text
            return page, named(watch)[pool], watch.advice(), watch.pool_stalls

    page, end, advice, stalls = run(main)
    assert seen == {"anyio", pool}
    assert counts == sorted(counts)
    assert (end.limit, end.in_use, end.queued, end.run_times.count, end.is_anew) == (0, 0, 0, 33, True)
    assert end.saturated < end.run_times.sum / 10  # until the second came, there was but one
    assert (advice, stalls) == ((), ())
    families = {family.name: family for family in text_string_to_metric_families(page)}
    samples = families["loopwatch_threadpool_saturated_time_seconds"].samples
    assert [sample.labels["pool"] for sample in samples] == ["anyio", pool]


def test_contexts_of_asgiref_are_one_pool(run):
    sync = pytest.importorskip("asgiref.sync")

    async def request():
        async with sync.ThreadSensitiveContext():
            await sync.sync_to_async(time.sleep)(0.01)
            await sync.sync_to_async(work)()

    async def main():
        async with LoopWatch() as watch:
            await asyncio.gather(*(request() for _ in range(20)))
            await until(
                lambda: sum(p.run_times.count for p in kinds(watch).values()) == 40, "all work to be counted"
            )
            return kinds(watch), watch.advice()

    pools, advice = run(main)
    ((name, pool),) = pools.items()
    assert name == "threads:asgiref.sync.SyncToAsync.__call__"
    assert pool.queued == 0
    assert advice == ()


@pytest.mark.blocks
def test_what_lives_adds_up_and_what_is_gone_leaves_its_counters(run):
    async def limited(size, function):
        await anyio.to_thread.run_sync(function, limiter=anyio.CapacityLimiter(size))

    async def main():
        async with LoopWatch() as watch:
            may_end = threading.Event()
            tasks = [await hold(functools.partial(limited, size), may_end) for size in (1, 2, 3)]
            middle = kinds(watch)
            may_end.set()
            await asyncio.gather(*tasks)
            del tasks
            gc.collect()
            return middle, kinds(watch)

    middle, end = run(main)
    (name,) = middle
    assert name.startswith(f"limiter:{HERE}test_what_lives")
    assert (middle[name].limit, middle[name].in_use, middle[name].queued) == (6, 3, 0)
    assert (end[name].limit, end[name].in_use, end[name].run_times.count) == (0, 0, 3)
    assert end.keys() == {name}


@pytest.mark.blocks
def test_one_that_has_a_queue_beside_one_that_is_free_has_a_queue(run):
    """Sums would say that nothing waits: three pieces of work, three threads."""

    async def main():
        async with LoopWatch() as watch:
            loop, may_end = asyncio.get_running_loop(), threading.Event()
            executors = []

            def use(number, function):
                return loop.run_in_executor(executors[number], function)

            executors += [ThreadPoolExecutor(1), ThreadPoolExecutor(2)]
            for number in (0, 1):
                await use(number, work)
            running = await hold(functools.partial(use, 0), may_end)
            before = kinds(watch)
            waiting = [use(0, work) for _ in range(2)]
            middle = kinds(watch)
            await asyncio.sleep(0.05)
            after = kinds(watch)
            may_end.set()
            await asyncio.gather(running, *waiting)
            for executor in executors:
                executor.shutdown()
            return (*(next(iter(pools.values())) for pools in (before, middle, after)), len(after))

    before, middle, after, count = run(main)
    assert count == 1
    assert (before.limit, before.in_use, before.queued) == (3, 1, 0)
    assert (middle.limit, middle.in_use, middle.queued) == (3, 1, 2)
    assert after.saturated - middle.saturated >= 0.04


@pytest.mark.blocks
def test_being_full_is_no_saturation_of_what_is_made_for_each_call(run):
    async def main():
        async with LoopWatch() as watch, one_for_each_call() as make:
            for _ in range(2):
                await make(work)
            before = kinds(watch)
            may_end = threading.Event()
            tasks = [await hold(make, may_end) for _ in range(4)]
            await asyncio.sleep(0.05)
            after = kinds(watch)
            may_end.set()
            await asyncio.gather(*tasks)
            return before, after

    before, after = run(main)
    (name,) = before
    assert (after[name].in_use, after[name].queued) == (4, 0)
    assert after[name].saturated == before[name].saturated


@pytest.mark.blocks
def test_a_pool_of_one_is_at_its_limit_while_it_is_full(run):
    async def main():
        async with LoopWatch() as watch:
            executor, may_end = ThreadPoolExecutor(1), threading.Event()
            task = await hold(functools.partial(asyncio.get_running_loop().run_in_executor, executor), may_end)
            before = kinds(watch)
            await asyncio.sleep(0.05)
            after = kinds(watch)
            may_end.set()
            await task
            gone = weakref.ref(executor)
            executor.shutdown()
            del executor
            await collected(gone)
            end = kinds(watch)
            await asyncio.sleep(0.05)
            return before, after, end, kinds(watch)

    pools = run(main)
    before, after, end, later = (next(iter(each.values())) for each in pools)
    assert after.saturated - before.saturated >= 0.04
    assert (end.limit, end.saturated) == (0, later.saturated)
    assert not later.is_anew


@pytest.mark.blocks
def test_the_places_of_an_executor_that_is_gone_last_as_long_as_its_work(run):
    async def main():
        async with LoopWatch() as watch:
            loop, may_end = asyncio.get_running_loop(), threading.Event()
            task = await hold(lambda held: loop.run_in_executor(ThreadPoolExecutor(1), held), may_end)
            gc.collect()
            middle = kinds(watch)
            may_end.set()
            await task
            await until(lambda: not any(pool.limit for pool in kinds(watch).values()), "its place to go")
            return middle, kinds(watch)

    middle, end = run(main)
    (name,) = middle
    assert (middle[name].limit, middle[name].in_use, middle[name].queued) == (1, 1, 0)
    assert (end[name].in_use, end[name].queued, end[name].run_times.count) == (0, 0, 1)


@pytest.mark.parametrize("total", [7, float("inf")])
def test_the_limit_of_one_of_many_changes(run, total):
    async def main():
        async with LoopWatch() as watch:
            limiters = [anyio.CapacityLimiter(2) for _ in range(3)]
            for limiter in limiters:
                await anyio.to_thread.run_sync(work, limiter=limiter)
            limits = [kinds(watch)]
            for change in (total, 1):
                limiters[1].total_tokens = change
                limits.append(kinds(watch))
            return limits

    limits = run(main)
    assert [pool.limit for pools in limits for pool in pools.values()] == [6, 4 + total, 5]


@pytest.mark.blocks
@pytest.mark.parametrize("most", [50, 1])
def test_executors_of_processes_for_each_call_are_one_pool(run, most):
    async def main():
        async with LoopWatch(Config(max_pools=most)) as watch:
            if most == 1:
                await anyio.to_thread.run_sync(work, limiter=anyio.CapacityLimiter(1))
            for _ in range(2):
                with ProcessPoolExecutor(1) as executor:
                    loop = asyncio.get_running_loop()
                    await asyncio.gather(*(loop.run_in_executor(executor, time.sleep, 0.1) for _ in range(2)))
            return kinds(watch)

    pools = run(main)
    name = list(pools)[-1]
    assert name == "_other" if most == 1 else name.startswith(f"processes:{HERE}")
    assert (pools[name].run_times.count, pools[name].in_use, pools[name].queued) == (4, 0, 0)
    assert 0.1 <= pools[name].queue_times.sum < pools[name].run_times.sum  # half of them waited for the other half
    assert not pools[name].wait  # nothing is known of what they do meanwhile


def test_what_the_app_makes_once_is_a_pool_of_its_own(run):
    async def main():
        async with LoopWatch() as watch:
            first, second = anyio.CapacityLimiter(1), anyio.CapacityLimiter(2)
            third = anyio.CapacityLimiter(3)
            for _ in range(2):
                await asyncio.gather(*(anyio.to_thread.run_sync(work, limiter=first) for _ in range(3)))
                await anyio.to_thread.run_sync(work, limiter=second)
                await anyio.to_thread.run_sync(work, limiter=third)
            return kinds(watch)

    pools = run(main)
    assert [(pool.limit, pool.run_times.count, pool.is_anew) for pool in pools.values()] == [
        (1, 6, False),
        (2, 2, False),
        (3, 2, False),
    ]
    name = f"limiter:{HERE}test_what_the_app_makes_once_is_a_pool_of_its_own.<locals>.main"[:100]
    # The first is used by tasks that are nothing but that use: who made them is not known.
    assert list(pools) == [f"limiter:{HERE}work", name, f"{name} 2"]


def test_what_no_code_but_the_loop_uses_is_named_after_what_it_runs(run):
    async def main():
        async with LoopWatch() as watch:
            loop, executor = asyncio.get_running_loop(), ThreadPoolExecutor(1)
            loop.call_soon(loop.run_in_executor, executor, work)
            await until(lambda: kinds(watch), "the pool")
            executor.shutdown(wait=False)
            return kinds(watch)

    assert list(run(main)) == [f"threads:{HERE}work"]


@pytest.mark.blocks
def test_a_chosen_prefix_is_the_pools_name_until_there_is_one_for_each_call(run):
    async def each(prefix):
        executor = ThreadPoolExecutor(1, thread_name_prefix=prefix)
        await asyncio.get_running_loop().run_in_executor(executor, work)
        executor.shutdown()

    async def main():
        async with LoopWatch(Config(max_pools=20)) as watch:
            for _ in range(2):
                await each("mails")
            for number in range(50):
                await each(f"request-{number}")
            await each("mails")
            return {name: pool.run_times.count for name, pool in kinds(watch).items()}

    pools = run(main)
    assert pools.pop("mails") == 3
    (rest,) = [name for name in pools if name.startswith(f"threads:{HERE}")]
    assert pools.pop(rest) == 43
    assert pools == {f"request-{number}": 1 for number in range(7)}


def test_what_is_given_one_name_is_one_pool_and_one_of_many_leaves_for_a_name(run):
    async def use(limiter):
        await anyio.to_thread.run_sync(work, limiter=limiter)

    async def main():
        async with LoopWatch() as watch:
            limiters = [anyio.CapacityLimiter(1) for _ in range(5)]
            await use(limiters[0])
            watch.name_pool(limiters[0], "alone")  # it is the pool's only one
            alone = kinds(watch)
            for limiter in limiters[1:3]:
                await use(limiter)
            watch.name_pool(limiters[1], "apart")
            for limiter in limiters[3:]:
                watch.name_pool(limiter, "apart")
            for limiter in limiters:
                await use(limiter)
            return alone, kinds(watch), limiters

    alone, pools, _ = run(main)
    assert [(name, pool.run_times.count) for name, pool in alone.items()] == [("alone", 1)]
    counts = {name: (pool.limit, pool.run_times.count) for name, pool in pools.items()}
    assert counts.pop("alone") == (1, 2)
    assert counts.pop("apart") == (3, 3)
    assert list(counts.values()) == [(1, 3)]  # two were used before, and one of these stays


@pytest.mark.blocks
def test_labels_are_bounded_by_kinds_and_the_rest_adds_up(run):
    async def first(executor):
        await asyncio.get_running_loop().run_in_executor(executor, work)

    async def second(executor):
        await asyncio.get_running_loop().run_in_executor(executor, work)

    async def third(executor):
        await asyncio.get_running_loop().run_in_executor(executor, work)

    async def main():
        async with LoopWatch(Config(max_pools=2)) as watch:
            for use in (first, second, third) * 3:
                with ThreadPoolExecutor(1) as executor:
                    await use(executor)
            living = [ThreadPoolExecutor(2) for _ in range(2)]
            for executor in living:
                await third(executor)
            del executor
            return [(pool.limit, pool.run_times.count) for pool in kinds(watch).values()], list(kinds(watch))[-1]

    pools, last = run(main)
    assert pools[:2] == [(0, 3), (0, 3)]
    assert (pools[2], last) == ((4, 5), "_other")


def test_starlettes_ways_into_a_thread_and_anyios_into_a_process_make_no_pools(run):
    async def main():
        async with LoopWatch() as watch:
            for _ in range(3):
                await run_in_threadpool(work)
                assert [each async for each in iterate_in_threadpool([1, 2])] == [1, 2]
            await anyio.to_process.run_sync(work, limiter=anyio.CapacityLimiter(1))
            return named(watch)

    pools = run(main)
    assert [(name, pool.run_times.count) for name, pool in pools.items()] == [("anyio", 12)]


def test_loops_one_after_the_other_and_at_once_know_the_same_kinds(run):
    names = []

    async def main():
        async with LoopWatch(Config(metrics_path=None)) as watch:
            for _ in range(3):
                await anyio.to_thread.run_sync(work, limiter=anyio.CapacityLimiter(1))
            names.append({name: pool.run_times.count for name, pool in kinds(watch).items()})

    other = threading.Thread(target=lambda: run(main))
    other.start()
    for _ in range(2):
        run(main)
    other.join()
    assert len(names) == 3
    assert names[0] == names[1] == names[2]
    assert list(names[0].values()) == [3]


def test_a_watch_that_goes_on_with_another_loop_goes_on_with_its_pools(run):
    watch, counts = LoopWatch(), []

    async def main():
        async with watch:
            await anyio.to_thread.run_sync(work)
            await anyio.to_thread.run_sync(work, limiter=anyio.CapacityLimiter(1))
            counts.append([(pool.limit, pool.run_times.count) for pool in named(watch).values()])

    for _ in range(3):
        run(main)
        gc.collect()
    assert [[count for _, count in each] for each in counts] == [[1, 1], [2, 2], [3, 3]]
    assert {each[0][0] for each in counts} == {40}


@pytest.mark.blocks
@pytest.mark.parametrize("queues", [False, True])
def test_only_work_that_waits_makes_a_stuck_pool_of_what_is_made_for_each_call(run, queues):
    async def main():
        async with LoopWatch(Config(pool_stall_seconds=0.2)) as watch, one_for_each_call() as make:
            loop, may_end, executor = asyncio.get_running_loop(), threading.Event(), ThreadPoolExecutor(1)
            tasks = [await hold(make, may_end) for _ in range(5)]
            if queues:
                tasks.append(await hold(functools.partial(loop.run_in_executor, executor), may_end))
                tasks.append(loop.run_in_executor(executor, work))
                await until(lambda: watch.pool_stalls, "the stall")
            else:
                await asyncio.sleep(2.5)  # the watcher looks each second
            may_end.set()
            await asyncio.gather(*tasks)
            executor.shutdown(wait=False)
            return watch.pool_stalls

    stalls = run(main)
    assert [(stall.limit, stall.queued, stall.threads) for stall in stalls] == ([(1, 1, 1)] if queues else [])


@pytest.mark.blocks
def test_a_pool_in_which_work_of_another_call_ends_is_not_stuck(run):
    async def main():
        async with LoopWatch(Config(pool_stall_seconds=0.5)) as watch:
            loop, may_end, executors = asyncio.get_running_loop(), threading.Event(), []

            def use(number, function):
                return loop.run_in_executor(executors[number], function)

            executors += [ThreadPoolExecutor(1), ThreadPoolExecutor(1)]
            tasks = [await hold(functools.partial(use, 0), may_end), use(0, work)]
            deadline = time.monotonic() + 2.5
            while time.monotonic() < deadline:
                await use(1, work)
                await asyncio.sleep(0.05)
            (pool,) = kinds(watch).values()
            may_end.set()
            await asyncio.gather(*tasks)
            for executor in executors:
                executor.shutdown()
            return pool, watch.pool_stalls

    pool, stalls = run(main)
    assert (pool.queued, stalls) == (1, ())


def test_no_advice_is_given_on_the_size_of_what_is_made_for_each_call(run):
    async def call():
        limiter = anyio.CapacityLimiter(1)
        await asyncio.gather(*(anyio.to_thread.run_sync(time.sleep, 0.1, limiter=limiter) for _ in range(3)))

    async def main():
        async with LoopWatch() as watch:
            await asyncio.gather(*(call() for _ in range(10)))
            (pool,) = kinds(watch).values()
            return pool, watch.advice()

    pool, advice = run(main)
    assert (pool.queue_times.count, advice) == (30, ())
    assert pool.saturated > 0.15
    assert pool.queue_times.quantile(0.95) > 0.1


@pytest.mark.parametrize(
    ("loop_kind", "count"), [("asyncio", 3000), pytest.param("asyncio", 100_000, marks=pytest.mark.slow)]
)
def test_what_is_made_for_each_call_leaves_nothing_behind(run, count):
    def of_ours():
        gc.collect()
        names = Counter(type(each).__name__ for each in gc.get_objects() if type(each).__module__ in MODULES)
        return {name: names[name] for name in ("Member", "Pool", "_Source", "_Entry", "User", "_Kind")}

    async def main():
        async with LoopWatch() as watch:
            pools, sizes = watch._threads.pools, []
            for _ in range(2):
                for number in range(count):
                    if number % 2:
                        member = pools.of_limiter(anyio.CapacityLimiter(1), work)
                    else:
                        member = pools.of_executor(ThreadPoolExecutor(1, f"{number}"), work)
                    member.end(member.submit())
                del member
                watch.snapshot()
                sizes.append(of_ours())
                await asyncio.sleep(0)
            return sizes, len(pools._sources), sum(pool.queue_times.count for pool in kinds(watch).values())

    (first, second), living, counted = run(main)
    assert first == second
    assert living == 0
    assert counted == 2 * count


def test_a_watch_is_not_kept_by_the_executors_that_it_has_seen(run):
    executor = ThreadPoolExecutor(1)

    async def main():
        async with LoopWatch() as watch:
            await asyncio.get_running_loop().run_in_executor(executor, work)
            watch.snapshot()
            return weakref.ref(watch._threads.pools)

    gone = run(main)
    blocking_until(lambda: gc.collect() >= 0 and gone() is None, "the pools to be gone")
    executor.shutdown()


class EqualExecutor(ThreadPoolExecutor):
    """Equals every other one, so it cannot be hashed."""

    def __eq__(self, other):
        return isinstance(other, EqualExecutor)

    __hash__ = None


def test_executors_that_cannot_be_hashed_are_measured_and_named_singly(run):
    async def main():
        loop = asyncio.get_running_loop()
        async with LoopWatch() as watch:
            watch.name_pool(one, "one")
            watch.name_pool(other, "other")
            for executor in (one, one, other):
                await loop.run_in_executor(executor, work)
            return {name: pool.run_times.count for name, pool in named(watch).items()}, watch.snapshot().dropped

    with EqualExecutor(1) as one, EqualExecutor(1) as other:
        counted, dropped = run(main)
    assert (counted["one"], counted["other"]) == (2, 1)
    assert dropped == {}
