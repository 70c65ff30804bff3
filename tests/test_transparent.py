"""An app does the same with loopwatch as without: each scenario runs both ways, and what it saw is compared."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import inspect
import pathlib
import re
import sys
import traceback
import types
import weakref

import anyio
import pytest
from anyio._backends._asyncio import AsyncIOBackend
from fastapi import BackgroundTasks, FastAPI

import loopwatch
from loopwatch.hot import COMPILED
from tests.requests import scope

setting = contextvars.ContextVar("setting", default="unset")


async def receive():
    return {"type": "http.request", "body": b"", "more_body": False}


async def call(app, path="/scenario"):
    sent = []

    async def send(message):
        sent.append(message)

    await app({**scope(path), "headers": [], "query_string": b"", "root_path": ""}, receive, send)
    return sent[0]["status"] if sent else None


async def variables(seen, app):
    """Set a variable in each place where an app may; see it from all others."""

    @app.middleware("http")
    async def sets(request, call_next):
        setting.set("middleware")
        response = await call_next(request)
        seen.append(("after", setting.get()))
        return response

    def in_a_thread():
        seen.append(("thread", setting.get()))
        setting.set("thread")

    async def child():
        seen.append(("child", setting.get()))
        setting.set("child")

    @app.get("/scenario")
    async def handler(tasks: BackgroundTasks):
        seen.append(("handler", setting.get()))
        setting.set("handler")
        await asyncio.create_task(child())
        await asyncio.to_thread(in_a_thread)
        await anyio.to_thread.run_sync(in_a_thread)
        await asyncio.create_task(child(), context=contextvars.Context())
        seen.append(("handler at last", setting.get()))
        tasks.add_task(child)
        tasks.add_task(in_a_thread)

    seen.append(await call(app))
    seen.append(("outside", setting.get()))


async def timeouts(seen, app):
    @app.get("/scenario")
    async def handler():
        try:
            async with asyncio.timeout(0.01):
                await asyncio.sleep(5)
        except TimeoutError:
            seen.append(("timeout", asyncio.current_task().cancelling()))
        async with asyncio.timeout(5) as unused:
            await asyncio.sleep(0)
        seen.append(unused.expired())
        try:
            await asyncio.wait_for(asyncio.sleep(5), 0.01)
        except TimeoutError as error:
            seen.append((type(error.__cause__), asyncio.current_task().cancelling()))

    seen.append(await call(app))


async def cancel_scopes(seen, app):
    @app.get("/scenario")
    async def handler():
        with anyio.move_on_after(0.01) as outer:
            await anyio.sleep(5)
        seen.append(outer.cancelled_caught)
        with anyio.CancelScope() as ours:
            async with anyio.create_task_group() as group:
                group.start_soon(anyio.sleep, 5)
                await anyio.sleep(0)
                ours.cancel()
        seen.append((ours.cancelled_caught, asyncio.current_task().cancelling()))
        with anyio.move_on_after(0.01):
            try:
                await anyio.sleep(5)
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(0.01)
                    seen.append("shielded")
        try:
            with anyio.fail_after(0.01):
                await anyio.to_thread.run_sync(lambda: None)
                await anyio.sleep(5)
        except TimeoutError:
            seen.append("failed after")

    seen.append(await call(app))


async def cancellations(seen, app):
    @app.get("/scenario")
    async def handler():
        try:
            await asyncio.sleep(5)
        except asyncio.CancelledError as error:
            seen.append(("cancelled", error.args, asyncio.current_task().cancelling()))
            raise

    @app.get("/survives")
    async def survives():
        try:
            await asyncio.sleep(5)
        except asyncio.CancelledError:
            seen.append(asyncio.current_task().uncancel())
        await asyncio.sleep(0)

    for path in ("/scenario", "/survives"):
        task = asyncio.create_task(call(app, path))
        await asyncio.sleep(0.01)
        task.cancel("enough")
        try:
            seen.append(await task)
        except asyncio.CancelledError as error:
            seen.append(("raised", error.args, task.cancelled()))


PACKAGE = str(pathlib.Path(loopwatch.__file__).parent)


def app_frames(error):
    """Return the functions in a traceback, without those of loopwatch itself."""
    frames = (frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__))
    not_ours = (code for code in frames if not code.co_filename.startswith((PACKAGE, "loopwatch")))
    return [code.co_name for code in not_ours]


async def tracebacks(seen, app):
    async def child():
        raise KeyError("child")

    @app.get("/scenario")
    async def handler():
        task = asyncio.create_task(child())
        try:
            await task
        except KeyError as error:
            seen.append((app_frames(error), task.get_coro().__qualname__))
            raise ValueError("handler") from error

    try:
        await call(app)
    except ValueError as error:
        seen.append((app_frames(error), repr(error.__cause__)))


async def thrown_in(seen, app):
    """Tell where an exception comes from that is thrown into the app, and what hangs on to the next one."""

    async def raw(scope, receive, send):
        try:
            await asyncio.sleep(5)
        except asyncio.CancelledError as error:
            frames = [frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)]
            seen.append((frames[0], frames[-1]))
        seen.append(repr(sys.exc_info()[1]))
        raise ValueError("after all")

    app.mount("/scenario", raw)
    task = asyncio.create_task(call(app, "/scenario/"))
    await asyncio.sleep(0.01)
    task.cancel()
    try:
        await task
    except ValueError as error:
        seen.append((app_frames(error), repr(error.__context__)))


async def stacks(seen, app):
    async def child():
        await asyncio.sleep(5)

    @app.get("/scenario")
    async def handler():
        task = asyncio.create_task(child())
        await asyncio.sleep(0)
        seen.append([frame.f_code.co_name for frame in task.get_stack()])
        coroutine = task.get_coro()
        seen.append((coroutine.__name__, coroutine.cr_frame.f_code.co_name, asyncio.iscoroutine(coroutine)))
        seen.append("child" in repr(task))
        task.cancel()

    seen.append(await call(app))


async def eager_tasks(seen, app):
    loop = asyncio.get_running_loop()

    async def child():
        seen.append("child")
        await asyncio.sleep(0)
        return "late"

    async def at_once():
        return "at once"

    @app.get("/scenario")
    async def handler():
        task, done = asyncio.create_task(child()), asyncio.create_task(at_once())
        seen.append(("handler", done.done()))
        seen.append((await task, await done))

    loop.set_task_factory(asyncio.eager_task_factory)
    seen.append(await call(app))


async def names_of_tasks(seen, app):
    """Tell the numbers of tasks that have no name, from the first on, and names that they were given."""

    async def child():
        return asyncio.current_task().get_name()

    @app.get("/scenario")
    async def handler():
        first = int((await asyncio.create_task(child())).removeprefix("Task-"))
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(child()), group.create_task(child(), name="named")]
        other = await asyncio.get_running_loop().create_task(child(), context=contextvars.Context())
        names = [task.result() for task in tasks] + [other, *await asyncio.gather(child())]
        seen.append([name if name == "named" else int(name.removeprefix("Task-")) > first for name in names])

    seen.append(await call(app))


async def origins(seen, app):
    """Tell where a task and a timer were made, as debug mode has it: the innermost of the frames that it keeps."""

    async def child():
        pass

    def told(made):
        return re.search(r"created at (\S+:\d+)", repr(made)).group(1)

    @app.get("/scenario")
    async def handler():
        loop = asyncio.get_running_loop()
        loop.set_debug(True)
        tasks = [loop.create_task(child()), asyncio.create_task(child()), loop.create_task(child(), name="named")]
        timers = [loop.call_later(0.01, print), loop.call_at(loop.time(), int), loop.call_soon_threadsafe(int)]
        loop.set_debug(False)
        seen.append([told(made) for made in tasks])
        if isinstance(loop, asyncio.BaseEventLoop) or COMPILED:  # uvloop keeps the frames of a handle to itself
            seen.append([told(made) for made in timers])
        timers[0].cancel()
        await asyncio.wait(tasks)

    seen.append(await call(app))


def looks(one):
    """Return what tools look at, of a function of a loop or of its policy."""
    return one.__name__, inspect.iscoroutinefunction(one), list(inspect.signature(one).parameters)


async def functions(seen, app):
    @app.get("/scenario")
    async def handler():
        await anyio.to_thread.run_sync(int)
        loop = asyncio.get_running_loop()
        timers, others = "call_at call_later", "call_soon call_soon_threadsafe create_task close"
        executors = "run_in_executor set_default_executor"
        seen.extend(looks(getattr(loop, name)) for name in f"{timers} {others} {executors}".split())
        seen.append(looks(AsyncIOBackend.run_sync_in_worker_thread))
        if hasattr(loop, "_selector"):
            seen.append(looks(loop._selector.select))

    seen.append(await call(app))


async def sends(seen, app):
    """Tell what the server's `send` and what it returns look like to an app."""

    async def raw(scope, receive, send):
        seen.append((*looks(send), asyncio.iscoroutinefunction(send), functools.wraps(send)(raw).__qualname__))
        start, body = {"type": "http.response.start", "status": 200, "headers": []}, {"type": "http.response.body"}
        for message in (start, body):
            sent = send(message)
            seen.append(
                (asyncio.iscoroutine(sent), sent.__qualname__, sent.cr_frame.f_code.co_name, sent.cr_running)
            )
            await sent

    app.mount("/scenario", raw)
    seen.append(await call(app, "/scenario/"))


