"""A value that is recorded many times at once is told like one that is recorded as often singly."""

from __future__ import annotations

import random
import sys
import threading
import time

import pytest
from opentelemetry.metrics import NoOpHistogram
from opentelemetry.sdk.metrics import Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader
from opentelemetry.sdk.metrics.view import (
    DropAggregation,
    ExplicitBucketHistogramAggregation,
    ExponentialBucketHistogramAggregation,
    View,
)

from loopwatch.exporters.opentelemetry import repeats
from tests.waiting import PATIENCE_SECONDS

BOUNDS = (0.001, 0.01, 0.1, 1.0)
DELTA = {Histogram: AggregationTemporality.DELTA}
VIEWS = {
    "none": [],
    "other buckets": [View(instrument_name="*", aggregation=ExplicitBucketHistogramAggregation((0.05, 0.5)))],
    "fewer attributes": [View(instrument_name="*", attribute_keys={"route"})],
    "no buckets": [View(instrument_name="*", aggregation=ExponentialBucketHistogramAggregation())],
    "dropped": [View(instrument_name="*", aggregation=DropAggregation())],
    "two": [
        View(instrument_name="test", name="one"),
        View(instrument_name="test", name="other", aggregation=ExponentialBucketHistogramAggregation()),
    ],
}


def histogram_of(readers, views=()):
    meter = MeterProvider(readers, views=views, shutdown_on_exit=False).get_meter("test")
    return meter.create_histogram("test", explicit_bucket_boundaries_advisory=BOUNDS)


def told(reader):
    """Return {(name, attributes): (count, sum, minimum, maximum, buckets)}."""
    data = reader.get_metrics_data()
    metrics = data.resource_metrics[0].scope_metrics[0].metrics if data is not None else ()
    return {
        (metric.name, frozenset(point.attributes.items())): (
            *(point.count, round(point.sum, 9), point.min, point.max),
            tuple(point.bucket_counts if hasattr(point, "bucket_counts") else point.positive.bucket_counts),
        )
        for metric in metrics
        for point in metric.data.data_points
    }


@pytest.mark.parametrize("views", VIEWS.values(), ids=VIEWS)
def test_what_is_recorded_at_once_is_told_like_what_is_recorded_singly(views):
    at_once = [InMemoryMetricReader(), InMemoryMetricReader(preferred_temporality=DELTA)]
    singly = [InMemoryMetricReader(), InMemoryMetricReader(preferred_temporality=DELTA)]
    ours, theirs = histogram_of(at_once, views), histogram_of(singly, views)
    for _ in range(3):
        for _ in range(10):
            value, times = random.choice((0.001, 0.004, 0.04, 0.4, 4.0)), random.randrange(1, 40)
            attributes = {"route": random.choice("ab"), "method": random.choice("cd")}
            repeats.record(ours, value, times, attributes)
            for _ in range(times):
                theirs.record(value, attributes)
        for one, other in zip(at_once, singly, strict=True):
            assert told(one) == told(other)


@pytest.fixture
def hasty_threads():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("hasty_threads")
def test_nothing_is_lost_or_told_twice_while_somebody_collects():
    reader, counts, over = InMemoryMetricReader(preferred_temporality=DELTA), [], threading.Event()
    histogram = histogram_of([reader])

    def collect():
        while not over.is_set():
            counts.append(sum(point[0] for point in told(reader).values()))

    collector = threading.Thread(target=collect)
    collector.start()
    recorded, end = 0, time.monotonic() + PATIENCE_SECONDS
    try:
        while (recorded < 3000 or len(counts) <= 10) and time.monotonic() < end:
            repeats.record(histogram, 0.05, 7, {"route": "a"})
            recorded += 1
    finally:
        over.set()
        collector.join()
    counts.append(sum(point[0] for point in told(reader).values()))
    assert sum(counts) == recorded * 7
    assert len(counts) > 10


def test_where_adding_does_not_work_each_is_recorded_singly(monkeypatch):
    monkeypatch.setattr(repeats, "adding_works", lambda: False)
    reader = InMemoryMetricReader()
    repeats.record(histogram_of([reader]), 0.05, 7, {"route": "a"})
    assert [point[0] for point in told(reader).values()] == [7]


def test_a_histogram_that_is_not_the_sdks_is_recorded_singly():
    recorded = []

    class Theirs(NoOpHistogram):
        def record(self, amount, attributes=None, context=None):
            recorded.append((amount, attributes))

    repeats.record(Theirs("test"), 0.05, 7, {"route": "a"})
    assert recorded == [(0.05, {"route": "a"})] * 7
