"""Pools of workers: how many work, how many wait and for how long, whatever becomes of the work."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import gc
import itertools
import operator
import threading
import time
import weakref
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import anyio
import anyio.from_thread
import anyio.to_thread
import httpx
import pytest
from anyio._backends._asyncio import AsyncIOBackend
from fastapi import FastAPI

import loopwatch
from loopwatch import Config, LoopWatch
from loopwatch.testing import burn_cpu
from tests.requests import door_on, request_on, scope, times
from tests.waiting import blocking_until, until

pytestmark = [
    pytest.mark.quick_on_asyncio,
    pytest.mark.contended,  # who waits for the CPU ends later, waits longer, and lets others wait
]

SECONDS = 0.1
SETTLED_SECONDS = 0.05


def nap(seconds=SECONDS):
    time.sleep(seconds)


@pytest.fixture
def keep():
    """Shut an executor down when the test is over: off the loop, since that waits."""
    with contextlib.ExitStack() as stack:
        yield stack.enter_context


async def settle():
    """Let the ends of work come in: a worker notes them after it has set the result."""
    await asyncio.sleep(SETTLED_SECONDS)


async def collected(gone):
    """Wait until the object of a weak reference is gone."""
    await until(lambda: gc.collect() >= 0 and gone() is None, "an object to be gone")


def test_a_full_limiter_is_measured_exactly(run):
    queued, submitted, ended = [], [], []
    may_end = threading.Event()

    def work(since):
        queued.append(time.perf_counter() - since)
        may_end.wait(30)
        ended.append(time.perf_counter())

    async def submit():
        submitted.append(time.perf_counter())
        await anyio.to_thread.run_sync(work, submitted[-1])

    async def main():
        async with LoopWatch() as watch:
            before = watch.snapshot()
            tasks = [asyncio.create_task(submit()) for _ in range(120)]
            await until(lambda: len(queued) == 40, "all threads to work")
            await asyncio.sleep(3 * SECONDS)
            middle = watch.snapshot().pool("anyio")
            may_end.set()
            await asyncio.gather(*tasks)
            await settle()
            return middle, (watch.snapshot() - before).pool("anyio")

    middle, pool = run(main)
    assert (middle.limit, middle.in_use, middle.queued) == (40, 40, 80)
    assert pool.queue_times.count == pool.run_times.count == 120
    assert pool.queue_times.sum == pytest.approx(sum(queued), rel=0.1)
    until_fewer_than_40_are_left = sorted(ended)[80] - submitted[39]
    assert pool.saturated == pytest.approx(until_fewer_than_40_are_left, rel=0.15)
    assert pool.wait == pytest.approx(pool.run_times.sum, rel=0.1)
    assert (pool.in_use, pool.queued) == (0, 0)


def test_an_executor_of_two_threads(run, keep):
    executor = keep(ThreadPoolExecutor(2, thread_name_prefix="reports"))
    began, ended = [], []

    def work():
        began.append(time.perf_counter())
        nap(2 * SECONDS)
        ended.append(time.perf_counter())

    async def main():
        async with LoopWatch() as watch:
            loop = asyncio.get_running_loop()
            started = time.perf_counter()
            futures = [loop.run_in_executor(executor, work) for _ in range(6)]
            submitted = time.perf_counter()
            at_once = watch.snapshot().pool("reports")
            await asyncio.gather(*futures)
            await settle()
            return at_once, watch.snapshot().pool("reports"), started, submitted

    at_once, pool, started, submitted = run(main)
    assert (at_once.limit, at_once.in_use, at_once.queued) == (2, 2, 4)
    assert pool.queue_times.count == pool.run_times.count == 6
    at_most, at_least = (sum(moment - since for moment in began) for since in (started, submitted))
    assert 0.9 * at_least <= pool.queue_times.sum <= at_most
    assert ended[4] - submitted <= pool.saturated <= 1.1 * (ended[4] - started)
    assert (pool.in_use, pool.queued) == (0, 0)


def test_an_executor_of_processes_shows_its_queue(run, keep):
    executor = keep(ProcessPoolExecutor(1))
    executor.submit(nap, 0).result()  # its start

    async def main():
        async with LoopWatch() as watch:
            watch.name_pool(executor, "renderers")
            loop = asyncio.get_running_loop()
            started = time.perf_counter()
            futures = [loop.run_in_executor(executor, nap) for _ in range(4)]
            at_once = watch.snapshot().pool("renderers")
            ended = []
            for future in futures:
                await future
                ended.append(time.perf_counter() - started)
            await settle()
            return at_once, watch.snapshot().pool("renderers"), ended

    at_once, pool, ended = run(main)
    assert (at_once.limit, at_once.in_use, at_once.queued) == (1, 1, 3)
    assert pool.queue_times.sum == pytest.approx(sum(ended[:3]), rel=0.1)
    assert pool.run_times.sum == pytest.approx(ended[3], rel=0.1)
    assert (pool.in_use, pool.queued, pool.cpu, pool.wait) == (0, 0, None, None)


def test_anyios_threads_and_the_loops_own_executor_are_told_apart(run):
    async def main():
        async with LoopWatch() as watch:
            await anyio.to_thread.run_sync(nap, 0.01)
            for _ in range(2):
                await asyncio.to_thread(nap, 0.01)
            await settle()
            return watch.snapshot()

    snapshot = run(main)
    assert snapshot.pool("anyio").run_times.count == 1
    assert snapshot.pool("asyncio").run_times.count == 2
    assert snapshot.pool("asyncio").limit == ThreadPoolExecutor()._max_workers


def test_the_loops_own_executor_may_be_replaced(run):
    async def main():
        async with LoopWatch() as watch:
            await asyncio.to_thread(nap, 0)
            asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(3))
            await asyncio.to_thread(nap, 0)
            return watch.snapshot().pool("asyncio")

    pool = run(main)
    assert (pool.limit, pool.queue_times.count) == (3, 2)


def test_cpu_and_wait_of_threads_are_told_apart(run):
    def half_and_half():
        before = time.thread_time()
        burn_cpu(0.1)
        nap()
        used.append(time.thread_time() - before)

    used = []

    async def main():
        async with LoopWatch() as watch:
            await asyncio.to_thread(half_and_half)
            await settle()
            return watch.snapshot().pool("asyncio")

    pool = run(main)
    assert pool.cpu == pytest.approx(used[0], rel=0.05)
    assert pool.cpu + pool.wait == pytest.approx(pool.run_times.sum)


def some_microseconds():
    return sum(range(300))


def one_in(number, rare, else_):
    """Return a function that does something else each so many times."""
    turns = itertools.cycle([rare] + [else_] * (number - 1))

    def work():
        next(turns)()

    return work


@pytest.mark.parametrize(
    ("work", "count"),
    [
        (lambda: nap(0.0002), 800),
        (lambda: burn_cpu(0.0002), 800),
        (some_microseconds, 2000),
        (one_in(200, lambda: nap(0.002), else_=some_microseconds), 2000),
        (one_in(3, lambda: nap(0.0002), else_=some_microseconds), 2000),
    ],
    ids=["naps", "computes", "microseconds", "now and then a nap", "many naps"],
)
def test_the_cpu_time_of_short_work_that_follows_close_upon_another_adds_up(run, keep, work, count):
    """Most of these start without a look at the CPU clock; the thread's own way between them is not theirs."""
    executor = keep(ThreadPoolExecutor(1, thread_name_prefix="one"))
    took = []

    def timed():
        before = time.thread_time()
        work()
        after = time.thread_time()
        # To read the clock here, and at both ends of the job, is some 2 us of it: as much as what is to be seen.
        took.append(after - before + 3 * (time.thread_time() - after))

    async def main():
        async with LoopWatch() as watch:
            loop = asyncio.get_running_loop()
            await asyncio.gather(*(loop.run_in_executor(executor, timed) for _ in range(count)))
            await settle()
            return watch.snapshot().pool("one")

    pool = run(main)
    assert pool.run_times.count == count
    assert pool.cpu == pytest.approx(sum(took), rel=0.05, abs=0.005)
    assert pool.cpu + pool.wait == pytest.approx(pool.run_times.sum)


