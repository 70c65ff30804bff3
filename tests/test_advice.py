"""What is said of a pool's size follows from what it did."""

from __future__ import annotations

import logging
import os

import pytest

from loopwatch.advice import Adviser, advise
from loopwatch.catalogue import LATENCY_BUCKETS
from loopwatch.exporters.log import StallLog
from loopwatch.readings import Advice, HistogramReading, PoolReading


def pool(queue_seconds, *, limit=40, items=120, saturated=0.3, cpu=0.36, wait=11.64):
    """Return a pool in which ``items`` waited for the same time and ran for 0.1 s each."""

    def histogram(seconds):
        counts = [0] * (len(LATENCY_BUCKETS) + 1)
        counts[sum(bound < seconds for bound in LATENCY_BUCKETS)] = items
        return HistogramReading(LATENCY_BUCKETS, tuple(counts), items * seconds)

    return PoolReading("anyio", limit, 0, 0, histogram(queue_seconds), histogram(0.1), saturated, cpu, wait)


def test_forty_threads_that_wait_with_forty_more_in_line_should_be_eighty():
    advice = advise(pool(0.1))
    assert advice == Advice("anyio", 40, 80, advice.reason)
    assert str(advice) == (
        "pool anyio: 40 threads, 97% of their time waiting, 75 ms median in queue: "
        "raise to about 80, or make the route async"
    )


def test_threads_that_compute_need_processes_not_more_threads():
    advice = advise(pool(0.1, cpu=11.0, wait=1.0))
    assert advice.suggested is None
    assert "process pool" in advice.reason


def test_more_processes_than_cpus_do_not_help():
    advice = advise(pool(0.1, limit=os.cpu_count(), cpu=None, wait=None))
    assert advice.suggested is None
    assert "would not help" in advice.reason


def test_fewer_processes_than_cpus_should_be_as_many_as_are_missing(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert advise(pool(0.1, limit=2, cpu=None, wait=None)).suggested == 8
    assert advise(pool(0.1, limit=2, items=20, saturated=1.0, cpu=None, wait=None)).suggested == 4


@pytest.mark.parametrize(
    "unremarkable",
    [
        pool(0.001),
        pool(0.1, items=10),
        pool(0.1, saturated=0.0),
        pool(0.1, items=20, saturated=60.0),  # the advice would be the size that it has
    ],
)
def test_nothing_is_said_of_a_pool_that_fits_or_was_hardly_used(unremarkable):
    assert advise(unremarkable) is None


def test_pools_are_judged_each_minute_by_the_last_hour_at_most():
    now, readings = [1000.0], [pool(0.1)]
    adviser = Adviser(lambda: tuple(readings), clock=lambda: now[0])
    assert [advice.suggested for advice in adviser.due()] == [80]
    now[0] += 59.0
    assert adviser.due() == ()
    now[0] += 1.0
    assert adviser.due() == ()  # nothing has happened since
    readings[0] = pool(0.1, items=300, saturated=1.3, cpu=0.9, wait=29.1)  # 180 more pieces in a second
    now[0] += 60.0
    assert [advice.suggested for advice in adviser.due()] == [60]


def test_a_pool_is_advised_on_in_the_log_once_an_hour(caplog):
    caplog.set_level(logging.WARNING, "loopwatch")
    now = [0.0]
    log = StallLog(0.05, clock=lambda: now[0])
    for minute in range(61):
        now[0] = 60.0 * minute
        log.hear_advice(Advice("anyio", 40, 80, "too small"))
    assert [record.message for record in caplog.records] == ["loopwatch: pool anyio: too small"] * 2
    assert caplog.records[0].pool_suggested == 80
