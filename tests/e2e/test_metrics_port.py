"""A loop that is stuck is scraped all the same, and whoever has the port passes it on."""

from __future__ import annotations

import contextlib
import operator
import signal
import statistics
import threading
import time

import httpx
import pytest

from tests.prometheus import prometheus
from tests.quiet import withheld
from tests.serving import free_port, on_both_loops, serve, wait_until

pytestmark = pytest.mark.once

STALL_SECONDS = 10
ANSWER_SECONDS = 0.1


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


def lag_max(client, pid):
    """Return the worst lag that a scrape shows, how long it took, and what the machine withheld meanwhile."""
    withheld_before, started = withheld(pid), time.monotonic()
    page = client.get("/metrics")
    took = time.monotonic() - started
    (line,) = [line for line in page.text.splitlines() if line.startswith("loopwatch_loop_lag_max_seconds ")]
    return float(line.split()[1]), took, withheld(pid) - withheld_before


def test_a_stall_of_ten_seconds_is_seen_to_grow(tmp_path):
    on_both_loops(lambda loop: a_stall_is_seen_to_grow(loop, tmp_path / loop))


def a_stall_is_seen_to_grow(loop, folder):
    folder.mkdir()
    with (
        serve_stuck(loop, port := free_port()) as stuck,
        prometheus(f"127.0.0.1:{port}", folder) as server,
        httpx.Client(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        wait_until(lambda: server.query("loopwatch_loop_lag_max_seconds"), "the first scrape")
        blocking = threading.Thread(target=stuck.get, args=(f"/block?seconds={STALL_SECONDS}",))
        blocking.start()
        started = time.monotonic()
        time.sleep(0.5)
        shown, took, taken_away, scraped = [], [], [], []
        while time.monotonic() - started < STALL_SECONDS - 1:
            before = time.monotonic() - started
            lag, answered_in, waited = lag_max(client, stuck.process.pid)
            shown.append((before, lag))
            took.append(answered_in)
            taken_away.append(waited)
            scraped.append(server.query("loopwatch_loop_lag_max_seconds"))
            time.sleep(0.5)
        blocking.join()
    assert statistics.median(took) < ANSWER_SECONDS
    assert max(map(operator.sub, took, taken_away)) < ANSWER_SECONDS
    for elapsed, lag in shown:
        assert lag == pytest.approx(elapsed, abs=0.3)
    values = [value for answer in scraped for value in answer.values()]
    assert len(set(values)) >= STALL_SECONDS // 2
    assert values == sorted(values)


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


def test_another_worker_takes_the_port_when_its_owner_dies(stuck, port, loop_kind):
    with serve("tests.apps.stuck:app", loop_kind, env={"LOOPWATCH_METRICS_PORT": str(port)}) as other:
        stuck.process.send_signal(signal.SIGKILL)
        stuck.process.wait()

        def taken_over():
            return 'http_route="/ready"' in httpx.get(f"http://127.0.0.1:{port}/metrics").text

        wait_until(taken_over, "the other worker to take the port")
    assert "it is in use, maybe by another worker" in other.log
