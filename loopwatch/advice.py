"""Has a pool of workers the right size? What it did for a while in, a suggestion with its reason out."""

from __future__ import annotations

import math
import os
import time
from typing import TYPE_CHECKING

from loopwatch.readings import Advice

if TYPE_CHECKING:
    from collections.abc import Callable

    from loopwatch.readings import PoolReading

ADVISE_SECONDS, FORGET_SECONDS = 60.0, 3600.0
"""How often the pools' sizes are judged, and by how long a past at most."""

FEWEST = 20
"""Pieces of work below which nothing is said."""

NOTICEABLE_SECONDS = 0.05
"""Time in queue, at the 95th percentile, from which on a pool is worth a word."""

_COMPUTES = 0.5
_SMALL, _STEP = 20, 10
_MOST_THREADS = 1000


class Adviser:
    """Judges all pools by what they have done of late."""

    def __init__(
        self, read: Callable[[], tuple[PoolReading, ...]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._read, self._clock = read, clock
        self._before: dict[str, PoolReading] = {}
        self._advise_at = self._forget_at = clock()

    def advice(self) -> tuple[Advice, ...]:
        """Return what is to be said now. Any thread."""
        before = self._before
        recent = (pool - before[pool.pool] if pool.pool in before else pool for pool in self._read())
        return tuple(advice for advice in map(advise, recent) if advice is not None)

    def due(self) -> tuple[Advice, ...]:
        """Return what is to be said each minute, and nothing in between; forget once an hour. One thread."""
        now = self._clock()
        advice: tuple[Advice, ...] = ()
        if now >= self._advise_at:
            self._advise_at = now + ADVISE_SECONDS
            advice = self.advice()
        if now >= self._forget_at:
            self._forget_at = now + FORGET_SECONDS
            self._before = {pool.pool: pool for pool in self._read()}
        return advice


def advise(pool: PoolReading) -> Advice | None:
    """Suggest a size for a pool, from what it did since a moment: an interval between two readings.

    While it is at its limit, as many threads are missing as there is work in its queue on average. More threads
    help work that waits; work that computes shares one GIL, whatever their number. Nothing is said of a pool whose
    limiters or executors are made anew: each has its size by design, and how many live is no setting.
    """
    if pool.is_anew:
        return None
    late = pool.queue_times.quantile(0.95)
    if pool.queue_times.count < FEWEST or late < NOTICEABLE_SECONDS or not pool.saturated:
        return None
    enough = _rounded(pool.limit + pool.queue_times.sum / pool.saturated)
    if enough <= pool.limit or not pool.run_times.count:  # what its work does is known at its end
        return None
    queue = f"{_milliseconds(pool.queue_times.quantile(0.5))} median in queue"
    if pool.cpu is None or pool.wait is None:
        suggested, what = _processes(pool.limit, enough)
        return Advice(pool.pool, pool.limit, suggested, f"{pool.limit:.0f} processes, {queue}: {what}")
    waiting = pool.wait / ((pool.cpu + pool.wait) or 1.0)
    suggested, what = _threads(enough, waiting)
    reason = f"{pool.limit:.0f} threads, {waiting:.0%} of their time waiting, {queue}: {what}"
    return Advice(pool.pool, pool.limit, suggested, reason)


def _processes(limit: float, enough: int) -> tuple[int | None, str]:
    cpus = os.cpu_count() or 1
    if limit < cpus:
        return min(enough, cpus), f"raise to about {min(enough, cpus)}"
    return None, (f"more would not help on {cpus} CPUs: submit less at a time, or move the work to other machines")


def _threads(enough: int, waiting: float) -> tuple[int | None, str]:
    if 1.0 - waiting >= _COMPUTES:
        return None, "its work computes, and threads share the GIL: run it in a process pool"
    return enough, f"raise to about {enough}, or make the route async"


def _rounded(threads: float) -> int:
    whole = round(threads)
    step = 1 if whole < _SMALL else _STEP
    return min(_MOST_THREADS, math.ceil(whole / step) * step)


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"
