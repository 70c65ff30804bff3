"""A loop that tells nothing of itself: how late is a callback that was due at a known time?

A beat that comes late stands for every event that would have been late with it (coordinated omission), so its
lateness counts as one busy period of that length. Shorter busy periods between two beats stay unseen, so busy
time is a lower bound. This is the only clock that wakes an idle loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loopwatch.histogram import NANOSECONDS
from loopwatch.probes.loops.base import LoopClock

if TYPE_CHECKING:
    import asyncio

    from loopwatch.hot import Stage
    from loopwatch.readings import LoopReading


class HeartbeatClock(LoopClock):
    """Measures the lateness of a regular callback. Written on the loop thread."""

    name = "heartbeat"
    reason = "nothing but a heartbeat is to be had from this kind of loop"

    def __init__(self, *loop_and_failures: Any, interval_seconds: float, **clock: Any) -> None:
        super().__init__(*loop_and_failures, **clock)
        self._interval = round(interval_seconds * NANOSECONDS)
        self._started = 0
        # (when the next beat is due, busy time up to the last one, lag): one object, so that readers see it whole
        self._progress = (0, 0, self._lag)
        self._beat: asyncio.TimerHandle | None = None

    def start(self, stage: Stage) -> None:
        """Begin to beat. Loop thread. When anything was due is not to be had from a heartbeat."""
        del stage
        self._started = self._now()
        self._schedule(0, self._lag)

    def stop(self) -> None:
        """Cancel the next beat."""
        beat, self._beat = self._beat, None
        if beat is None:
            return
        beat.cancel()
        self._freeze()

    def _schedule(self, busy: int, lag: Any) -> None:
        self._progress = (self._now() + self._interval, busy, lag)
        self._beat = self._loop.call_later(self._interval / NANOSECONDS, self._on_beat)

    def _on_beat(self) -> None:
        try:
            now = self._now()
            due, busy, lag = self._progress
            late = max(0, now - due)
            lag = lag.copy()
            lag.add(late)
            self._note_stall(late, now)
            self._worst.add(late, now)
            self._schedule(busy + late, lag)
        except Exception as error:
            self._fail(error)

    def _look_now(self) -> int:
        return max(0, self._now() - self._progress[0])

    def _read(self) -> LoopReading:
        due, busy, lag = self._progress
        now = self._now()
        late = max(0, now - due)
        idle = max(0, now - self._started - busy - late)
        return self._reading(now, busy + late, idle, None, late, lag)
