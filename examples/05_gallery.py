"""The mistakes that people make in async code, each beside its cure. GET /mistake/sleep, then GET /stalls.

Run: uvicorn --app-dir examples 05_gallery:app. Two pairs need a server, and are left out without it: set
GALLERY_UPSTREAM=http://host:port to a slow HTTP server, and GALLERY_POSTGRES=postgresql://user@host:port/name.
"""

import asyncio
import contextlib
import dataclasses
import gc
import hashlib
import json
import os
import re
import signal
import sqlite3
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated

import httpx
from fastapi import BackgroundTasks, Depends, FastAPI, WebSocket
from fastapi.responses import StreamingResponse

import loopwatch

UPSTREAM = os.environ.get("GALLERY_UPSTREAM", "")
POSTGRES = os.environ.get("GALLERY_POSTGRES", "")
SECONDS = 0.2
COMPUTING_SECONDS = 0.3
EVIL, HARMLESS = r"(a+)+$", r"a+$"
COUNT_UP = "with recursive c(x) as (select 1 union all select x + 1 from c where x < ?) select count(*) from c"
BIG_FILE = Path(tempfile.gettempdir()) / f"loopwatch-gallery-{os.getpid()}.bin"
TABLE = [{"id": number, "name": f"row {number}", "tags": "a, b, c"} for number in range(10_000)]


def compute(rounds):
    return sum(number * number for number in range(rounds))


def hash_password(rounds):
    return hashlib.pbkdf2_hmac("sha256", b"secret", b"salt", rounds).hex()


def query(rows):
    with contextlib.closing(sqlite3.connect(":memory:")) as memory:
        return memory.execute(COUNT_UP, (rows,)).fetchone()


def read_file(times):
    for _ in range(times):
        BIG_FILE.read_bytes()


def backtrack(letters):
    return bool(re.match(EVIL, "a" * letters + "!"))


def seconds_of(work, amount):
    started = time.perf_counter()
    work(amount)
    return time.perf_counter() - started


def amount_for(work):
    """Return how much of a work takes COMPUTING_SECONDS here: machines differ."""
    amount = 1
    while seconds_of(work, amount) < COMPUTING_SECONDS / 10:
        amount *= 2
    return round(amount * COMPUTING_SECONDS / min(seconds_of(work, amount) for _ in range(3)))


BIG_FILE.write_bytes(bytes(20_000_000))
ROUNDS, HASHES, ROWS = amount_for(compute), amount_for(hash_password), amount_for(query)
FILES, COPIES = amount_for(read_file), amount_for(lambda times: json.dumps(TABLE * times))
LETTERS = next(letters for letters in range(10, 40) if seconds_of(backtrack, letters) > COMPUTING_SECONDS * 0.7)
FAN_OUT = 100

client = httpx.AsyncClient(verify=False)  # the first one imports its transport: before the loop runs


@contextlib.asynccontextmanager
async def lifespan(app):
    time.sleep(SECONDS)  # mistake: nothing else that starts on this loop gets to run
    gc.freeze()  # what lives as long as the app need not be looked at by every full collection
    # Ctrl-C is the server's to hear, which then shuts the processes down.
    deaf = signal.SIGINT, signal.SIG_IGN
    app.state.processes = ProcessPoolExecutor(1, initializer=signal.signal, initargs=deaf)
    await asyncio.get_running_loop().run_in_executor(app.state.processes, compute, 1)
    async with client:
        yield
    app.state.processes.shutdown()
    BIG_FILE.unlink(missing_ok=True)


app = FastAPI(lifespan=lifespan)
watch = loopwatch.install(app, loopwatch.Config.from_env())


@app.get("/stalls")
async def stalls():
    return [dataclasses.asdict(stall) for stall in watch.stalls]


@app.get("/ready")
async def ready():
    return {}


# --- calls that wait


@app.get("/mistake/sleep")
async def sleep():
    time.sleep(SECONDS)


@app.get("/cure/sleep")
async def sleep_cured():
    await asyncio.sleep(SECONDS)


