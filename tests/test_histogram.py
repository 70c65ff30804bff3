"""The time-weighted histogram is held against the definition, second by second."""

from __future__ import annotations

import itertools
import random

import pytest

from loopwatch.histogram import NANOSECONDS, LagHistogram
from loopwatch.readings import HistogramReading

BOUNDS = (0.001, 0.01, 0.1, 1.0)


def defined(periods, idle):
    """What each bucket gets by definition: max(0, min(d, b) - a) of each period; the first, idle time too."""
    edges = [0.0, *BOUNDS, float("inf")]
    seconds = [sum(max(0.0, min(d, upper) - lower) for d in periods) for lower, upper in itertools.pairwise(edges)]
    seconds[0] += idle
    return seconds


def test_lag_is_weighted_by_time_as_defined():
    draw = random.Random(7)
    periods = [10 ** draw.uniform(-5, 0.5) for _ in range(500)]
    histogram = LagHistogram(BOUNDS)
    for period in periods:
        histogram.add(round(period * NANOSECONDS))
    reading = histogram.read(idle_ns=3 * NANOSECONDS)
    expected = [seconds * 1000 for seconds in defined(periods, 3.0)]
    assert reading.counts == pytest.approx(expected, abs=1.5)
    assert reading.count == pytest.approx(1000 * (sum(periods) + 3), abs=1)
    assert reading.sum == pytest.approx(1000 * sum(d * d / 2 for d in periods), rel=1e-6)


def test_one_second_blocked_out_of_twelve_has_a_p99_of_0_88_seconds():
    histogram = LagHistogram((0.1, 0.5, 0.75, 1.0))
    histogram.add(NANOSECONDS)
    assert histogram.read(idle_ns=11 * NANOSECONDS).quantile(0.99) == pytest.approx(0.88, abs=0.005)


def test_a_period_in_progress_never_makes_a_bucket_shrink():
    histogram = LagHistogram(BOUNDS)
    before = histogram.read(0).cumulative()
    for now in range(0, 1500, 7):
        reading = histogram.read(idle_ns=0, current_ns=now * 1_000_000)
        assert all(a <= b for a, b in zip(before, reading.cumulative(), strict=True))
        before = reading.cumulative()
    histogram.add(1_500_000_000)
    assert all(a <= b for a, b in zip(before, histogram.read(0).cumulative(), strict=True))


def test_many_short_periods_at_once_count_like_one_by_one():
    single, bulk = LagHistogram(BOUNDS), LagHistogram(BOUNDS)
    for _ in range(100):
        single.add(500_000)
    bulk.add_short(100 * 500_000, 100 * 500_000**2)
    assert bulk.read(0) == single.read(0)


def test_readings_add_and_subtract_bucket_by_bucket():
    older = HistogramReading(BOUNDS, (0, 0, 1, 0, 0), 0.5)
    newer = HistogramReading(BOUNDS, (0, 0, 1, 1, 0), 1.25)
    assert newer - older == HistogramReading(BOUNDS, (0, 0, 0, 1, 0), 0.75)
    assert newer - older + older == newer
    assert HistogramReading(BOUNDS, (0,) * 5, 0.0).quantile(0.5) == 0.0
