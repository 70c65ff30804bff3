"""Requests leave nothing behind."""

from __future__ import annotations

import asyncio
import gc
import threading
import tracemalloc

from fastapi import FastAPI

import loopwatch
from tests.requests import scope


async def receive():
    return {"type": "http.request", "body": b"", "more_body": False}


async def send(message):
    pass


def test_memory_is_flat_after_a_warm_up(run):
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

    watch = loopwatch.install(app)

    async def requests(count):
        for number in range(count):
            path = {0: "/thread", 5: "/timers"}.get(number % 10, "/")
            await app({**scope(path), "headers": [], "query_string": b"", "root_path": ""}, receive, send)
        gc.collect()

    async def main():
        await requests(1500)
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        await requests(3000)
        grown = tracemalloc.get_traced_memory()[0] - before
        watch.stop()
        # A thread that allocates without the GIL, as in os.getcwd, can crash while this stops: CPython gh-128679.
        while any(thread.name.startswith("loopwatch") for thread in threading.enumerate()):
            await asyncio.sleep(0.01)
        tracemalloc.stop()
        return grown

    # A leak of one small object for each request would be 170 kB or more.
    assert run(main) < 100_000
