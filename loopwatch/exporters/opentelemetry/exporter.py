"""How does OpenTelemetry get to see it? Through instruments on a meter provider, the global one or a given one.

Counters and gauges are observed when the SDK collects. There is no observable histogram, so what histograms have
grown by is recorded then too, and every few seconds by a thread, so that it never is much: requests pay nothing.
Of each observation the bucket is known, and of all together the sum, so as many values are recorded as there were,
each in its bucket, and their sum is the true one. Of some requests the trace is known, too: their own values are
recorded as of their spans, from which the SDK makes exemplars.
"""

from __future__ import annotations

import functools
import sys
import threading
import time
from bisect import bisect_left
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from opentelemetry import metrics, trace
from opentelemetry.metrics import Observation

from loopwatch import catalogue
from loopwatch.exemplars import Exemplars
from loopwatch.exporters.opentelemetry.limit import Limit
from loopwatch.readings import HistogramReading
from loopwatch.samples import merged, samples_of
from loopwatch.system import Event, Thread, threads_are_greenlets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from opentelemetry.metrics import Histogram, MeterProvider

    from loopwatch.catalogue import Metric
    from loopwatch.exemplars import Exemplar, Series
    from loopwatch.readings import Snapshot
    from loopwatch.samples import Sample

RECORD_SECONDS = 10.0
"""How often histograms are recorded at least."""

_FRESH_SECONDS = 0.2
"""Callbacks of one collection share a snapshot."""

_INSIDE = 1e-6
"""Values are at least this share of a bucket above its lower bound, which belongs to the bucket below."""


class OpenTelemetryExporter:
    """Puts the whole catalogue on a meter provider: ``OpenTelemetryExporter(watch.snapshot).start()``.

    ``meter_provider`` defaults to the global one, also if that is set later. ``on_failure`` hears of what goes
    wrong. Callbacks run on the SDK's threads, recording on one of its own. ``exemplars`` is where whoever knows the
    spans of requests notes them.
    """

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        meter_provider: MeterProvider | None = None,
        on_failure: Callable[[Exception], None] | None = None,
    ) -> None:
        self._snapshot, self._provider, self._on_failure = snapshot, meter_provider, on_failure
        self._histograms: dict[Metric, Histogram] = {}
        self.exemplars = Exemplars()
        self.begin_anew()

    def begin_anew(self) -> None:
        """Tell no more, as if nothing had been told yet; :meth:`start` goes on with the same instruments."""
        self.cpu_seconds = 0.0
        self.exemplars.take()
        self._limit = Limit()
        self._recorded: dict[Series, HistogramReading] = {}
        self._fresh: tuple[float, dict[Metric, list[Sample]]] = (float("-inf"), {})
        self._recording = threading.Lock()  # of the app's kind: the SDK is called meanwhile
        self._stopping: Event | None = None

    def start(self) -> None:
        """Create the instruments, the first time, and begin to tell. Safe to call twice."""
        if self._stopping is not None:
            return
        if not self._histograms:
            self._create()
        self._stopping = Event()
        if not threads_are_greenlets():  # else it records when the SDK collects
            Thread(self._record_regularly, self._stopping, name="loopwatch-opentelemetry")

    def stop(self) -> None:
        """Tell no more, after what is still to be recorded. Safe to call twice."""
        stopping, self._stopping = self._stopping, None
        if stopping is not None:
            stopping.set()

    def record(self) -> None:
        """Record what histograms have grown by since the last time. Any thread but the loop's."""
        self._take_snapshot()

    def _take_snapshot(self) -> dict[Metric, list[Sample]]:
        """Return the samples of a snapshot, of which the histograms were recorded."""
        used = time.thread_time()
        with self._recording:
            exemplars = self._take_exemplars()  # what the snapshot lacks of them yet, the next has
            samples = self._within_limit(self._snapshot())
            for metric, found in samples.items():
                if metric.kind == "histogram":
                    for values, reading in found:
                        self._record_growth((metric, values), reading, exemplars.get((metric, values), []))
            self.cpu_seconds += time.thread_time() - used
        return samples

    def _within_limit(self, snapshot: Snapshot) -> dict[Metric, list[Sample]]:
        limited = (
            (metric, [(self._limit.values(metric, values), value) for values, value in found])
            for metric, found in samples_of(snapshot)
        )
        return dict(merged([list(limited)]))

    def _take_exemplars(self) -> dict[Series, list[Exemplar]]:
        taken: dict[Series, list[Exemplar]] = {}
        for (metric, values), found in self.exemplars.take().items():
            taken.setdefault((metric, self._limit.values(metric, values)), []).extend(found)
        return taken

    def _create(self) -> None:
        provider = self._provider or metrics.get_meter_provider()
        meter = provider.get_meter("loopwatch")
        for metric in catalogue.METRICS:
            if metric.kind == "histogram":
                self._histograms[metric] = meter.create_histogram(
                    metric.name, metric.unit, metric.help, explicit_bucket_boundaries_advisory=metric.buckets
                )
            else:
                counts = metric.kind == "counter"
                create = meter.create_observable_counter if counts else meter.create_observable_gauge
                create(metric.name, [functools.partial(self._observe, metric)], metric.unit, metric.help)

    def _observe(self, metric: Metric, _options: Any) -> Iterable[Observation]:
        """Return the values of a counter or gauge. A thread of the SDK's."""
        if self._stopping is None:
            return []
        try:
            taken, samples = self._fresh
            if time.monotonic() - taken > _FRESH_SECONDS:
                samples = self._take_snapshot()
                self._fresh = time.monotonic(), samples
            return [
                Observation(value, _attributes(metric, values))
                for values, value in samples.get(metric, ())
                if not isinstance(value, HistogramReading)
            ]
        except Exception as error:
            self._fail(error)
            return []

    def _record_regularly(self, stopping: Event) -> None:
        ended = False
        while not ended:
            ended = stopping.wait(RECORD_SECONDS)
            try:
                self.record()
            except Exception as error:
                self._fail(error)

    def _record_growth(self, series: Series, reading: Any, exemplars: list[Exemplar]) -> None:
        """Record by how much a histogram has grown since the last time."""
        histogram, attributes = self._histograms[series[0]], _attributes(*series)
        before = self._recorded.get(series)
        if before is None or reading.count < before.count:  # it has begun, or begun anew
            before = replace(reading, counts=(0,) * len(reading.counts), sum=0.0)
        rest, found = _apart(reading - before, exemplars)
        told = 0.0
        for value, times in _spread(rest):
            told += value * times
            _record(histogram, value, times, attributes)
        for value, span in found:  # last: of each bucket the SDK keeps the last
            told += value
            histogram.record(value, attributes, trace.set_span_in_context(trace.NonRecordingSpan(span)))
        self._recorded[series] = replace(reading, sum=before.sum + told)

    def _fail(self, error: Exception) -> None:
        if self._on_failure is not None:
            self._on_failure(error)