def test_work_that_is_cancelled_in_the_queue_leaves_it_at_once(run, keep):
    executor = keep(ThreadPoolExecutor(1))

    async def main():
        async with LoopWatch() as watch:
            limiter = anyio.CapacityLimiter(1)
            watch.name_pool(limiter, "one")
            watch.name_pool(executor, "thread")
            loop = asyncio.get_running_loop()
            running = [
                asyncio.create_task(anyio.to_thread.run_sync(nap, 0.3, limiter=limiter)),
                loop.run_in_executor(executor, nap, 0.3),
            ]
            await settle()
            queued = [asyncio.create_task(anyio.to_thread.run_sync(nap, limiter=limiter)) for _ in range(3)]
            queued += [loop.run_in_executor(executor, nap) for _ in range(3)]
            await settle()
            middle = watch.snapshot()
            for one in queued:
                one.cancel()
            await settle()
            after = watch.snapshot()
            assert len(queued) == 6  # kept, with their tracebacks
            await asyncio.gather(*running)
            await settle()
            return middle, after, watch.snapshot()

    snapshots = run(main)
    for name in ("one", "thread"):
        middle, after, end = (snapshot.pool(name) for snapshot in snapshots)
        assert (middle.in_use, middle.queued) == (1, 3)
        assert (after.in_use, after.queued) == (1, 0)
        assert after.queue_times.count == 3  # they waited, and gave up
        assert (end.in_use, end.queued, end.run_times.count) == (0, 0, 1)


