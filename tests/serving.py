"""Real uvicorn processes for the tests: each on a port of its own on 127.0.0.1, stopped whatever ends a test."""

from __future__ import annotations

import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

import httpx
import pytest

from tests.quiet import withheld_of_each

LOOPS = ("asyncio", "uvloop")
QUICK_LOOPS = ("asyncio", pytest.param("uvloop", marks=pytest.mark.slow))
"""Parameters of ``loop_kind`` for a test of which the quick level needs one loop only."""

ROOT = pathlib.Path(__file__).parent.parent
PATIENCE_SECONDS = 30
"""How long a test waits for what takes a second or two where nothing else runs."""

ANSWER_SECONDS = 90
"""How long it waits for one answer: an app under load may have many to give before."""

_given_up = threading.Event()
"""Set while :func:`on_both_loops` ends early: whoever waits in one of its threads waits no longer."""


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
        pause(0.05)
    raise AssertionError(f"waited {seconds} s for {what}")


def pause(seconds):
    """Sleep; fail at once where :func:`on_both_loops` ends early."""
    assert not _given_up.wait(seconds), "given up: the same has failed on the other loop, or was interrupted"


def read(log):
    log.seek(0)
    return log.read()


def stop(process, seconds=PATIENCE_SECONDS):
    """Ask a process to end; kill it if it does not."""
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def said_at_the_end(process, seconds=PATIENCE_SECONDS):
    """Return what a process printed, once it has ended by itself; kill it and fail if it does not."""
    try:
        said, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        said, _ = process.communicate()
        pytest.fail(f"waited {seconds} s for {process.args} to end; it printed\n{said}")
    except BaseException:
        process.kill()
        raise
    return said


def on_both_loops(check):
    """Call ``check`` with each kind of loop, at the same time: for what waits more than it computes."""
    with ThreadPoolExecutor(len(LOOPS)) as threads:
        checks = [threads.submit(check, loop) for loop in LOOPS]
        try:
            done, _ = wait(checks, return_when=FIRST_EXCEPTION)
            for one in done:
                one.result()
        except BaseException:
            _given_up.set()
            raise
        finally:
            wait(checks)
            _given_up.clear()


def client_of(url):
    """Return a client that makes a connection for each request, and may be used by several threads."""
    # Not `Limits(max_keepalive_connections=0)`: between two of its requests a connection lies idle all the
    # same, and httpcore 1.0.9 may give it to one thread while another closes it ("Bad file descriptor").
    return httpx.Client(base_url=url, timeout=ANSWER_SECONDS, headers={"Connection": "close"})


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

    @contextlib.contextmanager
    def noting_withheld(self):
        """Yield what returns, after the block, for how many seconds in it threads of the app got no CPU.

        Those of all threads, or of these only, by their numbers; that of the loop has the number of the process.
        """
        before, after = withheld_of_each(self.process.pid), {}

        def seconds(threads=None):
            counted = after if threads is None else {"machine", *map(str, threads)} & after.keys()
            return sum(after[one] - before.get(one, 0.0) for one in counted)

        yield seconds
        after |= withheld_of_each(self.process.pid)  # a thread that has ended in between is not counted

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
            stop(process)
            served.log = read(log)
