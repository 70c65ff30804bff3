"""Who held the loop during a stall, each for how long? Long steps and samples in, holds out, as they followed.

The core knows each long step of a request to the microsecond; what lies between these is known by samples alone. A
fact about one hold is never combined with one about another. Any thread.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from itertools import groupby, pairwise
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Sequence

    from loopwatch.hot import Request
    from loopwatch.probes.frames import Sample

    Step = tuple[int, int, int, Request]
    """When a step of a request began and ended, its CPU time, and whose it was; nanoseconds."""

_LEAST_NS = 1_000_000
"""A shorter time between two holds is nobody's."""

_AT = attrgetter("at")
_WITHIN = 0.5
"""A step belongs to the stall in which so much of it lies."""


class Seen(NamedTuple):
    """What was seen of the loop's thread at one instant, and on whose behalf that was."""

    at: int
    request: Request | None
    task: str | None
    sample: Sample

    @property
    def holder(self) -> Hashable:
        """What samples of one hold have in common."""
        return self.request if self.request is not None else self.task or self.sample.culprit.function


class Holding(NamedTuple):
    """One hold: from when to when, whose, and what was seen of it; ``cpu`` where the core has timed it."""

    start: int
    end: int
    request: Request | None
    cpu: int | None
    seen: tuple[Seen, ...]

    @property
    def length(self) -> int:
        """Nanoseconds."""
        return self.end - self.start

    def blamed(self) -> Seen | None:
        """Return one of what was seen: of the function and call seen most often, and of these the most frequent."""
        places = Counter(_place(one) for one in self.seen)
        if not places:
            return None
        most = places.most_common(1)[0][0]
        alike = Counter((one.task, one.sample) for one in self.seen if _place(one) == most).most_common(1)[0][0]
        return next(one for one in self.seen if (one.task, one.sample) == alike)


def _place(seen: Seen) -> tuple[str, str]:
    return seen.sample.culprit.function, seen.sample.call


def within(steps: Iterable[Step], start: int, end: int) -> list[Step]:
    """Return the steps of which the most lies between two instants, in their order."""
    found = [step for step in steps if _overlap(step, start, end) > _WITHIN * (step[1] - step[0])]
    return sorted(found, key=lambda step: step[0])


def holdings(start: int, end: int, steps: Sequence[Step], seen: Sequence[Seen]) -> list[Holding]:
    """Return the holds of a stall as they followed, and time of which nothing is known left out.

    ``steps`` are those :func:`within` it; ``seen`` is in its order.
    """
    found: list[Holding] = []
    at = start
    for began, ended, cpu, request in steps:
        found += _between(at, began, seen)
        its = tuple(one for one in _cut(seen, began, ended) if one.request is request)
        found.append(Holding(began, ended, request, cpu, its))
        at = max(at, ended)
    found += _between(at, end, seen)
    return _joined(found)


def _cut(seen: Sequence[Seen], start: int, end: int) -> Sequence[Seen]:
    return seen[bisect_left(seen, start, key=_AT) : bisect_right(seen, end, key=_AT)]


def _overlap(step: Step, start: int, end: int) -> int:
    return max(0, min(step[1], end) - max(step[0], start))


def _between(start: int, end: int, seen: Sequence[Seen]) -> Iterator[Holding]:
    """Divide time that no long step took among those who were seen in it, half-way between two samples."""
    if end - start < _LEAST_NS:
        return
    runs = [list(run) for _, run in groupby(_cut(seen, start, end), lambda one: one.holder)]
    if not runs:
        return
    borders = [start, *((before[-1].at + after[0].at) // 2 for before, after in pairwise(runs)), end]
    for run, (since, until) in zip(runs, pairwise(borders), strict=True):
        yield Holding(since, until, run[0].request, None, tuple(run))


def _joined(found: list[Holding]) -> list[Holding]:
    """Join what one request did in steps that followed at once, unless these were seen in different functions."""
    joined: list[Holding] = []
    for one in found:
        last = joined[-1] if joined else None
        if (
            last is not None
            and one.request is not None
            and last.request is one.request
            and one.start - last.end < _LEAST_NS
            and len(_functions(last) | _functions(one)) <= 1
        ):
            cpu = None if last.cpu is None or one.cpu is None else last.cpu + one.cpu
            joined[-1] = Holding(last.start, one.end, one.request, cpu, last.seen + one.seen)
        else:
            joined.append(one)
    return joined


def _functions(holding: Holding) -> set[str]:
    return {one.sample.culprit.function for one in holding.seen}
