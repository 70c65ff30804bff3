"""The smallest app that is measured. Run: uvicorn --app-dir examples 01_quickstart:app, then GET /metrics."""

from fastapi import FastAPI

import loopwatch

app = FastAPI()
loopwatch.install(app)


@app.get("/hello/{name}")
async def hello(name: str):
    return {"hello": name}
