"""The same figures over OTLP as over a scrape, in real servers, by the same names."""

from __future__ import annotations

import contextlib
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from loopwatch import catalogue
from tests.prometheus import prometheus
from tests.serving import free_port, serve, wait_until
from tests.victoria import victoria_metrics

pytestmark = [pytest.mark.once, pytest.mark.slow]

REQUESTS, OUTAGE_SECONDS = 60, 4
ROUTE = frozenset({("http_route", "/items/{item}"), ("http_request_method", "GET")})
STANDING_STILL = [
    f"{metric.prometheus_name}{suffix}"
    for metric in catalogue.METRICS
    if metric.name.startswith(("loopwatch.request.", "loopwatch.threadpool.", "loopwatch.loop.stall."))
    for suffix in (("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",))
]
"""What no longer changes once there is no more traffic."""


def test_a_query_gives_the_same_by_both_paths(loop_kind, tmp_path):
    with (
        victoria_metrics(tmp_path) as victoria,
        serve("tests.apps.otlp:app", loop_kind, env={"OTLP_ENDPOINT": victoria.otlp}) as app,
        prometheus(app.url.removeprefix("http://"), tmp_path) as scraping,
    ):
        paths = [f"/items/{number}" for number in range(REQUESTS)] + ["/sync"] * REQUESTS + ["/block"]
        with ThreadPoolExecutor(8) as clients:
            assert all(answer.status_code == 200 for answer in clients.map(app.get, paths))
        count = 'sum(loopwatch_request_duration_seconds_count{http_route!="/ready"})'
        wait_until(lambda: {len(paths)} == set(scraping.query(count).values()), "the scrape")
        wait_until(lambda: {len(paths)} == set(victoria.query(count).values()), "the export")
        wait_until(lambda: victoria.query("loopwatch_loop_stall_time_seconds_total"), "the stall")
        names, differences = set(), []
        for name in STANDING_STILL:
            scraped, exported = by_ours(scraping.query(name)), by_ours(victoria.query(name))
            for labels, value in scraped.items():
                names.add(name)
                if exported.get(labels) != pytest.approx(value, rel=0.02, abs=1e-4):
                    differences.append((name, dict(labels), value, exported.get(labels)))
        # Time passes at the rate of time, and once there is no more traffic a loop is idle for most of it.
        total = "sum(rate(loopwatch_loop_time_seconds_total[10s]))"
        wait_until(lambda: 0.9 < sum(victoria.query(total).values()) < 1.1, "the loop's time to be exported")
        p50 = "histogram_quantile(0.5, rate(loopwatch_loop_lag_seconds_bucket[10s]))"
        wait_until(
            lambda: any(lag < 0.001 for lag in victoria.query(p50).values()), "the loop to be free half of the time"
        )
    assert differences == []
    assert len(names) >= 20


@pytest.fixture
def silent():
    """Yield the port of a server that takes every connection and never says a word."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(100)
        yield server.getsockname()[1]


def stalls_of(metrics):
    """Return the seconds of stalls by cause, without those in which the loop's thread got no CPU."""
    return {
        dict(labels)["cause"]: seconds
        for (name, labels), seconds in metrics.items()
        if name == "loopwatch_loop_stall_duration_seconds_sum" and ("cause", "starved") not in labels
    }


def test_an_endpoint_that_is_dead_or_silent_costs_no_request_anything(loop_kind, silent):
    with contextlib.ExitStack() as stack:
        endpoints = [f"http://127.0.0.1:{port}/v1/metrics" for port in (free_port(), silent)]
        apps = [
            stack.enter_context(serve("tests.apps.otlp:app", loop_kind, env={"OTLP_ENDPOINT": endpoint}))
            for endpoint in endpoints
        ]
        before = {app: stalls_of(app.metrics()) for app in apps}
        until = time.monotonic() + OUTAGE_SECONDS
        sent = 0
        with apps[0].noting_withheld() as from_one, apps[1].noting_withheld() as from_other:
            while time.monotonic() < until:
                assert {app.get(f"/items/{sent}").status_code for app in apps} == {200}
                sent += 1
        for app, withheld in zip(apps, (from_one, from_other), strict=True):
            metrics = app.metrics()
            names = {name for name, _ in metrics}
            assert metrics["loopwatch_request_wait_seconds_count", ROUTE] == sent
            assert catalogue.SELF_DROPPED.prometheus_name not in names
            stalls = stalls_of(metrics)
            # While the exporter's thread has the GIL and gets no CPU, the loop seems to sleep.
            assert sum(stalls.values()) - sum(before[app].values()) <= withheld(), (stalls, before[app])
    assert "Traceback" not in apps[1].log


OURS = {label for metric in catalogue.METRICS for label in metric.labels}


def by_ours(found):
    """Leave out the labels that OTLP adds, and read bounds as numbers: one writes 1.0 and the other 1."""

    def ours(labels):
        return frozenset(
            (key, float(text) if key == "le" else text) for key, text in labels if key in OURS or key == "le"
        )

    return {ours(labels): value for labels, value in found.items()}
