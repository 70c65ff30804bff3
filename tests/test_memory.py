"""Requests leave nothing behind."""

from __future__ import annotations

import asyncio
import gc
import itertools
import threading
import tracemalloc

import pytest
from fastapi import FastAPI

import loopwatch
from tests.requests import scope
from tests.serving import LOOPS
from tests.waiting import until

FEWEST = 600
"""After so many requests of each kind nothing is made for the first time any more."""


async def receive():
    return {"type": "http.request", "body": b"", "more_body": False}


async def send(message):
    pass


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
