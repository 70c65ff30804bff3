"""A registry of 36,000 lines, and a clock of its own that notices every time the loop is late."""

from __future__ import annotations

import asyncio
import time

from fastapi import FastAPI
from prometheus_client import Counter, generate_latest

import loopwatch

app = FastAPI()
loopwatch.install(app)
family = Counter("many", "Many.", ["number"])
for number in range(18_000):
    family.labels(str(number)).inc()  # each is two lines: _total and _created


@app.get("/ready")
async def ready():
    return len(generate_latest().splitlines())


async def worst_gap_during(path):
    """Scrape through a connection of our own; return by how much the worst 1 ms timer was late meanwhile."""
    worst, done = 0.0, False

    async def tick():
        nonlocal worst
        while not done:
            due = time.perf_counter() + 0.001
            await asyncio.sleep(0.001)
            worst = max(worst, time.perf_counter() - due)

    ticking = asyncio.create_task(tick())
    await asyncio.sleep(0.01)
    reader, writer = await asyncio.open_connection(*app.state.address)
    writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
    while await reader.read(1 << 20):
        pass
    writer.close()
    done = True
    await ticking
    return worst


@app.get("/on-the-loop")
async def on_the_loop():
    return len(generate_latest())


@app.get("/gap")
async def gap(path: str, port: int):
    app.state.address = ("127.0.0.1", port)
    return await worst_gap_during(path)