if UPSTREAM:
    import requests

    @app.get("/mistake/http")
    async def http():
        return requests.get(UPSTREAM, timeout=5).status_code

    @app.get("/cure/http")
    async def http_cured():
        return (await client.get(UPSTREAM, timeout=5)).status_code

    async def fetch(number):
        signature = hashlib.pbkdf2_hmac("sha256", b"secret", b"%d" % number, HASHES // FAN_OUT).hex()
        answer = await client.get(f"{UPSTREAM}/{number}", headers={"signature": signature}, timeout=20)
        return answer.status_code

    @app.get("/mistake/fanout")
    async def fan_out():
        return await asyncio.gather(*(fetch(number) for number in range(FAN_OUT)))

    @app.get("/cure/fanout")
    async def fan_out_cured():
        few = asyncio.Semaphore(1 + FAN_OUT // 20)

        async def fetch_in_turn(number):
            async with few:
                return await fetch(number)

        return await asyncio.gather(*(fetch_in_turn(number) for number in range(FAN_OUT)))


if POSTGRES:
    import asyncpg
    import psycopg2
    import sqlalchemy
    from sqlalchemy.ext.asyncio import create_async_engine

    ADDRESS = POSTGRES.partition("://")[2]
    engine = sqlalchemy.create_engine("postgresql+psycopg2://" + ADDRESS)
    async_engine = create_async_engine("postgresql+asyncpg://" + ADDRESS)
    connection = psycopg2.connect(POSTGRES)

    @app.get("/mistake/postgres")
    async def postgres():
        with connection.cursor() as cursor:
            cursor.execute("select pg_sleep(%s)", (SECONDS,))

    @app.get("/cure/postgres")
    async def postgres_cured():
        connection = await asyncpg.connect(POSTGRES)
        await connection.execute("select pg_sleep($1)", SECONDS)
        await connection.close()

    @app.get("/mistake/sqlalchemy")
    async def sqlalchemy_sync():
        with engine.connect() as session:
            session.execute(sqlalchemy.text("select pg_sleep(:seconds)"), {"seconds": SECONDS})

    @app.get("/cure/sqlalchemy")
    async def sqlalchemy_cured():
        async with async_engine.connect() as session:
            await session.execute(sqlalchemy.text("select pg_sleep(:seconds)"), {"seconds": SECONDS})


@app.get("/mistake/sqlite")
async def sqlite():
    return query(ROWS)


@app.get("/cure/sqlite")
def sqlite_cured():
    return query(ROWS)


@app.get("/mistake/file")
async def file():
    read_file(FILES)


@app.get("/cure/file")
def file_cured():
    read_file(FILES)


# --- code that computes


@app.get("/mistake/compute")
async def computes():
    return compute(ROUNDS)


@app.get("/cure/compute")
async def computes_cured():
    return await asyncio.get_running_loop().run_in_executor(app.state.processes, compute, ROUNDS)


@app.get("/mistake/password")
async def password():
    return hash_password(HASHES)


@app.get("/cure/password")
async def password_cured():
    return await asyncio.to_thread(hash_password, HASHES)


@app.get("/mistake/json")
async def big_json():
    return len(json.dumps(TABLE * COPIES))


@app.get("/cure/json")
async def big_json_cured():
    async def lines():
        for number, row in enumerate(TABLE):  # a page of it
            yield json.dumps(row) + "\n"
            if number % 100 == 0:
                await asyncio.sleep(0)

    return StreamingResponse(lines())


@app.get("/mistake/regex")
async def regex():
    return backtrack(LETTERS)


@app.get("/cure/regex")
async def regex_cured():
    return bool(re.match(HARMLESS, "a" * LETTERS + "!"))


# --- the same in other places


async def slow_dependency():
    time.sleep(SECONDS)


def slow_dependency_cured():
    time.sleep(SECONDS)


@app.get("/mistake/dependency")
async def depends(_: Annotated[None, Depends(slow_dependency)]):
    pass


@app.get("/cure/dependency")
async def depends_cured(_: Annotated[None, Depends(slow_dependency_cured)]):
    pass


@app.middleware("http")
async def middleware(request, call_next):
    if request.url.path == "/mistake/middleware":
        time.sleep(SECONDS)
    if request.url.path == "/cure/middleware":
        await asyncio.sleep(SECONDS)
    return await call_next(request)


@app.get("/mistake/middleware")
async def behind_a_middleware():
    pass


@app.get("/cure/middleware")
async def behind_a_cured_middleware():
    pass


async def later():
    time.sleep(SECONDS)


def later_cured():
    time.sleep(SECONDS)


@app.get("/mistake/background")
async def background(tasks: BackgroundTasks):
    tasks.add_task(later)


@app.get("/cure/background")
async def background_cured(tasks: BackgroundTasks):
    tasks.add_task(later_cured)


@app.get("/mistake/task")
async def task():
    await asyncio.gather(later(), asyncio.sleep(0))


@app.get("/cure/task")
async def task_cured():
    await asyncio.gather(asyncio.to_thread(later_cured), asyncio.sleep(0))


@app.get("/mistake/lost")
async def lost():
    asyncio.create_task(later())  # mistake twice: nobody keeps it, nobody hears of its failure, and it blocks


@app.get("/cure/lost")
async def lost_cured():
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.to_thread(later_cured))


@app.get("/mistake/stream")
async def stream():
    async def body():
        yield "first"
        time.sleep(SECONDS)
        yield "second"

    return StreamingResponse(body())


@app.get("/cure/stream")
async def stream_cured():
    def body():  # Starlette runs a plain generator in a thread
        yield "first"
        time.sleep(SECONDS)
        yield "second"

    return StreamingResponse(body())


@app.websocket("/mistake/websocket")
async def websocket(session: WebSocket):
    await session.accept()
    async for text in session.iter_text():
        time.sleep(SECONDS)
        await session.send_text(text)


@app.websocket("/cure/websocket")
async def websocket_cured(session: WebSocket):
    await session.accept()
    async for text in session.iter_text():
        await asyncio.sleep(SECONDS)
        await session.send_text(text)


@app.get("/mistake/threads")
def threads():
    """Sixty of these at once fill the forty threads: no stall, look at thread_queue of the route."""
    time.sleep(SECONDS)


@app.get("/cure/threads")
async def threads_cured():
    await asyncio.sleep(SECONDS)


@app.get("/mistake/trickle")
async def trickle():
    """No threshold shows these: look at loop_blocked of the route."""
    for _ in range(40):
        time.sleep(0.005)
        await asyncio.sleep(0)


@app.get("/cure/trickle")
async def trickle_cured():
    for _ in range(40):
        await asyncio.sleep(0.005)
