"""What do all loop clocks have in common? A reading up to this instant, also after the clock was stopped."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from loopwatch.catalogue import LOOP_LAG
from loopwatch.histogram import NANOSECONDS, LagHistogram
from loopwatch.probes.tasks import count_tasks
from loopwatch.readings import LoopReading

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from loopwatch.failures import Failures
    from loopwatch.hot import Stage

WINDOW_SECONDS = 60
MOST_STALLS = 1000


class RecentWorst:
    """The longest busy period that ended during the last minute. Written by one thread, read by any.

    One slot a second; what is older than :data:`WINDOW_SECONDS` is overwritten or passed over.
    """

    __slots__ = ("_seconds", "_slots")

    def __init__(self) -> None:
        self._slots = [0] * (WINDOW_SECONDS + 1)
        self._seconds = [-WINDOW_SECONDS - 1] * (WINDOW_SECONDS + 1)

    def add(self, busy: int, now: int) -> int:
        """Add a period of ``busy`` nanoseconds that ended at ``now``; return when its slot ends."""
        second = now // NANOSECONDS
        slot = second % len(self._slots)
        if self._seconds[slot] != second or busy > self._slots[slot]:
            self._slots[slot], self._seconds[slot] = busy, second
        return (second + 1) * NANOSECONDS

    def read(self, now: int) -> int:
        """Return the longest period of the last minute, in nanoseconds."""
        oldest = now // NANOSECONDS - WINDOW_SECONDS
        recent = (worst for worst, second in zip(self._slots, self._seconds, strict=True) if second >= oldest)
        return max(recent, default=0)


def _do_nothing() -> None:
    pass


class LoopClock(ABC):
    """Measures one event loop. ``start`` and ``stop`` run on the loop's thread, ``read`` on any."""

    name: str
    reason: str
    lives_by_looks = False
    """Whether what it tells is the finer, the more often it is looked at."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        failures: Failures,
        clock: Callable[[], int] | None = None,
        stall_seconds: float = 0.1,
    ) -> None:
        self._loop = loop
        self._failures = failures
        self._clock = clock
        self._now = clock or time.perf_counter_ns
        self._lag = LagHistogram(LOOP_LAG.buckets)
        self._worst = RecentWorst()
        self._stall_ns = round(stall_seconds * NANOSECONDS)
        self.stalls: deque[tuple[int, int]] = deque(maxlen=MOST_STALLS)
        """When stalls ended (by the clock) and how long they were, in nanoseconds; the watcher takes them out."""
        self._final: LoopReading | None = None
        self._failed = False
        self.on_closed: Callable[[], None] = _do_nothing
        """Called where the clock notices by itself that its loop is being closed. The closing thread."""

    @abstractmethod
    def start(self, stage: Stage) -> None:
        """Begin to measure, and tell ``stage`` since when those that wait can have been due. Loop thread."""

    @abstractmethod
    def stop(self) -> None:
        """Restore what was changed; :meth:`read` goes on to return the last reading. Safe to call twice."""

    @abstractmethod
    def _read(self) -> LoopReading:
        """Return everything but the number of tasks, which may take a while to count."""

    def read(self) -> LoopReading | None:
        """Return everything up to now, the present period included; ``None`` if that fails. Any thread."""
        if self._failed or self._final is not None:
            return self._final
        try:
            return replace(self._read(), tasks=count_tasks(self._loop))
        except Exception as error:
            self._failures.report("loop clock", error, "a reading of the loop is missing")
            return None

    def _freeze(self) -> None:
        """Keep the last reading for those who ask after the end. What holds the loop meanwhile ends with it."""
        held = self.look() if self._loop.is_running() else 0
        if held:
            self._note_stall(held, self._now())
        self._final = self.read()
        self._failed = self._final is None

    def look(self) -> int:
        """Return for how many nanoseconds the loop has been busy without a poll; 0 while it idles. Watcher thread.

        What must be looked at regularly is done on the way.
        """
        return 0 if self._failed or self._final is not None else self._look_now()

    @abstractmethod
    def _look_now(self) -> int: ...

    def lookout(self) -> Any:
        """Return what watches the loop without the GIL, ``None`` where nothing does. Loop thread, once started."""
        return None

    def look_back(self, seen: list[tuple[int, ...]]) -> None:
        """Take in what a lookout has seen: time, length of the busy period, and four more. Watcher thread."""

    def _add(self, busy: int, now: int, periods: int = 1) -> None:
        """Add busy periods that have ended."""
        self._lag.add(busy, periods)
        self._note_stall(busy, now)

    def _note_stall(self, busy: int, now: int) -> None:
        if busy >= self._stall_ns:
            self.stalls.append((now, busy))

    def note_step(self, length: int) -> None:
        """Hear of a step that held the loop for ``length`` nanoseconds. Loop thread."""

    def _fail(self, error: Exception) -> None:
        self._failed = True
        self._failures.report("loop clock", error, "the loop is no longer measured")
        self.stop()

    def _reading(
        self, now: int, busy: int, idle: int, iterations: int | None, current: int, lag: LagHistogram
    ) -> LoopReading:
        """Put a reading together; nanoseconds, ``current`` being the part of ``busy`` that is in progress."""
        return LoopReading(
            busy=busy / NANOSECONDS,
            idle=idle / NANOSECONDS,
            iterations=iterations,
            lag=lag.read(idle, current),
            lag_max=max(self._worst.read(now), current) / NANOSECONDS,
            tasks=0,
            responsive_at=time.time() - current / NANOSECONDS,
        )
