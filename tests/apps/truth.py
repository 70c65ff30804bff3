"""An app whose time is known: every route tells how long it was in which state, by its own clocks."""

from __future__ import annotations

import asyncio
import logging
import os
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


told: dict[str, float] = {}


def tell(**seconds):
    """Note how long the request was in a state; whatever is not told is nothing."""
    for state, duration in seconds.items():
        told[state] = told.get(state, 0.0) + duration


def tell_burned(where, cpu):
    """Compute for ``cpu`` seconds; what it took beyond, the machine took from us. Return what it took in all."""
    wall = burn_cpu(cpu)
    tell(**{f"{where}_cpu": cpu, "loop_blocked" if where == "loop" else "thread_wait": wall - cpu})
    return wall


async def sleep(seconds):
    started = time.perf_counter()
    await asyncio.sleep(seconds)
    tell(await_=time.perf_counter() - started)


def work_in_thread(wait=0.08, cpu=0.04):
    tell(thread_wait=block_loop(wait))
    tell_burned("thread", cpu)


@app.get("/told")
async def tell_all():
    """Return what was told since this was asked last."""
    seconds = dict(told)
    told.clear()
    return seconds


@app.get("/ready")
async def ready():
    return {}


@app.get("/block")
async def block(seconds: float = 0.12):
    blocked = block_loop(seconds)
    tell(loop_blocked=blocked)
    return blocked


@app.get("/burn")
async def burn(seconds: float = 0.12):
    return tell_burned("loop", seconds)


@app.get("/wait")
async def wait(seconds: float = 0.12):
    await sleep(seconds)


@app.get("/children/{how}")
async def children(how: str):
    """Block 3 x 40 ms, each in a child task."""

    async def child():
        tell(loop_blocked=block_loop(0.04))

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
    tell(loop_blocked=block_loop(0.04))
    tell_burned("loop", 0.04)
    await sleep(0.04)
    await asyncio.to_thread(work_in_thread, 0.04, 0.04)


@app.get("/overlap")
async def overlap():
    """Wait 100 ms in each of two threads at once, and for a timer of 150 ms meanwhile."""
    started = time.perf_counter()
    ends = []

    def wait_in_thread():
        block_loop(0.1)
        ends.append(time.perf_counter())

    await asyncio.gather(asyncio.to_thread(wait_in_thread), asyncio.to_thread(wait_in_thread), asyncio.sleep(0.15))
    tell(thread_wait=max(ends) - started, await_=time.perf_counter() - max(ends))


@app.get("/stream")
async def stream():
    async def chunks():
        for _ in range(3):
            yield b"x"
            tell(loop_blocked=block_loop(0.04))
            await sleep(0.02)

    return StreamingResponse(chunks())


@app.get("/raises")
async def raises():
    tell(loop_blocked=block_loop(0.05))
    raise HTTPException(418)


@app.get("/crashes")
async def crashes():
    tell(loop_blocked=block_loop(0.05))
    raise ValueError("on purpose")


@app.get("/background")
async def background(tasks: BackgroundTasks):
    async def later():
        tell(loop_blocked=block_loop(0.05))
        await sleep(0.05)

    tasks.add_task(later)
    tasks.add_task(work_in_thread)


orphans = set()


@app.get("/orphan")
async def orphan():
    async def outlives():
        await sleep(0.05)
        tell(loop_blocked=block_loop(0.05))

    orphans.add(asyncio.create_task(outlives()))


async def entered():
    return time.perf_counter()


@app.get("/queue")
def queue(since: Annotated[float, Depends(entered)]):
    """Tell how long this had to wait for a thread, and then waited in it."""
    return time.perf_counter() - since, block_loop(0.4)


@app.websocket("/socket")
async def socket(session: WebSocket):
    await session.accept()
    async for _ in session.iter_text():
        blocked = block_loop(0.05)
        tell(loop_blocked=blocked)
        await session.send_text(str(blocked))


class ServedCPU:
    """Tell what a request, alone on its loop, took of its CPU, frameworks and all, before its end and after."""

    def __init__(self, inner):
        self.inner = inner

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http" or scope["path"] == "/told":
            await self.inner(scope, receive, send)
            return
        started = ended = time.thread_time()

        async def send_and_tell(message):
            nonlocal ended
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                ended = time.thread_time()
                tell(served_cpu=ended - started)

        try:
            await self.inner(scope, receive, send_and_tell)
        except ValueError:  # whoever answers it stands further out
            tell(served_cpu=time.thread_time() - started)
            raise
        tell(background_cpu=time.thread_time() - ended)


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
