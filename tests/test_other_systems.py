"""What an operating system lacks costs no app its start."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.serving import ROOT

SERVES_A_REQUEST_AND_A_PAGE = """
import asyncio, os, socket, sys
LACKS = sys.argv[1]
import concurrent.futures.process, multiprocessing.connection, random, socketserver, wsgiref.simple_server
import anyio, prometheus_client  # all of these have a use for it, too
loop = asyncio.new_event_loop()  # as has a loop of this system
delattr(os if LACKS == "register_at_fork" else socket, LACKS)
import loopwatch

async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})

async def main():
    watched, bodies = loopwatch.LoopWatchMiddleware(app), []
    async def send(message):
        bodies.append(message.get("body", b""))
    for path in ("/", "/metrics"):
        scope = {"type": "http", "method": "GET", "path": path, "headers": [], "query_string": b""}
        await watched(scope, None, send)
    watched.watch.stop()
    return b"".join(bodies), watched.watch.failures.read()

with asyncio.Runner(loop_factory=lambda: loop) as runner:
    body, failures = runner.run(main())
assert body.startswith(b"hello") and b"loopwatch_request_active" in body, body[:500]
print(failures)
"""


@pytest.mark.parametrize("lacks", ["register_at_fork", "AF_UNIX"])
@pytest.mark.parametrize("workers", [False, True])
def test_an_app_is_served_and_measured(lacks, workers, tmp_path):
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)} if workers else None
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SERVES_A_REQUEST_AND_A_PAGE, lacks],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "{}\n"), done.stderr
