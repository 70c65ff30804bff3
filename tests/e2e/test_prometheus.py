"""The main job: an app under load, scraped by a real Prometheus server, answers PromQL with what is true."""

from __future__ import annotations

import itertools
import operator
import pathlib
import time

import pytest

from loopwatch import catalogue
from tests.prometheus import prometheus
from tests.serving import on_both_loops, pause, serve, wait_until

pytestmark = [pytest.mark.once, pytest.mark.slow]

CYCLES = 12
PERIOD_SECONDS = 1.0
BLOCK_SECONDS = 0.25
BURN_SECONDS = 0.1
TOLERANCE = 0.05


def load(app):
    """Once a second block the loop, then burn CPU on it; return (blocked, burned, withheld) of each second."""
    truth = []
    started = time.monotonic()
    for cycle in range(1, CYCLES + 1):
        with app.noting_withheld() as withheld:
            blocked = app.get(f"/block?seconds={BLOCK_SECONDS}").json()
            burned = app.get(f"/burn?seconds={BURN_SECONDS}").json()
            pause(max(0.0, started + cycle * PERIOD_SECONDS - time.monotonic()))
        truth.append((blocked, burned, withheld()))
    return truth


def loop_thread(app):
    """Return for how long the thread of the loop has computed, and for how long it was ready to and got no CPU."""
    pid = app.process.pid
    computed, waited, _ = pathlib.Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()
    return int(computed) / 1e9, int(waited) / 1e9


def quantile(share, durations, seconds):
    """Return a quantile of the lag by PromQL's rules, if nothing but this held the loop up in so many seconds.

    A loop that is held for d seconds has a lag above x for d - x of them.
    """
    bounds = (0.0, *catalogue.LATENCY_BUCKETS)
    below = [1 - sum(max(0.0, held - bound) for held in durations) / seconds for bound in bounds]
    for (lower, upper), (first, last) in zip(itertools.pairwise(bounds), itertools.pairwise(below), strict=True):
        if last >= share:
            return lower + (upper - lower) * max(0.0, share - first) / (last - first)
    return bounds[-1]


def between(low, high):
    """Return what is equal to anything from ``low`` to ``high``, and 5 % beyond."""
    low, high = low * (1 - TOLERANCE), high * (1 + TOLERANCE)
    return pytest.approx((low + high) / 2, abs=(high - low) / 2)


def test_prometheus_agrees_with_the_known_work_of_the_load(tmp_path):
    on_both_loops(lambda loop: prometheus_agrees(loop, tmp_path / loop))


def prometheus_agrees(loop, folder):
    folder.mkdir()
    with (
        serve("tests.apps.truth:app", loop) as app,
        prometheus(app.url.removeprefix("http://"), folder) as server,
    ):
        wait_until(lambda: server.query("up == 1"), "the first scrape")
        for path in ("/block?seconds=0", "/burn?seconds=0"):
            app.get(path)  # the first time it also imports and compiles
        app.get("/known")
        first = server.scraped_after("up", time.time())
        computed, waited = loop_thread(app)
        truth = load(app)
        served_cpu = app.get("/known").json()["seconds"]["served_cpu"]
        last = server.scraped_after("up", time.time())
        computed, waited = map(operator.sub, loop_thread(app), (computed, waited))
        blocked, burned = sum(cycle[0] for cycle in truth), sum(cycle[1] for cycle in truth)
        # By so much the loop was held up besides, at a time that the app's own clocks did not run.
        withheld = max(0.0, waited - (burned - CYCLES * BURN_SECONDS))

        def grown(selector, by=""):
            """Ask how much a counter grew from the scrape before the load to the one after it, without a guess."""
            return f"sum {by} ({selector} @ {last:.3f}) - sum {by} ({selector} @ {first:.3f})"

        busy = server.scalar(grown('loopwatch_loop_time_seconds_total{state="busy"}'))
        assert busy == between(computed + blocked, computed + blocked + waited)
        seconds = server.scalar(grown("loopwatch_loop_time_seconds_total"))
        assert seconds == between(last - first, last - first)

        per_route = 'loopwatch_request_time_seconds_total{http_route="%s",state="%s",phase="request"}'
        assert server.scalar(grown(per_route % ("/block", "loop_blocked"))) == between(blocked, blocked + withheld)
        burned_cpu = server.scalar(grown(per_route % ("/burn", "loop_cpu")))
        assert burned_cpu == between(CYCLES * BURN_SECONDS, served_cpu)
        burn_waited = server.scalar(grown(per_route % ("/burn", "loop_blocked")))
        known = burned - CYCLES * BURN_SECONDS
        assert known - TOLERANCE * burned < burn_waited < known + withheld + TOLERANCE * burned

        lag = grown("loopwatch_loop_lag_seconds_bucket", "by (le)")
        p99 = server.scalar(f"histogram_quantile(0.99, {lag})")
        held = [cycle[0] for cycle in truth]
        # If all that was withheld in that second was at the end of it.
        most = [known + cycle[2] for cycle in truth for known in cycle[:2]]
        assert p99 == between(quantile(0.99, held, seconds), quantile(0.99, most, seconds))

        worst = server.scalar(f"max_over_time(loopwatch_loop_lag_max_seconds[{last - first:.0f}s] @ {last:.3f})")
        before = server.scalar(f"loopwatch_loop_lag_max_seconds @ {first:.3f}")  # that of its start
        assert worst == between(max(held), max(*most, before))
        assert server.query("loopwatch_threadpool_limit") == {frozenset({("pool", "anyio")}): 40}
        assert server.query(f"{catalogue.SELF_DROPPED.prometheus_name} > 0") == {}