def _record(histogram: Histogram, value: float, times: int, attributes: dict[str, str]) -> None:
    if times > 1 and "opentelemetry.sdk.metrics" in sys.modules:
        from loopwatch.exporters.opentelemetry import repeats  # noqa: PLC0415 # for apps that use the SDK

        repeats.record(histogram, value, times, attributes)
    else:
        for _ in range(times):
            histogram.record(value, attributes)


def _attributes(metric: Metric, values: tuple[str, ...]) -> dict[str, str]:
    return dict(zip(metric.attributes, values, strict=True))


def _apart(grown: HistogramReading, exemplars: list[Exemplar]) -> tuple[HistogramReading, list[Exemplar]]:
    """Return a histogram without those exemplars that it has in their buckets, and these."""
    counts, total, found = list(grown.counts), grown.sum, []
    for one in exemplars:
        bucket = bisect_left(grown.bounds, one.value)
        if counts[bucket]:
            counts[bucket] -= 1
            total -= one.value
            found.append(one)
    return HistogramReading(grown.bounds, tuple(counts), total), found


def _spread(grown: HistogramReading) -> Iterator[tuple[float, int]]:
    """Return a value for each bucket, and how often it occurred, such that their sum is that of the histogram."""
    *counts, above = grown.counts
    lowers = (0.0, *grown.bounds)
    least = sum(count * lower for count, lower in zip(counts, lowers, strict=False))
    widths = [upper - lower for lower, upper in zip(lowers, grown.bounds, strict=False)]
    room = sum(count * width for count, width in zip(counts, widths, strict=True))
    rest = grown.sum - least - above * lowers[-1]
    share = min(1.0, max(_INSIDE, rest / room)) if room else 0.0
    for count, lower, upper, width in zip(counts, lowers, grown.bounds, widths, strict=False):
        if count:
            yield min(lower + share * width, upper), count  # rounded, it may lie in the next bucket
    if above:
        yield lowers[-1] * (1 + _INSIDE) + max(0.0, rest - share * room) / above, above
