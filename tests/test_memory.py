"""Requests leave nothing behind."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import itertools
import sys
import threading
import tracemalloc

import pytest
from fastapi import FastAPI

import loopwatch
from tests.requests import scope
from tests.serving import LOOPS
from tests.waiting import until

pytestmark = pytest.mark.quick_on_asyncio

SESSION = {"type": "websocket", "path": "/", "headers": [], "query_string": b""}

FEWEST = 600
"""After so many requests of each kind nothing is made for the first time any more."""


async def receive():
    return {"type": "http.request", "body": b"", "more_body": False}


async def send(message):
    pass


@pytest.mark.slow
def test_a_session_forgets_the_work_that_each_message_had_done(run):
    async def main():
        messages = asyncio.Queue()
        grown = []

        async def app(scope, receive, send):
            await receive()
            await send({"type": "websocket.accept"})
            while (await receive())["type"] == "websocket.receive":
                asyncio.get_running_loop().run_in_executor(executor, int)
                await send({"type": "websocket.send", "text": ""})

        measured = loopwatch.LoopWatchMiddleware(app, loopwatch.Config(stall_seconds=60))
        await messages.put({"type": "websocket.connect"})
        session = asyncio.ensure_future(measured(SESSION, messages.get, send))
        for number in range(1, 601):
            await messages.put({"type": "websocket.receive", "text": ""})
            await until(messages.empty, "the message to be taken")
            if number % 300 == 0:
                await asyncio.wrap_future(executor.submit(int))  # all work before it is done
                await asyncio.sleep(0.01)
                grown.append(sys.getallocatedblocks())
        await messages.put({"type": "websocket.disconnect"})
        await session
        return grown[1] - grown[0]

    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        assert run(main) < 200  # without that, each of the 300 pieces of work in between leaves several


LONG = [pytest.param(kind, 1500, marks=pytest.mark.slow) for kind in LOOPS]


@pytest.mark.parametrize(("loop_kind", "count"), [("asyncio", 700), *LONG])
def test_memory_is_flat_after_a_warm_up(run, count):
    app = FastAPI()

    @app.get("/")
    async def root():
        await asyncio.create_task(asyncio.sleep(0))
        await asyncio.sleep(0.0001)

    @app.get("/thread")
    def in_a_thread():
        pass

    @app.get("/timers")
    async def leaves_timers():
        async with asyncio.timeout(5):
            await asyncio.create_task(asyncio.sleep(0))
        asyncio.get_running_loop().call_later(0.001, gc.isenabled)

    # Collections take long here, and what is seen of a stall is remembered, though no more than so much.
    watch = loopwatch.install(app, loopwatch.Config(stall_seconds=60))

    async def requests(count):
        for number in range(count):
            path = {0: "/thread", 5: "/timers"}.get(number % 10, "/")
            await app({**scope(path), "headers": [], "query_string": b"", "root_path": ""}, receive, send)
        await asyncio.sleep(0.02)  # so that no timer is left, which remembers its request
        gc.collect()

    async def main():
        await requests(FEWEST)
        tracemalloc.start()
        sizes = [tracemalloc.get_traced_memory()[0]]
        for _ in range(2):
            await requests(count)
            sizes.append(tracemalloc.get_traced_memory()[0])
        watch.stop()
        # A thread that allocates without the GIL, as in os.getcwd, can crash while this stops: CPython gh-128679.
        await until(lambda: not any(t.name.startswith("loopwatch") for t in threading.enumerate()), "the threads")
        tracemalloc.stop()
        return [later - sooner for sooner, later in itertools.pairwise(sizes)]

    # A leak of one small object for each request would be 56 bytes or more, each time; what is made once is not.
    assert min(run(main)) / count < 33
