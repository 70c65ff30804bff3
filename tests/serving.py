"""Real uvicorn processes for the tests: each on a port of its own on 127.0.0.1, stopped at the end."""

from __future__ import annotations

import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import httpx

LOOPS = ("asyncio", "uvloop")
ROOT = pathlib.Path(__file__).parent.parent
PATIENCE_SECONDS = 30


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(ready, what, seconds=PATIENCE_SECONDS):
    """Poll until ``ready()`` is true; fail with ``what`` was waited for."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            if result := ready():
                return result
        time.sleep(0.05)
    raise AssertionError(f"waited {seconds} s for {what}")


def read(log):
    log.seek(0)
    return log.read()


def on_both_loops(check):
    """Call ``check`` with each kind of loop, at the same time: for what waits more than it computes."""
    with ThreadPoolExecutor(len(LOOPS)) as threads:
        list(threads.map(check, LOOPS))


def client_of(url):
    """Return a client that makes a connection for each request, and may be used by several threads."""
    # Not `Limits(max_keepalive_connections=0)`: between two of its requests a connection lies idle all the
    # same, and httpcore 1.0.9 may give it to one thread while another closes it ("Bad file descriptor").
    return httpx.Client(base_url=url, timeout=PATIENCE_SECONDS, headers={"Connection": "close"})


class Served:
    """A running app: its address, its process and what it wrote."""

    def __init__(self, url, process, log):
        self.url, self.process, self.log = url, process, log
        self._client = client_of(url)

    def get(self, path, **options):
        return self._client.get(path, **options)

    def close(self):
        self._client.close()

    def metrics(self):
        """Scrape once; return every sample as {(name, frozenset of labels): value}."""
        from prometheus_client.parser import text_string_to_metric_families

        text = self.get("/metrics").text
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def request_seconds(self, route, state, method="GET", phase="request"):
        labels = {"http_route": route, "http_request_method": method, "state": state, "phase": phase}
        return self.metrics().get(("loopwatch_request_time_seconds_total", frozenset(labels.items())), 0.0)


@contextlib.contextmanager
def serve(app, loop="asyncio", *arguments, env=None):
    """Serve ``module:app`` from the project's root with uvicorn; yield it once it answers."""
    port = free_port()
    command = [
        sys.executable, "-m", "uvicorn", app, "--host", "127.0.0.1", "--port", str(port),
        "--loop", loop, "--log-level", "warning", *arguments,
    ]  # fmt: skip
    # Into a file: a pipe that nobody empties meanwhile fills up and blocks the app.
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **(env or {})}, stdout=log, stderr=subprocess.STDOUT
        ) as process,
    ):
        served = Served(f"http://127.0.0.1:{port}", process, "")
        try:
            wait_until(lambda: process.poll() is not None or served.get("/ready"), f"{app} to answer")
            assert process.poll() is None, f"{app} ended at once; its log follows\n{read(log)}"
            yield served
        finally:
            served.close()
            process.terminate()
            try:
                process.wait(timeout=PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            served.log = read(log)
