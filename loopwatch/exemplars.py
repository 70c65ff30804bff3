"""Which trace was a request in that took this long? The last sampled one for each bucket of a route's durations.

Histograms are exported from snapshots, which know no single request. So whoever has a request's span notes it here
when the request ends, and whoever exports histograms takes what was noted since the last time: never more than the
routes have buckets, however long nobody takes it.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Any, NamedTuple

from loopwatch import catalogue
from loopwatch.histogram import NANOSECONDS, bounds_in_nanoseconds

if TYPE_CHECKING:
    from loopwatch.catalogue import Metric

    Series = tuple[Metric, tuple[str, ...]]
    """A histogram of the catalogue, and the values of its attributes."""

_BOUNDS_NS = bounds_in_nanoseconds(catalogue.LATENCY_BUCKETS)
_CPU = [state.endswith("_cpu") for state in catalogue.STATES]


class Exemplar(NamedTuple):
    """A value that was observed, in seconds, and the span of the request that it was observed of.

    What a span is, only those know who note and take it.
    """

    value: float
    span: Any


class Exemplars:
    """The last exemplars of the histograms of requests."""

    def __init__(self) -> None:
        self._noted: dict[tuple[tuple[str, str], int, int], tuple[tuple[int, ...], Any]] = {}

    def note(self, labels: tuple[str, str], status_class: int, times: tuple[int, ...], span: Any) -> None:
        """Note a request that ends with these nanoseconds in each state. Loop thread."""
        self._noted[labels, status_class, bisect_left(_BOUNDS_NS, sum(times))] = times, span

    def take(self) -> dict[Series, list[Exemplar]]:
        """Return what was noted since the last time. Any thread, one at a time."""
        noted, self._noted = self._noted, {}
        taken: dict[Series, list[Exemplar]] = {}

        def add(metric: Metric, values: tuple[str, ...], nanoseconds: int, span: Any) -> None:
            taken.setdefault((metric, values), []).append(Exemplar(nanoseconds / NANOSECONDS, span))

        for (labels, status_class, _), (times, span) in list(noted.items()):  # at once: the loop may add one more
            duration = sum(times)
            cpu = sum(time for time, is_cpu in zip(times, _CPU, strict=True) if is_cpu)
            add(catalogue.REQUEST_DURATION, (*labels, f"{status_class}xx"), duration, span)
            add(catalogue.REQUEST_CPU, labels, cpu, span)
            add(catalogue.REQUEST_WAIT, labels, duration - cpu, span)
        return taken
