"""Thirteen ways to hold the loop for the same time; each notes when it did, and for how long it computed."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import json
import queue
import select
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import zlib

from fastapi import FastAPI

import loopwatch

SECONDS = 0.16
TABLE = [{"id": number, "name": f"row {number}"} for number in range(300)]
BYTES = bytes(range(256)) * 400
COUNT_UP = "with recursive c(x) as (select 1 union all select x + 1 from c where x < 5000) select count(*) from c"

app = FastAPI()
watch = loopwatch.install(app)
known, stalls = [], []
watch.on_stall(stalls.append)  # the watch itself keeps only the latest
memory = sqlite3.connect(":memory:")
lock = threading.Lock()
lock.acquire()
silent, _other_end = socket.socketpair()
silent.settimeout(SECONDS)


def mistake(function):
    """Serve a function that holds the loop, and note when it did."""

    @app.get(f"/{function.__name__}")
    async def handler():
        started_at, started, cpu = time.time(), time.perf_counter(), time.thread_time()
        function()
        duration = time.perf_counter() - started
        known.append({
            "route": f"/{function.__name__}", "function": f"{__name__}:{function.__name__}",
            "started_at": started_at, "duration": duration, "cpu": time.thread_time() - cpu,
        })  # fmt: skip

    return function


@mistake
def sleeps():
    time.sleep(SECONDS)


@mistake
def receives():
    with contextlib.suppress(TimeoutError):
        silent.recv(1)


@mistake
def runs():
    subprocess.run([sys.executable, "-S", "-c", f"import time; time.sleep({SECONDS})"], check=True)


@mistake
def waits_for_an_event():
    threading.Event().wait(SECONDS)


@mistake
def waits_for_a_queue():
    with contextlib.suppress(queue.Empty):
        queue.Queue().get(timeout=SECONDS)


@mistake
def waits_for_a_lock():
    lock.acquire(timeout=SECONDS)


@mistake
def selects():
    select.select([silent], [], [], SECONDS)


@mistake
def queries():
    end = time.thread_time() + SECONDS
    while time.thread_time() < end:
        memory.execute(COUNT_UP).fetchone()


@mistake
def hashes():
    end = time.thread_time() + SECONDS
    while time.thread_time() < end:
        hashlib.pbkdf2_hmac("sha256", b"secret", b"salt", 5000)


@mistake
def writes_json():
    end = time.thread_time() + SECONDS
    while time.thread_time() < end:
        json.dumps(TABLE)


@mistake
def copies():
    end = time.thread_time() + SECONDS
    while time.thread_time() < end:
        copy.deepcopy(TABLE[:50])


@mistake
def compresses():
    end = time.thread_time() + SECONDS
    while time.thread_time() < end:
        zlib.compress(BYTES)


@mistake
def computes():
    end = time.thread_time() + SECONDS
    while time.thread_time() < end:
        sum(number * number for number in range(1000))


@app.get("/")
async def report():
    return {"known": known, "stalls": [dataclasses.asdict(stall) for stall in stalls]}


@app.get("/mistakes")
async def mistakes():
    return [route.path for route in app.routes if getattr(route, "name", "") == "handler"]
