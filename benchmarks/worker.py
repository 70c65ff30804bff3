"""One variant in one process: runs the requests that the parent asks for, and says how long they took.

Speaks lines on stdin and stdout: ``ROUTE IN_FLIGHT REQUESTS`` in, microseconds per request out.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from typing import Any

import uvloop

from benchmarks.variants import build

SETTLE_SECONDS = 0.03
"""To collect garbage holds the loop for that long, which loopwatch looks into: no request has a part in it."""

HEADERS = [(b"host", b"127.0.0.1"), (b"user-agent", b"bench"), (b"accept", b"*/*")]


async def receive() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


async def send(message: dict[str, Any]) -> None:
    if message["type"] == "http.response.start" and message["status"] != 200:
        raise RuntimeError(f"the app answered {message['status']}")


def scope_for(path: str) -> dict[str, Any]:
    """Return a scope as uvicorn makes it."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 50000),
        "scheme": "http",
        "method": "GET",
        "root_path": "",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": HEADERS,
        "state": {},
    }


async def requests(app: Any, path: str, count: int) -> None:
    for _ in range(count):
        await app(scope_for(path), receive, send)


async def seconds_per_request(app: Any, route: str, in_flight: int, count: int) -> float:
    """Serve about ``count`` requests of a route, so many in flight, as many on each of them, and time that."""
    each = max(1, count // in_flight)
    started = time.perf_counter()
    await asyncio.gather(*(requests(app, f"/{route}/7", each) for _ in range(in_flight)))
    return (time.perf_counter() - started) / (each * in_flight)


async def serve_parent(variant: str) -> None:
    app = build(variant)
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    print("ready", flush=True)
    while line := (await lines.readline()).decode():
        route, in_flight, count = line.split()[0], *map(int, line.split()[1:])
        gc.collect()
        await asyncio.sleep(SETTLE_SECONDS)
        print(await seconds_per_request(app, route, in_flight, count) * 1e6, flush=True)


if __name__ == "__main__":
    run = uvloop.run if sys.argv[2] == "uvloop" else asyncio.run
    run(serve_parent(sys.argv[1]))
