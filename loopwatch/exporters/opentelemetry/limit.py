"""How many attribute sets may an instrument have? Fewer than OpenTelemetry's limit; further ones are one.

Beyond the limit, 2,000 by default, the SDK counts everything as ``otel.metric.overflow``, without attributes.
Source: the OpenTelemetry specification, "Metrics SDK", "Cardinality limits".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from loopwatch.catalogue import OTHERS

if TYPE_CHECKING:
    from loopwatch.catalogue import Metric

MOST_SETS = 1900
"""The sets that keep their values. With :data:`loopwatch.catalogue.OTHERS` an instrument has some dozens more."""


class Limit:
    """Remembers which attribute sets each metric has: the first stay, so that no counter ever falls."""

    def __init__(self) -> None:
        self._known: dict[Metric, set[tuple[str, ...]]] = {}

    def values(self, metric: Metric, values: tuple[str, ...]) -> tuple[str, ...]:
        """Return the attributes' values under which to export these. Any thread, one at a time."""
        known = self._known.setdefault(metric, set())
        if values in known:
            return values
        if len(known) < MOST_SETS:
            known.add(values)
            return values
        return tuple(OTHERS.get(name, value) for name, value in zip(metric.attributes, values, strict=True))