def test_work_that_is_abandoned_frees_its_place_in_a_limiter_but_not_in_an_executor(run):
    took = []

    def work():
        before = time.perf_counter()
        nap(0.3)
        took.append(time.perf_counter() - before)

    async def main():
        async with LoopWatch() as watch:
            with anyio.move_on_after(0.05):
                await anyio.to_thread.run_sync(work, abandon_on_cancel=True)
            with anyio.move_on_after(0.05):
                await asyncio.to_thread(work)
            middle = watch.snapshot()
            await until(lambda: len(took) == 2, "the abandoned work to end")
            await settle()
            return middle, watch.snapshot()

    middle, end = run(main)
    assert (middle.pool("anyio").in_use, middle.pool("asyncio").in_use) == (0, 1)
    assert middle.pool("anyio").run_times.count == 0
    for name, seconds in zip(("anyio", "asyncio"), took, strict=True):
        pool = end.pool(name)
        assert (pool.in_use, pool.queued, pool.run_times.count) == (0, 0, 1)
        assert pool.run_times.sum == pytest.approx(seconds, rel=0.05)


def test_a_way_in_that_somebody_else_has_wrapped_gets_its_arguments_as_they_come(run, monkeypatch):
    way_in = AsyncIOBackend.run_sync_in_worker_thread

    async def wrapped(function, arguments, **options):
        return await way_in(function, arguments, **options)

    async def main():
        async with LoopWatch() as watch:
            assert await anyio.to_thread.run_sync(lambda: nap(0.05) or "done") == "done"
            await settle()
            return watch.snapshot().pool("anyio")

    monkeypatch.setattr(AsyncIOBackend, "run_sync_in_worker_thread", staticmethod(wrapped))
    pool = run(main)
    assert (pool.run_times.count, pool.in_use) == (1, 0)
    assert pool.run_times.sum >= 0.05


