"""What few apps do, and few servers, works as without loopwatch: each oddity runs both ways, and is compared."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import sys
import types
from concurrent.futures import ThreadPoolExecutor

import pytest
from starlette.endpoints import HTTPEndpoint
from starlette.responses import PlainTextResponse

import loopwatch
from loopwatch.hot import COMPILED
from loopwatch.testing import burn_cpu
from tests.requests import scope

TIMES = 3
"""The first request takes another way in than those after it."""

START, BODY = {"type": "http.response.start", "status": 200, "headers": []}, {"type": "http.response.body"}
FULL = {**scope(), "headers": [], "query_string": b"", "root_path": ""}


async def receive():
    return {"type": "http.request", "body": b"", "more_body": False}


async def answer(scope, receive, send):
    await send(START)
    await send(BODY)


class Endpoint(HTTPEndpoint):
    """An app that is a class, and whose instances can be awaited and have ``send``."""

    async def get(self, request):
        return PlainTextResponse("")


class Names(ThreadPoolExecutor):
    """An executor that asks for the names of what it runs."""

    def submit(self, function, *arguments):
        self.name = function.__name__
        return super().submit(function, *arguments)


async def an_app_returns_a_value(seen, wrap, send):
    async def at_once(scope, receive, send):
        await answer(scope, receive, send)
        return "at once"

    async def later(scope, receive, send):
        await answer(scope, receive, send)
        await asyncio.sleep(0)
        return ["later"]

    async def serve(app):
        seen.append(await asyncio.create_task(app(FULL, receive, send)))

    for app in map(wrap, (at_once, later)):
        for _ in range(TIMES):
            await serve(app)


async def a_server_returns_a_value(seen, wrap, _send):
    async def app(scope, receive, send):
        seen.append((await send(START), await send(BODY)))

    async def returns(message):
        return message["type"]

    app = wrap(app)
    for _ in range(TIMES):
        await app(FULL, receive, returns)


async def a_child_returns_a_value(seen, wrap, send):
    async def child(value):
        return value

    async def app(scope, receive, send):
        seen.append(await asyncio.gather(child(None), child(StopAsyncIteration), child([5])))
        await answer(scope, receive, send)

    await wrap(app)(FULL, receive, send)


async def an_app_is_an_endpoint(seen, wrap, send):
    app = wrap(Endpoint)
    for _ in range(TIMES):
        await app(FULL, receive, send)


async def an_app_raises_before_it_is_awaited(seen, wrap, send):
    def app(scope, receive, send):
        seen.append("called")
        raise LookupError("no app")

    app = wrap(app)
    for kind in ("http", "http", "websocket"):
        try:
            await app({**FULL, "type": kind}, receive, send)
        except LookupError as error:
            seen.append((error.args, error.__context__))


async def a_task_sends_when_the_app_has_ended(seen, wrap, send):
    may_send, feeders = asyncio.Event(), []

    async def feed(send):
        await may_send.wait()
        await send({**BODY, "body": b"late"})

    async def app(scope, receive, send):
        feeders.append(asyncio.create_task(feed(send)))
        await answer(scope, receive, send)

    app = wrap(app)
    for _ in range(TIMES):
        await app(FULL, receive, send)
    may_send.set()
    await asyncio.gather(*feeders)


async def send_looks_like_what_it_is(seen, wrap, send):
    async def app(scope, receive, send):
        seen.append((callable(send), asyncio.iscoroutinefunction(send)))
        if sys.version_info >= (3, 12):  # inspect was not told by a mark before
            seen.append(inspect.iscoroutinefunction(send))

    app = wrap(app)
    for kind in ("http", "http", "websocket"):
        await app({**FULL, "type": kind}, receive, send)


async def send_has_the_names_of_the_servers(seen, wrap, send):
    async def app(scope, receive, send):
        seen.append((send.__name__, send.__qualname__) if COMPILED else "a method")
        seen.append(hasattr(send, "cr_frame"))

    await wrap(app)(FULL, receive, send)


async def an_awaitable_raises_when_it_is_awaited(seen, wrap, send):
    class Raises:
        def __await__(self):
            raise LookupError("not now")

    class Sends:
        def __await__(self):
            return answer(None, None, send).__await__()

    for kind in ("http", "http", "websocket"):
        for awaitable in (Raises, Sends, object):
            app = wrap(lambda *_, awaitable=awaitable: awaitable())
            try:
                seen.append(await app({**FULL, "type": kind}, receive, send))
            except (LookupError, TypeError) as error:
                seen.append(repr(error) if awaitable is Raises else type(error))


async def a_status_is_none_that_there_is(seen, wrap, send):
    async def app(scope, receive, send):
        kind = "websocket.http.response" if scope["type"] == "websocket" else "http.response"
        await send({"type": f"{kind}.start", "status": scope["status"], "headers": []})
        await send({"type": f"{kind}.body"})

    app = wrap(app)
    for kind in ("http", "websocket"):
        for status in (10**30, -(10**30), 0, -1, 99, 600, True, 200.5, "200"):
            await app({**FULL, "type": kind, "status": status}, receive, send)


async def executors_are_used_by_name(seen, wrap, send):
    def work():
        return "done"

    async def app(scope, receive, send):
        loop = asyncio.get_running_loop()
        with Names(1) as names:
            seen.append(await loop.run_in_executor(executor=None, func=work))
            seen.append((await loop.run_in_executor(names, work), names.name))
            loop.set_debug(True)
            for mistake in (answer, "no function"):
                try:
                    await loop.run_in_executor(names, mistake)
                except Exception as error:
                    seen.append(repr(error))
            loop.set_debug(False)
        await answer(scope, receive, send)

    await wrap(app)(FULL, receive, send)


async def a_scope_lacks_what_it_should_have(seen, wrap, send):
    app = wrap(answer)
    for lacking in ("path", "method", "headers", "query_string", "root_path"):
        for _ in range(TIMES):
            await app({key: value for key, value in FULL.items() if key != lacking}, receive, send)
        await app({**FULL, lacking: None}, receive, send)


async def a_refusal_has_no_status(seen, wrap, send):
    async def app(scope, receive, send):
        await send({"type": "websocket.http.response.start", "status": None, "headers": []})

    await wrap(app)({**FULL, "type": "websocket"}, receive, send)


ODDITIES = [
    an_app_returns_a_value, a_server_returns_a_value, a_child_returns_a_value, an_app_is_an_endpoint,
    an_app_raises_before_it_is_awaited, a_task_sends_when_the_app_has_ended, send_looks_like_what_it_is,
    executors_are_used_by_name, a_scope_lacks_what_it_should_have, a_refusal_has_no_status,
    send_has_the_names_of_the_servers, an_awaitable_raises_when_it_is_awaited, a_status_is_none_that_there_is,
]  # fmt: skip


@pytest.mark.blocks
@pytest.mark.parametrize("oddity", ODDITIES, ids=lambda oddity: oddity.__name__)
def test_an_oddity_is_the_same_with_and_without(run, oddity):
    seen = {"bare": [], "watched": []}
    watches = []

    def watched(app):
        app = loopwatch.LoopWatchMiddleware(app)
        watches.append(app.watch)
        return app

    def run_once(kind, wrap):
        async def send(message):
            seen[kind].append(message)

        async def main():
            await oddity(seen[kind], wrap, send)
            for watch in watches:
                watch.stop()

        contextvars.Context().run(run, main)

    run_once("bare", lambda app: app)
    run_once("watched", watched)
    assert seen["bare"]
    assert seen["watched"] == seen["bare"]
    for watch in watches:
        assert watch.snapshot().active == 0
        assert watch.failures.read() == {}


def test_a_request_whose_app_raises_while_it_is_closed_has_ended(run):
    @types.coroutine
    def suspend():
        yield

    async def app(scope, receive, send):
        try:
            await suspend()
        finally:
            raise KeyError("while it is closed")

    async def main():
        wrapped = loopwatch.LoopWatchMiddleware(app)
        for _ in range(TIMES):
            steps = wrapped(FULL, receive, None)
            steps.send(None)
            with pytest.raises(KeyError):
                steps.close()
        wrapped.watch.stop()
        return wrapped.watch.snapshot()

    snapshot = run(main)
    assert snapshot.active == 0
    assert sum(route.requests for route in snapshot.routes) == TIMES


def test_two_tasks_that_receive_from_one_session_leave_it_open_once(run):
    messages = [{"type": "websocket.connect"}, *[{"type": "websocket.receive", "text": "x"}] * 4]

    async def take():
        await asyncio.sleep(0)
        return messages.pop(0)

    async def send(message):
        pass

    async def app(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        await asyncio.gather(*(receive() for _ in range(4)))

    async def main():
        wrapped = loopwatch.LoopWatchMiddleware(app)
        await wrapped({**FULL, "type": "websocket"}, take, send)
        wrapped.watch.stop()
        return wrapped.watch.snapshot().active

    assert run(main) == 0


@pytest.mark.blocks
def test_states_sum_to_the_duration_though_another_task_sends_the_response(run):
    answering = []

    async def app(scope, receive, send):
        done = asyncio.Event()
        answering.append((send, done))
        await done.wait()

    async def worker():
        """Answer what others have taken in, as a batch does."""
        await asyncio.sleep(0.1)
        while answering:
            send, done = answering.pop()
            burn_cpu(0.01)
            await answer(FULL, receive, send)
            done.set()

    async def send(message):
        pass

    async def main():
        wrapped = loopwatch.LoopWatchMiddleware(app)
        wrapped.watch.start()
        task = asyncio.create_task(worker())
        await asyncio.gather(*(wrapped(FULL, receive, send) for _ in range(TIMES)))
        await task
        wrapped.watch.stop()
        return wrapped.watch.snapshot()

    (route,) = run(main).routes
    assert route.durations["2xx"].sum >= 0.1 * TIMES
    assert route.seconds() == pytest.approx(route.durations["2xx"].sum, rel=1e-6)


def test_states_sum_to_the_duration_of_a_request_that_raises(run):
    async def app(scope, receive, send):
        raise ValueError("nothing to say")

    async def main():
        wrapped = loopwatch.LoopWatchMiddleware(app)
        for _ in range(100):
            with pytest.raises(ValueError, match="nothing to say"):
                await wrapped(FULL, receive, None)
        wrapped.watch.stop()
        return wrapped.watch.snapshot()

    (route,) = run(main).routes
    assert route.seconds() == pytest.approx(route.durations["5xx"].sum, rel=1e-6)


@pytest.mark.blocks
def test_who_has_called_an_app_is_not_on_its_behalf_any_more(run):
    """In a test, or in a server without a task for each request, the caller goes on in the same context."""

    async def idle():
        await asyncio.sleep(0.2)

    async def app(scope, receive, send):
        kept.append(asyncio.create_task(idle()))  # so the request is remembered
        await answer(scope, receive, send)

    async def own():
        burn_cpu(0.1)

    async def send(message):
        pass

    kept = []

    async def main():
        wrapped = loopwatch.LoopWatchMiddleware(app)
        await wrapped(FULL, receive, send)
        await asyncio.create_task(own())
        await asyncio.gather(*kept)
        wrapped.watch.stop()
        return wrapped.watch.snapshot()

    (route,) = run(main).routes
    assert route.times.get(("background", "loop_cpu"), 0.0) < 0.05