SCENARIOS = [
    variables, timeouts, cancel_scopes, cancellations, tracebacks, thrown_in, stacks, eager_tasks, names_of_tasks,
    origins, functions, sends,
]  # fmt: skip


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_an_app_sees_the_same_with_and_without(run, scenario, request):
    if scenario is eager_tasks:
        request.getfixturevalue("eager")
    seen = {"bare": [], "watched": []}
    watches = []

    def run_once(kind):
        app = FastAPI()
        if kind == "watched":
            watches.append(loopwatch.install(app))

        async def main():
            await scenario(seen[kind], app)
            for watch in watches:
                watch.stop()

        contextvars.Context().run(run, main)

    run_once("bare")
    run_once("watched")
    assert seen["bare"]
    assert seen["watched"] == seen["bare"]
    assert sum(route.requests for route in watches[0].snapshot().routes) >= 1


class Held:
    """Something of the app's that can be watched going away."""


@types.coroutine
def suspend():
    yield


@pytest.mark.parametrize("wrap", [lambda app: app, loopwatch.LoopWatchMiddleware], ids=["bare", "watched"])
def test_what_an_app_holds_goes_away_with_the_exception_that_was_thrown_into_it(run, wrap):
    held = []

    async def app(scope, receive, send):
        mine = Held()
        held.append(weakref.ref(mine))
        await suspend()

    async def main():
        wrapped = wrap(app)
        steps = call(wrapped)
        steps.send(None)
        gc.disable()
        try:
            with pytest.raises(KeyError):
                steps.throw(KeyError("thrown in"))
            assert held[0]() is None
        finally:
            gc.enable()
            if wrapped is not app:
                wrapped.watch.stop()

    run(main)
