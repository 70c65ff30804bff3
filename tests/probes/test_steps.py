"""Steps are booked in the right ledger, and nobody can tell that they are."""

from __future__ import annotations

import asyncio
import gc
import inspect
import sys
import threading
import time
import warnings

import anyio
import pytest

from loopwatch import LoopWatch
from loopwatch.hot import Child, Stage, current
from loopwatch.testing import block_loop
from tests.requests import request_on, times


@pytest.fixture
def adopted(run):
    """Run a coroutine function on behalf of a request; return its result and the request's times in seconds.

    Among them is the time in which the thread did not compute: it slept, or waited for a CPU.
    """

    def run_adopted(main, factory=None):
        async def driver():
            loop = asyncio.get_running_loop()
            loop.set_task_factory(factory)
            async with LoopWatch() as watch:
                request, booked = request_on(watch), {}

                async def work():
                    result = await main()
                    await asyncio.sleep(0)  # a new step: what came before it is booked
                    booked.update(times(request))
                    return result

                started, computed = time.perf_counter(), time.thread_time()
                result = await request.drive(work())
                booked["not computed"] = time.perf_counter() - started - (time.thread_time() - computed)
            assert loop.get_task_factory() is factory
            assert watch.snapshot().dropped == {}
            return result, booked

        return run(driver)

    return run_adopted


MARGIN_SECONDS = 0.002


def is_booked(truth, booked):
    """Compare the blocked time that was booked with what was slept: a step may also have waited for a CPU."""
    assert truth - MARGIN_SECONDS <= booked["loop_blocked"] <= booked["not computed"] + MARGIN_SECONDS


@pytest.mark.blocks
@pytest.mark.parametrize("how", ["create_task", "gather", "group", "anyio", "wait_for", "shield"])
def test_children_of_every_kind_are_booked(adopted, how):
    async def child():
        await asyncio.sleep(0)
        return block_loop(0.05)

    async def main():
        if how == "create_task":
            return await asyncio.create_task(child())
        if how == "gather":
            return (await asyncio.gather(child()))[0]
        if how == "wait_for":
            return await asyncio.wait_for(child(), 5)
        if how == "shield":
            return await asyncio.shield(child())
        if how == "anyio":
            truth = []

            async def note():
                truth.append(await child())

            async with anyio.create_task_group() as group:
                group.start_soon(note)
            return truth[0]
        async with asyncio.TaskGroup() as group:
            task = group.create_task(child())
        return task.result()

    is_booked(*adopted(main))


def custom_factory(loop, coroutine, **options):
    task = asyncio.Task(coroutine, loop=loop, **options)
    task.made_by = "custom"
    return task


FACTORIES = [None, custom_factory]
if sys.version_info >= (3, 12):
    FACTORIES.append(asyncio.eager_task_factory)


@pytest.mark.blocks
@pytest.mark.parametrize("factory", FACTORIES, ids=lambda f: getattr(f, "__name__", "none"))
def test_the_factory_that_was_there_goes_on_to_make_the_tasks(adopted, factory, request):
    if factory not in {None, custom_factory}:
        request.getfixturevalue("eager")

    async def child():
        before_suspension = block_loop(0.03)
        await asyncio.sleep(0.01)
        return before_suspension + block_loop(0.02)

    async def main():
        order = []

        async def note():
            order.append("child")

        task = asyncio.create_task(note(), name="named")
        order.append("parent")
        await task
        eager = order == ["child", "parent"]
        blocking = asyncio.create_task(child())
        return eager, getattr(task, "made_by", None), task.get_name(), await blocking

    (eager, made_by, name, truth), booked = adopted(main, factory)
    assert eager == (factory not in {None, custom_factory})
    assert made_by == ("custom" if factory is custom_factory else None)
    assert name == "named"
    booked["not computed"] -= 0.009  # the child sleeps without blocking, too
    is_booked(truth, booked)


def test_anyio_still_recognises_the_eager_factory(eager, adopted):
    async def main():
        order = []

        async def child():
            order.append("child")

        async with anyio.create_task_group() as group:
            group.start_soon(child)
            order.append("parent")
        return order

    order, _ = adopted(main, asyncio.eager_task_factory)
    assert order == ["parent", "child"]  # anyio's tasks are never eager


def test_tasks_that_no_request_creates_are_not_touched(run):
    async def main():
        async with LoopWatch():
            task = asyncio.create_task(asyncio.sleep(0))
            await task
            return type(task.get_coro())

    assert run(main) is not Child


