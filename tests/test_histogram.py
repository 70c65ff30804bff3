"""The time-weighted histogram is held against the definition, second by second."""

from __future__ import annotations

import itertools
import random

import hypothesis
import pytest
from hypothesis import strategies

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
    one_by_one, at_once = single.read(0), bulk.read(0)
    assert (at_once.counts, at_once.sum) == (one_by_one.counts, one_by_one.sum)
    assert one_by_one.upper_limit == 0.0005
    assert at_once.upper_limit == BOUNDS[0]  # which of them was longest is not known


def test_readings_add_and_subtract_bucket_by_bucket():
    older = HistogramReading(BOUNDS, (0, 0, 1, 0, 0), 0.5)
    newer = HistogramReading(BOUNDS, (0, 0, 1, 1, 0), 1.25)
    assert newer - older == HistogramReading(BOUNDS, (0, 0, 0, 1, 0), 0.75)
    assert newer - older + older == newer
    assert HistogramReading(BOUNDS, (0,) * 5, 0.0).quantile(0.5) == 0.0


NANOSECONDS_UP_TO_TWO_SECONDS = strategies.integers(1, 2 * NANOSECONDS)
SHARES = strategies.floats(0.0, 1.0)


@hypothesis.given(
    older=strategies.lists(NANOSECONDS_UP_TO_TWO_SECONDS, max_size=5),
    newer=strategies.lists(NANOSECONDS_UP_TO_TWO_SECONDS, min_size=1, max_size=5),
    current=strategies.integers(0, 2 * NANOSECONDS),
    q=SHARES,
)
def test_no_quantile_is_above_the_longest_period_that_was_seen(older, newer, current, q):
    histogram = LagHistogram(BOUNDS)
    for length in older:
        histogram.add(length)
    before = histogram.read(0)
    for length in newer:
        histogram.add(length)
    reading = histogram.copy().read(NANOSECONDS, current)
    longest = max(*older, *newer, current) / NANOSECONDS
    assert reading.quantile(q) <= longest
    assert (reading - before).quantile(q) <= longest
    assert (reading + before).quantile(q) <= longest
    assert reading.quantile(q) <= reading.quantile(1.0)


@hypothesis.given(
    values=strategies.lists(strategies.floats(0.0001, 2.0), min_size=1, max_size=20), q=SHARES, p=SHARES
)
@hypothesis.example(values=[0.0001, 0.0011], q=0.5000000000000001, p=0.5)
def test_an_upper_limit_moves_no_quantile_into_another_bucket(values, q, p):
    """It only ends the interpolation earlier: without one the estimate is that of PromQL."""
    counts = [0] * (len(BOUNDS) + 1)
    for value in values:
        counts[sum(bound < value for bound in BOUNDS)] += 1
    unlimited = HistogramReading(BOUNDS, tuple(counts), sum(values))
    limited = HistogramReading(BOUNDS, tuple(counts), sum(values), max(values))
    assert limited.quantile(q) <= min(unlimited.quantile(q), max(values))
    # Just above a bound the two may differ in whether they are rounded to it.
    assert all(bound <= limited.quantile(q) for bound in BOUNDS[:-1] if bound < unlimited.quantile(q))
    low, high = sorted((p, q))
    assert limited.quantile(low) <= limited.quantile(high)


def test_a_quantile_is_exact_where_one_period_fills_its_bucket():
    """460 ms of one period in 500 ms: by the bucket's bound alone the p99 was 496 ms."""
    histogram = LagHistogram((0.25, 0.5))
    histogram.add(460_000_000)
    reading = histogram.read(idle_ns=40_000_000)
    assert reading.quantile(0.99) == pytest.approx(0.455, abs=0.001)
