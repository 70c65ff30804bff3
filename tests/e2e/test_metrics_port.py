"""A loop that is stuck is scraped all the same, and whoever has the port passes it on."""

from __future__ import annotations

import contextlib
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.prometheus import prometheus
from tests.serving import PATIENCE_SECONDS, QUICK_LOOPS, free_port, on_both_loops, pause, serve, wait_until

pytestmark = pytest.mark.once

STALL_SECONDS = 10
PAUSE_SECONDS = 0.5
BEHIND_SECONDS = 0.1
"""By how much a scrape may show less than has passed."""


@pytest.fixture
def port():
    return free_port()


@contextlib.contextmanager
def serve_stuck(loop, port):
    with serve("tests.apps.stuck:app", loop, env={"LOOPWATCH_METRICS_PORT": str(port)}) as app:
        wait_until(lambda: httpx.get(f"http://127.0.0.1:{port}/metrics"), "the metrics port")
        yield app


@pytest.fixture
def stuck(loop_kind, port):
    with serve_stuck(loop_kind, port) as app:
        yield app


def lag_max(client):
    """Return the worst lag that a scrape shows, and between which instants it was taken."""
    started = time.monotonic()
    page = client.get("/metrics")
    ended = time.monotonic()
    (line,) = [line for line in page.text.splitlines() if line.startswith("loopwatch_loop_lag_max_seconds ")]
    return started, ended, float(line.split()[1])


@pytest.mark.slow
def test_a_stall_of_ten_seconds_is_seen_to_grow(tmp_path):
    on_both_loops(lambda loop: a_stall_is_seen_to_grow(loop, tmp_path / loop))


def a_stall_is_seen_to_grow(loop, folder):
    folder.mkdir()
    with (
        serve_stuck(loop, port := free_port()) as stuck,
        prometheus(f"127.0.0.1:{port}", folder) as server,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_SECONDS) as client,
        ThreadPoolExecutor(1) as thread,
    ):
        wait_until(lambda: server.query("loopwatch_loop_lag_max_seconds"), "the first scrape")
        free = [lag_max(client) for _ in range(5)]
        asked = time.monotonic()
        blocking = thread.submit(stuck.get, f"/block?seconds={STALL_SECONDS}")
        shown = []
        while not blocking.done():
            shown.append(lag_max(client))
            pause(PAUSE_SECONDS)
        block = blocking.result().json()
        ended = block["began"]["unix"] + block["seconds"]
        server.scraped_after("loopwatch_loop_lag_max_seconds", ended)
        scraped = server.samples("loopwatch_loop_lag_max_seconds", time.time() - block["began"]["unix"])
    began = block["began"]["monotonic"]
    shown = [one for one in shown if one[0] > began + PAUSE_SECONDS and one[1] < block["ended"]]
    assert len(shown) >= STALL_SECONDS / 2, "the metrics port does not answer while the loop is held"
    # As fast as with a free loop, the best of each: nothing waits for the loop.
    assert min(end - start for start, end, _ in shown) < 3 * max(end - start for start, end, _ in free)
    for start, end, lag in shown:
        assert start - began - BEHIND_SECONDS <= lag <= end - asked
    meanwhile = [(at, lag) for at, lag in scraped if block["began"]["unix"] + 1 < at < ended]
    assert len({lag for _, lag in meanwhile}) >= STALL_SECONDS // 2
    for at, lag in meanwhile:
        assert lag >= at - block["began"]["unix"] - BEHIND_SECONDS
    assert [lag for _, lag in meanwhile] == sorted(lag for _, lag in meanwhile)


@pytest.mark.parametrize("loop_kind", QUICK_LOOPS, indirect=True)
def test_only_the_metrics_are_there(stuck, port):
    at = f"http://127.0.0.1:{port}"
    assert httpx.get(at + "/ready").status_code == 404
    assert httpx.post(at + "/metrics").status_code == 405
    assert httpx.head(at + "/metrics").content == b""
    answer = httpx.get(
        at + "/metrics", headers={"accept": "application/openmetrics-text", "accept-encoding": "gzip"}
    )
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.text.endswith("# EOF\n")


@pytest.mark.parametrize("loop_kind", QUICK_LOOPS, indirect=True)
def test_another_worker_takes_the_port_when_its_owner_dies(stuck, port, loop_kind):
    with serve("tests.apps.stuck:app", loop_kind, env={"LOOPWATCH_METRICS_PORT": str(port)}) as other:
        stuck.process.send_signal(signal.SIGKILL)
        stuck.process.wait()

        def taken_over():
            return 'http_route="/ready"' in httpx.get(f"http://127.0.0.1:{port}/metrics").text

        wait_until(taken_over, "the other worker to take the port")
    assert "it is in use, maybe by another worker" in other.log
