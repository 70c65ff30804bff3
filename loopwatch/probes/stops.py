"""Was the whole process stopped for a while? By SIGSTOP, a debugger, or a machine that slept: that is no stall.

Nothing of such a process runs, and nothing of it waits to run: a thread that waits for a CPU or for the GIL leaves
traces. So whenever the watcher thread comes later than it should, it asks for those. Watcher thread only.
"""

from __future__ import annotations

import pathlib
import time
from collections import deque
from typing import TYPE_CHECKING

from loopwatch.histogram import NANOSECONDS
from loopwatch.probes.causes import number_in

if TYPE_CHECKING:
    from loopwatch.probes.causes import Evidence, Witness

try:
    import resource
except ImportError:  # not on Windows
    _THREAD = None
else:
    _THREAD = getattr(resource, "RUSAGE_THREAD", None)

_LATE_NS = 50_000_000
"""What comes this much too late is asked why."""

_GIL_INTERVAL_NS = 5_000_000
"""How long a thread that wants the GIL sleeps at a time, at most: CPython's default switch interval."""

_REFRESH_NS = 3 * NANOSECONDS
_MOST = 10
_HALF = 0.5
_OWN_SCHEDSTAT = pathlib.Path("/proc/thread-self/schedstat")


class Stops:
    """The latest times in which the process was stopped."""

    def __init__(self, witness: Witness) -> None:
        self._witness = witness
        self._stops: deque[tuple[int, int, int]] = deque(maxlen=_MOST)
        self._full: Evidence | None = None
        self._taken_at = self._queued = 0
        self._heard_at = time.perf_counter_ns()
        self._process_cpu = self._switches = 0

    def refresh(self, now: int, *, idle: bool) -> None:
        """Take evidence anew from time to time, so that what it tells later is of a short time.

        Files are read without the GIL, and a loop that polls all the time makes it hard to get back: so only one is
        unless the loop is ``idle``.
        """
        if now - self._taken_at > _REFRESH_NS:
            self._full, self._queued = self._witness.look() if idle else None, own_queued()
            self._taken_at = self._heard_at = time.perf_counter_ns()  # what it queued until then is counted

    def count_from(self, process_cpu: int, switches: int) -> None:
        """Take these as the process's CPU time and this thread's switches before whatever is noticed next."""
        self._process_cpu, self._switches = max(process_cpu, self._process_cpu), switches

    def notice(self, now: int, since: int | None = None, asked: int | None = None) -> bool:
        """Find out why nothing was heard of this thread between two instants; tell whether it waited for the GIL.

        ``since`` is when it last was heard of, or was to be. From ``asked`` on it may have waited for the GIL.
        """
        since = max(since or 0, self._heard_at)
        self._heard_at = now
        gap = now - since
        if gap < _LATE_NS:
            return False
        process_cpu, switches = time.process_time_ns(), own_switches()
        waited = min(now - max(since, asked or 0), (switches - self._switches) * _GIL_INTERVAL_NS)
        if gap - max(waited, process_cpu - self._process_cpu) > _LATE_NS:
            last = self._witness.look()
            first = (self._full or last)._replace(process_cpu=self._process_cpu)
            stopped = min(gap - waited, stopped_for(first, last, gap, own_queued() - self._queued))
            if stopped > _LATE_NS:
                self._stops.append((since, now, stopped))
                gap -= stopped
        self.count_from(process_cpu, switches)
        return gap >= _LATE_NS and waited > gap * _HALF

    def between(self, start: int, end: int) -> int:
        """Return for how much of a period the process was stopped, in nanoseconds."""
        return sum(
            min(stopped, max(0, min(end, until) - max(start, since))) for since, until, stopped in self._stops
        )


def own_switches() -> int:
    """Return how often the calling thread has given up its CPU by itself; 0 where that is not to be had."""
    return resource.getrusage(_THREAD).ru_nvcsw if _THREAD is not None else 0


def own_queued() -> int:
    """Return for how long the calling thread has waited for a CPU so far, in nanoseconds; 0 where nobody tells."""
    return number_in(_OWN_SCHEDSTAT, 1) or 0


def stopped_for(first: Evidence, last: Evidence, gap: int, queued: int) -> int:
    """Return for how much of ``gap`` nothing of the process ran, and nothing of it waited for a CPU.

    ``queued`` is for how long the thread that came too late did.
    """
    left = gap - (last.process_cpu - first.process_cpu) - queued
    others = 0
    for before, after in ((first.run_queue, last.run_queue), (first.withheld, last.withheld)):
        if before is not None and after is not None:
            others += after - before
    return left if others < left * _HALF else 0
