"""Several workers are one service: each scrape tells of all of them, whichever answers it, and of the worst."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.serving import ROOT, client_of, free_port, read, stop, wait_until

pytestmark = pytest.mark.once
slow = pytest.mark.slow

APP = "tests.apps.many:app"
REQUESTS, SCRAPES = 60, 8
STALL_SECONDS, STALL_SHOWN_SECONDS = 0.4, 0.35
STUCK_SECONDS = 4
SCRAPERS, DEAD_WORKERS = 4, 100
NO_PROCESS = 2**22 + 1
"""A number past those that Linux gives to processes."""

BIND = ["--host", "127.0.0.1", "--port"]
SERVERS = {
    "uvicorn": ["-m", "uvicorn", APP, "--workers", "2", "--log-level", "warning", *BIND],
    "gunicorn": ["-m", "gunicorn", APP, "-w", "2", "-k", "uvicorn_worker.UvicornWorker", "-b"],
    "preloaded": ["-m", "gunicorn", APP, "--preload", "-w", "2", "-k", "uvicorn_worker.UvicornWorker", "-b"],
    "granian": ["-m", "granian", "--interface", "asgi", "--workers", "2", "--respawn-failed-workers", APP, *BIND],
    "hypercorn": ["-m", "hypercorn", APP, "-w", "2", "-b"],
}

ENDS_WITH_A_WORKER = {"hypercorn"}
"""Its other workers are ended too when one is killed."""


class Workers:
    """A server with two workers, each request to it on a connection of its own."""

    def __init__(self, port, log):
        self.url, self._log = f"http://127.0.0.1:{port}", log
        self.get = client_of(self.url).get

    def pid(self):
        return self.get("/ready").json()["pid"]

    def pids(self):
        """Return the processes of both workers, once both have answered."""
        found = set()

        def both():
            found.add(self.pid())
            return len(found) == 2

        wait_until(both, "both workers to answer")
        return found

    def scrape(self):
        """Return every sample of one scrape as {(name, frozenset of labels): value}."""
        page = self.get("/metrics")
        assert page.status_code == 200, read(self._log)
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(page.text)
            for sample in family.samples
        }


def told(samples, name, **labels):
    """Return the sum of the samples of a name that have these labels."""
    return sum(
        value
        for (sample, has), value in samples.items()
        if sample == f"loopwatch_{name}" and labels.items() <= dict(has).items()
    )


def requests_told(samples, route):
    return told(samples, "request_duration_seconds_count", http_route=route)


@contextlib.contextmanager
def workers(server, folder):
    port = free_port()
    arguments = SERVERS[server]
    last = f"127.0.0.1:{port}" if arguments[-1] == "-b" else str(port)
    environ = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)}
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            [sys.executable, *arguments, last],
            cwd=ROOT,
            env=environ,
            stdout=log,
            stderr=log,
            start_new_session=True,
        ) as process,
    ):
        served = Workers(port, log)
        try:
            wait_until(lambda: process.poll() is not None or served.get("/ready"), f"{server} to answer")
            assert process.poll() is None, read(log)
            yield served
        finally:
            try:
                stop(process)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    "server", [name if name == "uvicorn" else pytest.param(name, marks=slow) for name in SERVERS]
)
def test_each_scrape_is_of_both_workers(server, tmp_path):
    with workers(server, tmp_path) as served:
        both = served.pids()
        answered = [served.get("/work").json()["pid"] for _ in range(REQUESTS)]
        assert set(answered) <= both
        stalled = served.get(f"/block?seconds={STALL_SECONDS}").json()["pid"]
        before = [served.scrape() for _ in range(SCRAPES)]
        assert [requests_told(samples, "/work") for samples in before] == [REQUESTS] * SCRAPES
        assert all(told(samples, "loop_lag_max_seconds") >= STALL_SHOWN_SECONDS for samples in before)
        assert all(told(samples, "threadpool_limit", pool="anyio") == 2 * 40 for samples in before)

        if server in ENDS_WITH_A_WORKER:
            return
        os.kill(stalled, signal.SIGKILL)
        wait_until(lambda: told(served.scrape(), "loop_lag_max_seconds") < STALL_SHOWN_SECONDS, "its gauges to go")
        after = [served.scrape() for _ in range(SCRAPES)]
        assert [requests_told(samples, "/work") for samples in after] == [REQUESTS] * SCRAPES
        for name in ("loop_iterations_total", "loop_lag_seconds_count", "loop_stall_duration_seconds_count"):
            assert all(told(samples, name) >= told(before[-1], name) > 0 for samples in after)
        served.pids()  # a server that is asked to end while a new worker starts may not (granian 2.8)


@slow
def test_no_page_fails_for_what_dead_workers_leave(tmp_path):
    """A file that its worker could not even size, and gauges that all others put away at the same time."""
    with workers("uvicorn", tmp_path) as served:
        served.pids()
        for number in range(SCRAPES):
            for dead in range(NO_PROCESS, NO_PROCESS + DEAD_WORKERS):
                for mode in ("livemax", "livemin", "livesum"):
                    (tmp_path / f"gauge_{mode}_{dead}.db").touch()
            (tmp_path / f"counter_{NO_PROCESS + number}.db").touch()
            with ThreadPoolExecutor(SCRAPERS) as at_once:
                assert all(at_once.map(lambda _: served.scrape(), range(SCRAPERS)))
        assert not list(tmp_path.glob(f"gauge_live*_{NO_PROCESS}.db"))


@slow
def test_the_other_worker_reports_one_that_is_stuck(tmp_path):
    with workers("uvicorn", tmp_path) as served, ThreadPoolExecutor(1) as thread:
        served.pids()
        before = told(served.scrape(), "loop_lag_max_seconds")
        asked = time.monotonic()
        stuck = thread.submit(served.get, f"/block?seconds={STUCK_SECONDS}")
        shown = []
        while not stuck.done():
            with contextlib.suppress(httpx.TimeoutException):  # the one that is stuck was asked
                page = httpx.get(served.url + "/metrics", timeout=STUCK_SECONDS / 4).text
                (line,) = [line for line in page.splitlines() if line.startswith("loopwatch_loop_lag_max_seconds ")]
                shown.append((time.monotonic() - asked, float(line.split()[1])))
    lags = [lag for _, lag in shown if lag > before]
    assert lags == sorted(lags)
    assert len(set(lags)) > 3, shown  # it grows while the loop is held
    assert all(lag <= max(passed, before) for passed, lag in shown), shown
    assert lags[-1] > STUCK_SECONDS / 3, shown
