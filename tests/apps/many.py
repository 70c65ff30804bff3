"""An app for several workers: who answers, and for how long one of them holds its loop."""

import asyncio
import os

from fastapi import FastAPI

import loopwatch
from loopwatch.testing import block_loop

app = FastAPI()
watch = loopwatch.install(app, loopwatch.Config.from_env())


@app.get("/ready")
async def ready():
    return {"pid": os.getpid()}


@app.get("/work")
async def work():
    await asyncio.sleep(0.005)
    return {"pid": os.getpid()}


@app.get("/block")
async def block(seconds: float):
    block_loop(seconds)
    return {"pid": os.getpid()}
