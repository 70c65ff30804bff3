"""An app that does nothing but be there."""

from fastapi import FastAPI

import loopwatch

app = FastAPI()
loopwatch.install(app)


@app.get("/ready")
async def ready():
    return {}
