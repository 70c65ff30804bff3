"""The main job: an app under load, scraped by a real Prometheus server, answers PromQL with what is true."""

from __future__ import annotations

import time

import pytest

from tests.prometheus import prometheus
from tests.serving import on_both_loops, serve, wait_until

CYCLES = 24
WINDOW = 20
PERIOD_SECONDS = 1.0
BLOCK_SECONDS = 0.25  # a bound of the lag histogram, so that interpolation within the bucket is exact
BURN_SECONDS = 0.1


def load(app):
    """Once a second block the loop, then burn CPU on it; return (start, blocked, burned) of each cycle."""
    truth = []
    started = time.time()
    for cycle in range(CYCLES):
        time.sleep(max(0.0, started + cycle * PERIOD_SECONDS - time.time()))
        begin = time.time()
        blocked = app.get(f"/block?seconds={BLOCK_SECONDS}").json()
        truth.append((begin, blocked, app.get(f"/burn?seconds={BURN_SECONDS}").json()))
    return truth


@pytest.mark.once
def test_prometheus_agrees_with_the_known_work_of_the_load(tmp_path):
    on_both_loops(lambda loop: prometheus_agrees(loop, tmp_path / loop))


def prometheus_agrees(loop, folder):
    folder.mkdir()
    with (
        serve("tests.apps.truth:app", loop) as app,
        prometheus(app.url.removeprefix("http://"), folder) as server,
    ):
        wait_until(lambda: server.query("up == 1"), "the first scrape")
        truth = load(app)
        # Let the last cycle be scraped; the load was steady, so rates over any whole window of it are its rates.
        time.sleep(1.5)
        at = f"@ {truth[-1][0]:.3f}"
        blocked = sum(cycle[1] for cycle in truth) / CYCLES
        burned = sum(cycle[2] for cycle in truth) / CYCLES

        def rate(selector):
            return server.scalar(f"sum(rate({selector}[{WINDOW}s] {at}))")

        busy = rate('loopwatch_loop_time_seconds_total{state="busy"}')
        utilization = busy / rate("loopwatch_loop_time_seconds_total")
        assert utilization == pytest.approx(blocked + burned, rel=0.1)

        per_route = 'loopwatch_request_time_seconds_total{http_route="%s",state="%s",phase="request"}'
        assert rate(per_route % ("/block", "loop_blocked")) == pytest.approx(blocked, rel=0.1)
        assert rate(per_route % ("/burn", "loop_cpu")) == pytest.approx(BURN_SECONDS, rel=0.1)
        assert rate(per_route % ("/burn", "loop_blocked")) < 0.1 * burned + (burned - BURN_SECONDS)

        # P(lag > x) = (block - x) / period for x above the burn's length: 0.01 at x = block - 0.01 * period.
        p99 = server.scalar(f"histogram_quantile(0.99, rate(loopwatch_loop_lag_seconds_bucket[{WINDOW}s] {at}))")
        assert p99 == pytest.approx(blocked - 0.01 * PERIOD_SECONDS, rel=0.1)

        worst = server.scalar(f"max_over_time(loopwatch_loop_lag_max_seconds[{WINDOW}s] {at})")
        assert worst == pytest.approx(max(cycle[1] for cycle in truth), rel=0.1)
        assert server.query("loopwatch_threadpool_limit") == {frozenset({("pool", "anyio")}): 40}
        assert server.query("changes(loopwatch_self_dropped_total[1m])") == {}
