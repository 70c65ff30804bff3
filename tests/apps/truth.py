"""An app whose time is known: every route notes how long it was in which state, by its own clocks."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pathlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, HTTPException, WebSocket
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

import loopwatch
from loopwatch.testing import block_loop, burn_cpu

logging.basicConfig(level=logging.INFO)
app = FastAPI()
watch = loopwatch.install(app)
pool = ThreadPoolExecutor(1)
SCHEDSTAT = pathlib.Path("/proc/thread-self/schedstat")


class Known:
    """What the app knows of its own time: seconds per state, and how many requests it still works for."""

    def __init__(self):
        self.seconds = {}
        self.threads = set()
        self.unfinished = 0
        self.finished = asyncio.Condition()

    def add(self, **seconds):
        """Note how long a request was in a state, and in which thread; no time at all is the rest."""
        self.threads.add(threading.get_native_id())
        for state, duration in seconds.items():
            self.seconds[state] = self.seconds.get(state, 0.0) + duration

    @contextlib.asynccontextmanager
    async def working(self):
        self.unfinished += 1
        try:
            yield
        finally:
            async with self.finished:
                self.unfinished -= 1
                self.finished.notify_all()


known = Known()


def withheld_from_this_thread():
    """Return for how many seconds this thread was ready to run and got no CPU."""
    with contextlib.suppress(OSError):  # not on Linux
        return int(SCHEDSTAT.read_text().split()[1]) / 1e9
    return 0.0


def burn_known(where, cpu):
    """Compute for ``cpu`` seconds; what passed beyond, the machine withheld. Return what passed in all."""
    before = withheld_from_this_thread()
    wall = burn_cpu(cpu)
    waits = "loop_blocked" if where == "loop" else "thread_wait"
    known.add(**{f"{where}_cpu": cpu, waits: wall - cpu, "withheld": withheld_from_this_thread() - before})
    return wall


async def sleep(seconds):
    started = time.perf_counter()
    await asyncio.sleep(seconds)
    known.add(await_=time.perf_counter() - started)


def work_in_thread(wait=0.08, cpu=0.04):
    known.add(thread_wait=block_loop(wait))
    burn_known("thread", cpu)


@app.get("/known")
async def what_is_known():
    """Wait for the end of all work; return what is known since this was asked last, and whose work it was."""
    async with known.finished:
        await known.finished.wait_for(lambda: not known.unfinished)
    seconds, known.seconds = known.seconds, {}
    threads, known.threads = known.threads, set()
    return {"seconds": seconds, "threads": threads}


@app.get("/ready")
async def ready():
    return {}


@app.get("/block")
async def block(seconds: float = 0.12):
    blocked = block_loop(seconds)
    known.add(loop_blocked=blocked)
    return blocked


@app.get("/burn")
async def burn(seconds: float = 0.12):
    return burn_known("loop", seconds)


@app.get("/wait")
async def wait(seconds: float = 0.12):
    await sleep(seconds)


@app.get("/children/{how}")
async def children(how: str):
    """Block 3 x 40 ms, each in a child task."""

    async def child():
        known.add(loop_blocked=block_loop(0.04))

    if how == "gather":
        await asyncio.gather(child(), child(), child())
    elif how == "group":
        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(child())
    else:
        for task in [asyncio.create_task(child()) for _ in range(3)]:
            await task


@app.get("/def")
def in_a_thread():
    work_in_thread()


@app.get("/to-thread")
async def to_thread():
    await asyncio.to_thread(work_in_thread)


@app.get("/executor")
async def in_an_executor():
    await asyncio.get_running_loop().run_in_executor(pool, work_in_thread)


@app.get("/pool-threadpool")
async def in_starlettes_threadpool():
    await run_in_threadpool(work_in_thread)


def sync_dependency():
    work_in_thread()


@app.get("/dependency", dependencies=[Depends(sync_dependency)])
async def dependency():
    pass


@app.get("/mix")
async def mix():
    """Do all of it, one after the other: 40 ms each."""
    known.add(loop_blocked=block_loop(0.04))
    burn_known("loop", 0.04)
    await sleep(0.04)
    await asyncio.to_thread(work_in_thread, 0.04, 0.04)


@app.get("/overlap")
async def overlap():
    """Wait 100 ms in each of two threads at once, and for a timer of 150 ms meanwhile."""
    started = time.perf_counter()
    ends = []

    def wait_in_thread():
        known.add()
        block_loop(0.1)
        ends.append(time.perf_counter())

    await asyncio.gather(asyncio.to_thread(wait_in_thread), asyncio.to_thread(wait_in_thread), asyncio.sleep(0.15))
    known.add(thread_wait=max(ends) - started, await_=time.perf_counter() - max(ends))


@app.get("/stream")
async def stream():
    async def chunks():
        for _ in range(3):
            yield b"x"
            known.add(loop_blocked=block_loop(0.04))
            await sleep(0.02)

    return StreamingResponse(chunks())


@app.get("/raises")
async def raises():
    known.add(loop_blocked=block_loop(0.05))
    raise HTTPException(418)


@app.get("/crashes")
async def crashes():
    known.add(loop_blocked=block_loop(0.05))
    raise ValueError("on purpose")


@app.get("/background")
async def background(tasks: BackgroundTasks):
    async def later():
        known.add(loop_blocked=block_loop(0.05))
        await sleep(0.05)

    tasks.add_task(later)
    tasks.add_task(work_in_thread)


orphans = set()


@app.get("/orphan")
async def orphan():
    async def outlives():
        async with known.working():
            await sleep(0.05)
            known.add(loop_blocked=block_loop(0.05))

    orphans.add(asyncio.create_task(outlives()))


async def entered():
    return time.perf_counter()


@app.get("/queue")
def queue(since: Annotated[float, Depends(entered)]):
    """Return how long this had to wait for a thread, and then waited in it."""
    return time.perf_counter() - since, block_loop(0.4)


@app.websocket("/socket")
async def socket(session: WebSocket):
    await session.accept()
    async for _ in session.iter_text():
        blocked = block_loop(0.05)
        known.add(loop_blocked=blocked)
        await session.send_text(str(blocked))


class ServedCPU:
    """Note what a request, alone on its loop, took of its CPU, frameworks and all, before its end and after."""

    def __init__(self, inner):
        self.inner = inner

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http" or scope["path"] == "/known":
            await self.inner(scope, receive, send)
            return
        started = ended = time.thread_time()

        async def send_and_note(message):
            nonlocal ended
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                ended = time.thread_time()
                known.add(served_cpu=ended - started)

        async with known.working():
            try:
                await self.inner(scope, receive, send_and_note)
            except ValueError:  # whoever answers it stands further out
                known.add(served_cpu=time.thread_time() - started)
                raise
            known.add(background_cpu=time.thread_time() - ended)


sub = FastAPI()


@sub.get("/items/{item}")
async def item(item: str):
    return item


router = APIRouter(prefix="/router")


@router.get("/things/{thing}")
async def thing(thing: str):
    return thing


app.mount("/sub/{tenant}", sub)
app.include_router(router, prefix="/v1")
app.include_router(router, prefix="/v2")

if "TRUTH_MIDDLEWARE" in os.environ:

    @app.middleware("http")
    async def first(request, call_next):
        return await call_next(request)

    @app.middleware("http")
    async def second(request, call_next):
        return await call_next(request)


app.add_middleware(ServedCPU)  # the last that is added is the outermost
