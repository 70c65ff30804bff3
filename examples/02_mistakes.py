"""Mistakes that people make in async code, each as one route. All take about as long; only loopwatch tells why.

Run: uvicorn --app-dir examples 02_mistakes:app
"""

import asyncio
import hashlib
import time

from fastapi import FastAPI

import loopwatch

app = FastAPI(title="Mistakes")
watch = loopwatch.install(app)


@app.get("/awaits")
async def awaits():
    """Right: everybody else may run meanwhile."""
    await asyncio.sleep(0.15)


@app.get("/sleeps")
async def sleeps():
    """Wrong: the loop is held, and so is every other request. Cure: ``await asyncio.sleep(...)``."""
    time.sleep(0.15)


@app.get("/burns")
async def burns():
    """Wrong: the loop computes. Cure: a ``def`` route or, for more than one core, a process pool."""
    end = time.thread_time() + 0.15
    while time.thread_time() < end:
        hashlib.sha256(b"x" * 4096).digest()


@app.get("/queues")
def queues():
    """Runs in a worker thread, of which there are 40: the 41st request waits, and looks like a slow one."""
    time.sleep(0.5)


@app.get("/advice")
async def advice():
    """What loopwatch advises for pools of threads. The log has it once an hour."""
    return [str(one) for one in watch.advice()]
