"""An app that holds its loop for as long as it is asked to, with its metrics on a port of their own."""

import os

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
    return block_loop(seconds)
