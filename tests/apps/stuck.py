"""An app that holds its loop for as long as it is asked to, with its metrics on a port of their own."""

import os
import time

from fastapi import FastAPI

import loopwatch
from loopwatch.testing import block_loop

app = FastAPI()
watch = loopwatch.install(app, loopwatch.Config.from_env())


@app.get("/ready")
async def ready():
    return {"pid": os.getpid()}


@app.get("/block")
async def block(seconds: float):
    """Return when the loop was held, by the clocks that all processes share."""
    began = {"monotonic": time.monotonic(), "unix": time.time()}
    return {"seconds": block_loop(seconds), "began": began, "ended": time.monotonic()}
