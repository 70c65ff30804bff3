"""What do tests of apps, and of loopwatch, need? Time that they own, and work whose cost they know."""

from __future__ import annotations

import time

from loopwatch.histogram import NANOSECONDS


class FakeClock:
    """A clock that moves only when told to. Pass it as ``clock=``; it counts nanoseconds."""

    def __init__(self, start_ns: int = NANOSECONDS) -> None:
        self.now = start_ns

    def __call__(self) -> int:
        """Return the time in nanoseconds."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass."""
        self.now += round(seconds * NANOSECONDS)


def block_loop(seconds: float) -> float:
    """Sleep in the kernel, as a call to a blocking driver does; return the seconds that it took."""
    started = time.perf_counter()
    time.sleep(seconds)
    return time.perf_counter() - started


def burn_cpu(seconds: float) -> float:
    """Compute until this thread has used ``seconds`` of CPU; return the wall seconds that it took."""
    started, end = time.perf_counter(), time.thread_time() + seconds
    while time.thread_time() < end:
        pass
    return time.perf_counter() - started
