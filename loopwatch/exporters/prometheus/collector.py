"""How does a snapshot become metric families? Through a collector: one for a watch, or one for all in a process."""

from __future__ import annotations

import threading
import weakref
from abc import abstractmethod
from typing import TYPE_CHECKING, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from loopwatch import catalogue
from loopwatch.samples import merged, samples_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prometheus_client import CollectorRegistry
    from prometheus_client import Metric as Family

    from loopwatch.catalogue import Metric
    from loopwatch.readings import Snapshot
    from loopwatch.samples import Sample, Samples


def _family(metric: Metric, samples: Iterable[Sample]) -> Family:
    name, labels = metric.prometheus_name, metric.labels
    if metric.kind == "histogram":
        bounds = [*(str(bound) for bound in metric.buckets), "+Inf"]
        histogram = HistogramMetricFamily(name, metric.help, labels=labels)
        for values, reading in samples:
            buckets = list(zip(bounds, reading.cumulative(), strict=True))  # type: ignore[union-attr] # by kind
            histogram.add_metric(values, buckets, reading.sum)  # type: ignore[union-attr] # by kind
        return histogram
    make = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = make(name, metric.help, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)  # type: ignore[arg-type] # a number, by kind
    return family


class _CatalogueCollector(Collector):
    """Collects the metrics of the catalogue."""

    @abstractmethod
    def samples(self) -> Samples:
        """Return the present samples of each metric."""

    def collect(self) -> Iterable[Family]:
        """Return the families. Runs on the thread that renders, never on the loop."""
        return [_family(metric, samples) for metric, samples in self.samples()]

    def describe(self) -> Iterable[Family]:
        """Return the families without samples; the registry uses them to find names used twice."""
        return [_family(metric, ()) for metric in catalogue.METRICS]


class LoopWatchCollector(_CatalogueCollector):
    """Turns the snapshots of one watch into metric families.

    Users who keep a registry of their own register one there: ``LoopWatchCollector(watch.snapshot)``.
    """

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self._snapshot = snapshot

    def samples(self) -> Samples:
        """Return the samples of one snapshot."""
        return list(samples_of(self._snapshot()))


class Source(Protocol):
    """Something that is told of: a watch's exporter."""

    def read(self) -> Samples:
        """Return its samples, none where that fails. Any thread."""
        ...


class Gathering(_CatalogueCollector):
    """All watches whose metrics are in one registry: to Prometheus, several loops in several threads are one.

    Counters and histograms are added up; of lag the worst is told. What a watch has counted that has ended stays in
    the sum as long as another goes on: a counter never falls.
    """

    def __init__(self) -> None:
        self._registered = False
        self.keeps = False
        """Whether what ended watches have counted is kept even when no other goes on."""
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forget all watches, as in a child process that was forked. The registry is left as it is."""
        self._lock = (
            threading.RLock()
        )  # of joining and leaving; the app's registry is called meanwhile, and a finalizer may run
        self._sources: tuple[Source, ...] = ()
        self._ended: dict[int, Samples] = {}
        self._gone: Samples = []
        self._followed: weakref.WeakSet[Source] = weakref.WeakSet()

    @classmethod
    def of(cls, registry: CollectorRegistry) -> Gathering:
        """Return the one of a registry."""
        return _GATHERINGS.setdefault(registry, cls())

    def join(self, source: Source, registry: CollectorRegistry) -> None:
        """Tell of one more watch. Any thread.

        Raises:
            ValueError: somebody else's metrics in the registry have these names.

        """
        with self._lock:
            if not self._registered:
                try:
                    registry.register(self)
                    self._registered = True
                except ValueError:
                    raise ValueError(
                        "the registry has metrics of these names already, which are not loopwatch's. "
                        "Register LoopWatchCollector(watch.snapshot) in a registry of your own"
                    ) from None
            self._sources = (*self._sources, source)
            self._ended.pop(id(source), None)  # it goes on where it was

    def leave(self, source: Source, registry: CollectorRegistry) -> None:
        """Tell no more of a watch. Any thread."""
        with self._lock:
            self._sources = tuple(one for one in self._sources if one is not source)
            if not self._sources:
                self._registered = False
                registry.unregister(self)
            if self._sources or self.keeps:
                self._ended[id(source)] = [one for one in source.read() if one[0].kind != "gauge"]
                if source not in self._followed:  # it may be started and stopped many times
                    self._followed.add(source)
                    weakref.finalize(source, self._fold, id(source)).atexit = False
            else:
                self._ended, self._gone = {}, []

    def _fold(self, key: int) -> None:
        """Keep what a watch has counted that nobody can start again. Any thread."""
        with self._lock:
            self._gone = merged([self._gone, self._ended.pop(key, [])])

    def samples(self) -> Samples:
        """Return the samples of all watches together."""
        sources, ended = self._sources, [self._gone, *self._ended.copy().values()]
        if len(sources) == 1 and not any(ended):
            return sources[0].read()
        return merged([*ended, *(source.read() for source in sources)])


_GATHERINGS: weakref.WeakKeyDictionary[CollectorRegistry, Gathering] = weakref.WeakKeyDictionary()