def test_work_that_raises_is_counted_and_its_error_passes(run):
    async def main():
        async with LoopWatch() as watch:
            with pytest.raises(ZeroDivisionError):
                await anyio.to_thread.run_sync(lambda: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                await asyncio.to_thread(lambda: 1 / 0)
            await settle()
            return watch.snapshot()

    snapshot = run(main)
    for name in ("anyio", "asyncio"):
        assert (snapshot.pool(name).in_use, snapshot.pool(name).run_times.count) == (0, 1)


def test_an_executor_that_is_shut_down_with_work_queued(run):
    async def main():
        async with LoopWatch() as watch:
            executor = ThreadPoolExecutor(1, thread_name_prefix="doomed")
            loop = asyncio.get_running_loop()
            work = [loop.run_in_executor(executor, nap) for _ in range(4)]
            await settle()
            executor.shutdown(wait=False, cancel_futures=True)
            await asyncio.gather(*work, return_exceptions=True)
            with pytest.raises(RuntimeError):
                loop.run_in_executor(executor, nap)
            await settle()
            return watch.snapshot().pool("doomed")

    pool = run(main)
    assert (pool.in_use, pool.queued, pool.run_times.count) == (0, 0, 1)


def test_a_limit_that_changes_is_followed(run):
    async def main():
        async with LoopWatch() as watch:
            limiter = anyio.CapacityLimiter(2)
            watch.name_pool(limiter, "growing")
            may_end, started = threading.Event(), time.perf_counter()
            work = [
                asyncio.create_task(anyio.to_thread.run_sync(may_end.wait, 10, limiter=limiter)) for _ in range(4)
            ]
            in_use = operator.attrgetter("in_use")
            await until(lambda: list(map(in_use, watch.snapshot().pools)) == [0, 2], "two threads to work")
            full_since = time.perf_counter()
            await settle()
            small = watch.snapshot().pool("growing")
            at_least = time.perf_counter() - full_since
            limiter.total_tokens = 10
            at_most = time.perf_counter() - started
            await settle()
            big = watch.snapshot().pool("growing")
            may_end.set()
            await asyncio.gather(*work)
            return small, big, watch.snapshot().pool("growing"), at_least, at_most

    small, big, end, at_least, at_most = run(main)
    assert (small.limit, small.in_use, small.queued) == (2, 2, 2)
    assert (big.limit, big.in_use, big.queued) == (10, 4, 0)
    assert at_least <= end.saturated <= at_most


def test_the_defaults_take_a_name_that_was_given_before_their_first_use(run, keep):
    executor = keep(ThreadPoolExecutor(2, thread_name_prefix="pool"))

    async def main():
        watch = LoopWatch()
        limiter = anyio.to_thread.current_default_thread_limiter()
        watch.name_pool(limiter, "routes")
        watch.name_pool(executor, "own")
        async with watch:
            asyncio.get_running_loop().set_default_executor(executor)
            await asyncio.to_thread(nap, 0)
            asyncio.get_running_loop()._default_executor = None  # asyncio would wait for it at its end
            return [pool.pool for pool in watch.snapshot().pools]

    assert run(main) == ["routes", "own"]


@pytest.mark.parametrize(
    ("pool", "name", "error"),
    [(object(), "a", TypeError), (None, "a", TypeError), (ThreadPoolExecutor(1), " ", ValueError)],
)
def test_what_cannot_be_named(pool, name, error):
    with pytest.raises(error, match="name"):
        LoopWatch().name_pool(pool, name)


def test_two_loops_in_two_threads_do_not_mix(run):
    counts = []

    async def main():
        async with LoopWatch(Config(metrics_path=None)) as watch:
            await asyncio.gather(*(anyio.to_thread.run_sync(nap, 0.01) for _ in range(10)))
            await asyncio.gather(*(asyncio.to_thread(nap, 0.01) for _ in range(5)))
            await settle()
            snapshot = watch.snapshot()
            counts.append((snapshot.pool("anyio").run_times.count, snapshot.pool("asyncio").run_times.count))

    other = threading.Thread(target=lambda: run(main))
    other.start()
    run(main)
    other.join()
    assert counts == [(10, 5), (10, 5)]


def test_what_two_watches_of_one_loop_see_is_timed_once(run):
    async def main():
        async with LoopWatch() as inner, LoopWatch() as outer:
            await anyio.to_thread.run_sync(nap, 0.01)
            await asyncio.to_thread(nap, 0.01)
            await settle()
            return [
                [pool.run_times.count for pool in watch.snapshot().pools if pool.run_times.count]
                for watch in (inner, outer)
            ]

    assert run(main) == [[], [1, 1]]


def test_work_whose_pool_cannot_be_found_is_done_all_the_same(run, monkeypatch):
    def fail(*_):
        raise RuntimeError("no such pool")

    async def main():
        async with LoopWatch() as watch:
            monkeypatch.setattr(watch._threads.pools, "_find", fail)
            own = anyio.CapacityLimiter(1)
            results = [
                await anyio.to_thread.run_sync(lambda: "limited", limiter=own),
                await asyncio.get_running_loop().run_in_executor(ThreadPoolExecutor(1), lambda: "executed"),
                await anyio.to_thread.run_sync(lambda: "default"),
            ]
            await settle()
            return results, watch.snapshot()

    results, snapshot = run(main)
    assert results == ["limited", "executed", "default"]
    assert snapshot.dropped["threads"] == 2
    assert snapshot.pool("anyio").run_times.count == 1


def test_the_queue_of_a_route_is_that_of_its_pool(run):
    app = FastAPI()

    @app.get("/nap")
    def route():
        nap(0.05)

    watch = loopwatch.install(app)

    async def main():
        async with watch, httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            await asyncio.gather(*(client.get("/nap") for _ in range(100)))
            return watch.snapshot()

    snapshot = run(main)
    pool = snapshot.pool("anyio")
    assert pool.queue_times.count == 100
    assert snapshot.route("/nap").seconds("thread_queue") == pytest.approx(pool.queue_times.sum, rel=0.05)
    assert snapshot.route("/nap").seconds("thread_wait") == pytest.approx(pool.wait, rel=0.05)


async def by_anyio(coroutine, _loop):
    await anyio.to_thread.run_sync(anyio.from_thread.run, coroutine)


async def by_asyncio(coroutine, loop):
    await asyncio.to_thread(lambda: asyncio.run_coroutine_threadsafe(coroutine(), loop).result())


async def by_executor(coroutine, loop):
    await loop.run_in_executor(None, lambda: asyncio.run_coroutine_threadsafe(coroutine(), loop).result())


@pytest.mark.parametrize("way", [by_anyio, by_asyncio, by_executor])
def test_what_a_worker_thread_has_the_loop_do_is_booked_for_its_request(run, way):
    async def main():
        loop, burnt, booked = asyncio.get_running_loop(), [], {}

        async def on_the_loop():
            began = time.thread_time()
            burn_cpu(SECONDS)
            burnt.append(time.thread_time() - began)
            await asyncio.sleep(0)

        async def handle(request, work):
            await work()
            await asyncio.sleep(0)  # a new step: what came before it is booked
            booked[request] = times(request)

        async with LoopWatch() as watch:
            mine, other = request_on(watch), request_on(watch)
            await mine.drive(handle(mine, lambda: way(on_the_loop, loop)))
            at_work = asyncio.ensure_future(other.drive(handle(other, lambda: asyncio.to_thread(nap, 2 * SECONDS))))
            await way(on_the_loop, loop)  # on nobody's behalf
            await at_work
        return booked[mine], booked[other], burnt[0]

    mine, other, burnt = run(main)
    assert mine["loop_cpu"] == pytest.approx(burnt, abs=0.005)
    assert other["loop_cpu"] == pytest.approx(0, abs=0.005)


@pytest.mark.parametrize("fate", ["done", "cancelled in the queue", "cancelled at work", "forgotten"])
def test_a_request_and_its_work_let_go_of_each_other(run, keep, fate):
    """The garbage collector tracks neither."""
    executor, may_end = keep(ThreadPoolExecutor(1)), threading.Event()

    async def main():
        async with LoopWatch() as watch:
            loop = asyncio.get_running_loop()
            door, recorder = door_on(watch.stage)
            alive = weakref.ref(recorder)
            if fate == "cancelled in the queue":
                executor.submit(may_end.wait)

            async def handle():
                await loop.run_in_executor(executor, may_end.wait)

            request = door.begin(scope(), None, watch.stage).drive(handle())
            del door, recorder
            if fate == "forgotten":
                request.send(None)
            else:
                task = asyncio.ensure_future(request)
                await settle()
                if fate != "done":
                    task.cancel()
                may_end.set()
                await asyncio.wait([task])
            may_end.set()
            await settle()
            watch.snapshot()
        return alive

    alive = run(main)
    executor.shutdown()
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("parts", [(2, 1, 0.5), (1, 2, 0.5), (0.5, 1, 2)], ids=["first", "second", "third"])
def test_the_longest_of_several_threads_is_what_a_request_waits_for(run, parts):
    found, began, ended = [], [], []
    all_began = threading.Barrier(len(parts))

    def work(seconds):
        all_began.wait(30)
        began.append(time.perf_counter())
        nap(seconds)
        ended.append(time.perf_counter())

    async def main():
        async def handle():
            started = time.perf_counter()
            await asyncio.gather(*(asyncio.to_thread(work, part * SECONDS) for part in parts))
            return time.perf_counter() - started, times(request)

        async with LoopWatch() as watch:
            request = request_on(watch)
            found.append(await request.drive(handle()))

    run(main)
    ((took, booked),) = found
    worked = max(ended) - min(began)
    assert sum(booked.values()) == pytest.approx(took, abs=0.005)
    assert worked - 0.005 <= booked["thread_wait"] + booked["thread_cpu"] <= took + 0.005
    assert booked["await"] <= took - worked + 0.005


def test_what_a_worker_thread_has_another_loop_do_is_not_its_requests(run):
    ready, booked, there = threading.Event(), {}, {}

    async def other():
        there["loop"], there["end"] = asyncio.get_running_loop(), asyncio.Event()
        async with LoopWatch():
            ready.set()
            await there["end"].wait()

    async def elsewhere():
        burn_cpu(SECONDS)
        await asyncio.sleep(0)

    async def main():
        async def handle():
            await by_asyncio(elsewhere, there["loop"])
            await asyncio.sleep(0)  # a new step: what came before it is booked
            booked.update(times(request))

        async with LoopWatch() as watch:
            request = request_on(watch)
            await request.drive(handle())

    thread = threading.Thread(target=lambda: run(other))
    thread.start()
    ready.wait()
    run(main)
    there["loop"].call_soon_threadsafe(there["end"].set)
    thread.join()
    assert booked["loop_cpu"] == pytest.approx(0, abs=0.005)
    assert booked["thread_wait"] > SECONDS / 2  # all of it, but that the step that submits it goes on meanwhile
    assert sum(booked.values()) >= SECONDS


def test_who_calls_a_loop_in_a_context_of_its_own_is_left_it(run):
    variable = contextvars.ContextVar("variable", default="nobody's")
    seen = {}

    async def main():
        loop = asyncio.get_running_loop()

        def note(name):
            seen[name] = variable.get()

        def work():
            variable.set("the thread's")
            context = contextvars.copy_context()
            context.run(variable.set, "its own")
            loop.call_soon_threadsafe(note, "own", context=context)
            loop.call_soon_threadsafe(note, "thread")

        async with LoopWatch() as watch:
            await request_on(watch).drive(asyncio.to_thread(work))
            await settle()

    run(main)
    assert seen == {"own": "its own", "thread": "the thread's"}


def test_work_that_waits_for_its_own_pool_is_told(run, caplog):
    caplog.set_level("WARNING", "loopwatch")
    heard = []

    async def main():
        async with LoopWatch(Config(pool_stall_seconds=0.3)) as watch:
            watch.on_pool_stall(heard.append)
            limiter = anyio.CapacityLimiter(2)
            watch.name_pool(limiter, "nested")

            def outer():
                anyio.from_thread.run(inner)

            async def inner():
                with anyio.move_on_after(2):
                    await anyio.to_thread.run_sync(nap, 0, limiter=limiter)

            await asyncio.gather(*(anyio.to_thread.run_sync(outer, limiter=limiter) for _ in range(2)))
        return watch

    watch = run(main)
    blocking_until(lambda: heard, "the listener")
    (stall,) = watch.pool_stalls
    assert heard == [stall]
    assert (stall.pool, stall.limit, stall.queued, stall.threads, stall.waiting) == ("nested", 2, 2, 2, 2)
    assert 0.3 <= stall.duration < 2
    assert all("outer" in " ".join(stack) for stack in stall.stacks)
    assert "of its own" in stall.remedy
    (record,) = [record for record in caplog.records if "nothing has ended" in record.message]
    assert "anyio.from_thread.run" in record.message
    assert record.pool_name == "nested"


@pytest.mark.blocks
@pytest.mark.parametrize("kind", ["limiter", "executor"])
def test_a_function_written_in_c_that_fills_a_pool_is_named_and_waits_for_no_other_work(run, keep, kind):
    async def main():
        async with LoopWatch(Config(pool_stall_seconds=0.3)) as watch:
            limiter, executor = anyio.CapacityLimiter(2), keep(ThreadPoolExecutor(2))
            told = asyncio.Event()
            watch.on_pool_stall(lambda _: loop.call_soon_threadsafe(told.set))
            loop, lock = asyncio.get_running_loop(), threading.Lock()

            def wait():
                if kind == "limiter":
                    return anyio.to_thread.run_sync(lock.acquire, limiter=limiter)
                return loop.run_in_executor(executor, functools.partial(lock.acquire))

            lock.acquire()
            waiting = asyncio.gather(*(wait() for _ in range(3)))
            await told.wait()
            for _ in range(3):
                lock.release()
                await asyncio.sleep(0.05)
            await waiting
        return watch

    (stall,) = run(main).pool_stalls
    assert (stall.threads, stall.waiting) == (2, 0)
    assert [(call.rpartition(".")[2], count) for call, count in stall.calls] == [("acquire", 2)]
    assert "set a timeout" in stall.remedy


def test_a_busy_pool_in_which_work_ends_is_not_stuck(run):
    async def main():
        async with LoopWatch(Config(pool_stall_seconds=0.3)) as watch:
            limiter = anyio.CapacityLimiter(1)
            await asyncio.gather(*(anyio.to_thread.run_sync(nap, limiter=limiter) for _ in range(15)))
        return watch

    assert run(main).pool_stalls == ()


def test_advice_has_a_size_and_a_reason(run):
    async def main():
        async with LoopWatch() as watch:
            await asyncio.gather(*(anyio.to_thread.run_sync(nap) for _ in range(120)))
            return watch.advice()

    (advice,) = run(main)
    assert isinstance(advice, loopwatch.Advice)
    assert (advice.pool, advice.limit) == ("anyio", 40)
    assert advice.suggested > 40
    assert f"raise to about {advice.suggested}, or make the route async" in str(advice)


@pytest.mark.blocks
def test_a_failure_while_pools_are_judged_does_not_end_the_watch_over_the_loop(run, monkeypatch):
    async def main():
        async with LoopWatch() as watch:

            def fail(*_):
                raise OSError("no pools")

            monkeypatch.setattr(watch._threads.pools, "stuck", fail)
            await until(watch.failures.read, "the failure")
            loopwatch.testing.block_loop(0.2)
            await until(lambda: watch.stalls, "the stall")
            return watch.failures.read()

    assert run(main).keys() == {"pools"}