def test_a_factory_that_the_app_sets_later_is_chained_to_when_asked_again(run):
    async def main():
        loop = asyncio.get_running_loop()
        async with LoopWatch() as watch:
            loop.set_task_factory(custom_factory)
            watch.start()
            current.set(request_on(watch))
            task = asyncio.create_task(asyncio.sleep(0))
            await task
            seen = type(task.get_coro()), task.made_by
        assert loop.get_task_factory() is custom_factory
        return seen

    assert run(main) == (Child, "custom")


def test_something_that_is_no_coroutine_gets_asyncios_own_error(adopted):
    async def main():
        with pytest.raises(TypeError, match="a coroutine was expected, got 5"):
            asyncio.create_task(5)

    adopted(main)


def test_a_measured_coroutine_looks_like_the_one_it_drives(adopted):
    async def child():
        await asyncio.sleep(0.01)

    async def main():
        task = asyncio.create_task(child())
        coroutine = task.get_coro()
        states = [inspect.getcoroutinestate(coroutine)]
        await asyncio.sleep(0)
        states.append(inspect.getcoroutinestate(coroutine))
        frames = task.get_stack()
        await task
        states.append(inspect.getcoroutinestate(coroutine))
        return states, coroutine.__qualname__, frames[0].f_code.co_name, repr(task)

    (states, name, frame, described), _ = adopted(main)
    assert states == ["CORO_CREATED", "CORO_SUSPENDED", "CORO_CLOSED"]
    assert name.endswith("child")
    assert frame == "child"
    assert "child()" in described


def test_exceptions_cancellations_and_results_pass_through_untouched(adopted):
    class OwnError(Exception):
        pass

    async def main():
        error = OwnError("mine")

        async def raises():
            raise error

        async def cancelled():
            try:
                await asyncio.sleep(10)
            except asyncio.CancelledError as cancellation:
                assert cancellation.args == ("enough",)
                raise

        with pytest.raises(OwnError) as caught:
            await asyncio.create_task(raises())
        assert caught.value is error
        task = asyncio.create_task(cancelled())
        await asyncio.sleep(0)
        task.cancel("enough")
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await asyncio.create_task(asyncio.sleep(10))
        return "result"

    assert adopted(main)[0] == "result"


def test_a_coroutine_that_is_never_run_warns_as_it_would_alone():
    async def forgotten():
        pass

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Child(forgotten(), request_on(Stage(None)))
        gc.collect()
    messages = [str(warning.message) for warning in caught if "forgotten" in str(warning.message)]
    assert ["never awaited" in message for message in messages] == [True]


@pytest.mark.contended
@pytest.mark.parametrize("seconds", [0.0001, 0.0004, 0.0006, 0.002])
def test_a_timer_may_be_as_short_as_it_likes(adopted, seconds):
    """Of a delay that it rounds to 0 ms uvloop makes none."""

    async def main():
        await asyncio.sleep(seconds)
        await asyncio.sleep(0.01)

    _, booked = adopted(main)
    assert booked["await"] >= 0.008


@pytest.mark.parametrize("is_expected", [True, False])
def test_steps_that_follow_each_other_let_a_watcher_have_the_gil_that_waits_for_it(is_expected):
    """Nothing else here lets go of the GIL: no poll, and no thread can demand it within a minute."""
    stage, seen = Stage(None), threading.Event()
    is_there, goes_on = threading.Event(), threading.Lock()

    def watch():
        is_there.set()
        goes_on.acquire()  # from here on it has no GIL, and needs it to go on
        seen.set()

    async def work():
        while True:
            await asyncio.sleep(0)

    watcher, steps = threading.Thread(target=watch), request_on(stage).drive(work())
    usual = sys.getswitchinterval()
    sys.setswitchinterval(60)
    goes_on.acquire()
    try:
        watcher.start()
        assert is_there.wait(30)
        if is_expected:
            stage.expect_watcher(time.perf_counter_ns() + 3_000_000)
        goes_on.release()  # which keeps the GIL
        end = time.monotonic() + (30 if is_expected else 0.1)
        while not seen.is_set() and time.monotonic() < end:
            steps.send(None)
        assert seen.is_set() == is_expected
    finally:
        sys.setswitchinterval(usual)
        watcher.join()
        steps.close()
