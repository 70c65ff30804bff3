"""How is the same value recorded many times at once? By counting in the SDK's own aggregations.

The API records one value at a time, which takes the GIL for ten microseconds, thousands of times a second. So the
first is recorded, and the others are added where the SDK put it, if its parts are as they are known here: that is
tried, once. Where they are not, or a view aggregates otherwise, each is recorded singly. Any thread.
"""
# ruff: noqa: SLF001 # all that is private here; see docs/what-it-relies-on.md

from __future__ import annotations

import functools
import time
from bisect import bisect_left
from typing import TYPE_CHECKING, Any

from opentelemetry.context import get_current

if TYPE_CHECKING:
    from opentelemetry.metrics import Histogram

try:
    from opentelemetry.sdk import metrics as sdk
    from opentelemetry.sdk.metrics._internal import _view_instrument_match as places
    from opentelemetry.sdk.metrics._internal import aggregation as aggregations
    from opentelemetry.sdk.metrics._internal.measurement import Measurement
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.resources import Resource
except ImportError:
    _KNOWN = False
else:
    _KNOWN = True


def record(histogram: Histogram, value: float, times: int, attributes: dict[str, str]) -> None:
    """Record ``value`` so many times, at least once. Of an SDK's exemplars it is one at most."""
    histogram.record(value, attributes)
    instrument = getattr(histogram, "_real_instrument", histogram)  # made before the provider was set
    if adding_works() and isinstance(instrument, sdk.Histogram):
        for place in _places_of(instrument):
            if not _add(place, value, times - 1, attributes):
                _consume(place, instrument, value, times - 1, attributes)
    else:
        for _ in range(times - 1):
            histogram.record(value, attributes)


@functools.cache
def adding_works() -> bool:
    """Tell whether what is added to an SDK's histogram is what it tells. Tries it, the first time."""
    if not _KNOWN:
        return False
    try:
        reader = InMemoryMetricReader()
        meter = sdk.MeterProvider([reader], Resource({}), shutdown_on_exit=False).get_meter("loopwatch")
        tried = meter.create_histogram("tried", explicit_bucket_boundaries_advisory=[1.0])
        tried.record(2.0, {"of": "us"})
        (place,) = _places_of(tried)
        added = _add(place, 2.0, 2, {"of": "us"})
        _consume(place, tried, 2.0, 3, {"of": "us"})
        data: Any = reader.get_metrics_data()
        point = data.resource_metrics[0].scope_metrics[0].metrics[0].data.data_points[0]
        return added and (point.count, point.sum, tuple(point.bucket_counts)) == (6, 12.0, (0, 6))
    except Exception:
        return False


def _places_of(histogram: Any) -> list[Any]:
    """Return where the SDK keeps a histogram: a place for each reader and view. None if that is switched off."""
    if not getattr(histogram, "_is_enabled", lambda: True)():
        return []
    return [
        place
        for storage in histogram._measurement_consumer._reader_storages.values()
        for place in storage._get_or_init_view_instrument_match(histogram)
    ]


def _add(place: Any, value: float, times: int, attributes: dict[str, str]) -> bool:
    """Count where these attributes are aggregated; tell whether that could be done."""
    wanted = place._view._attribute_keys
    kept = attributes if wanted is None else {name: attributes[name] for name in attributes if name in wanted}
    key = places._hash_attributes(kept) if hasattr(places, "_hash_attributes") else frozenset(kept.items())
    with place._lock:  # nothing is collected meanwhile
        aggregation = place._attributes_aggregation.get(key)
        if type(aggregation) is aggregations._DropAggregation:
            return True
        if type(aggregation) is not aggregations._ExplicitBucketHistogramAggregation:
            return False
        with aggregation._lock:
            if aggregation._value is None:  # collected since: minimum and maximum are to begin anew
                return False
            aggregation._value[bisect_left(aggregation._boundaries, value)] += times
            aggregation._sum += value * times
    return True


def _consume(place: Any, histogram: Any, value: float, times: int, attributes: dict[str, str]) -> None:
    """Record singly, in one place only."""
    measurement = Measurement(value, time.time_ns(), histogram, get_current(), attributes)
    for _ in range(times):
        place.consume_measurement(measurement, should_sample_exemplar=False)
