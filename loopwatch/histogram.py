"""How is lag distributed over fixed buckets, weighted by time? What is only counted, the core counts itself."""

from __future__ import annotations

from bisect import bisect_left

from loopwatch.readings import HistogramReading

NANOSECONDS = 1_000_000_000

VIRTUAL_ARRIVALS_PER_SECOND = 1000
"""How many events a time-weighted histogram imagines to become ready in each second."""


def bounds_in_nanoseconds(bounds: tuple[float, ...]) -> list[int]:
    """Convert bounds in seconds to whole nanoseconds."""
    return [round(bound * NANOSECONDS) for bound in bounds]


def counted(bounds: tuple[float, ...], counts: tuple[int, ...], total_ns: int) -> HistogramReading:
    """Return a reading of what was counted one by one."""
    return HistogramReading(bounds, counts, total_ns / NANOSECONDS)


class LagHistogram:
    """Weights lag by time: how long would an event wait that becomes ready at a random instant?

    An event that becomes ready during a busy period waits for its end, so a period of length ``d`` spends
    ``max(0, min(d, b) - a)`` seconds in bucket ``(a, b]``, and idle time counts as no lag. Which bucket gets how
    much follows from the number and the total length of the periods that *end* in each bucket, so adding a
    period is three additions, whatever its length.

    The count is in virtual arrivals, so that ``histogram_quantile`` works unchanged.
    """

    __slots__ = ("_bounds", "_bounds_ns", "_lengths", "_longest", "_periods", "_squares")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._bounds_ns = bounds_in_nanoseconds(bounds)
        self._periods = [0] * (len(bounds) + 1)
        self._lengths = [0] * (len(bounds) + 1)
        self._squares = 0.0
        self._longest = 0

    def add(self, busy_ns: int, periods: int = 1) -> None:
        """Add ``periods`` busy periods of ``busy_ns`` nanoseconds each."""
        bucket = bisect_left(self._bounds_ns, busy_ns)
        self._periods[bucket] += periods
        self._lengths[bucket] += busy_ns * periods
        self._squares += busy_ns * busy_ns * periods
        self._longest = max(self._longest, busy_ns)

    def copy(self) -> LagHistogram:
        """Return a copy that a reader can work on while the original goes on."""
        copy = LagHistogram(self._bounds)
        copy._periods, copy._lengths, copy._squares = list(self._periods), list(self._lengths), self._squares
        copy._longest = self._longest
        return copy

    def add_short(self, busy_ns: int, squares: float) -> None:
        """Add many periods at once, each within the first bucket: their total length and sum of squares."""
        self._lengths[0] += busy_ns
        self._squares += squares
        self._longest = max(
            self._longest, min(busy_ns, self._bounds_ns[0])
        )  # which of them was longest is not known

    @property
    def total_ns(self) -> int:
        """The length of all periods together."""
        return sum(self._lengths)

    def read(self, idle_ns: int, current_ns: int = 0) -> HistogramReading:
        """Return the lag of all periods added, of one still in progress, and of ``idle_ns`` without lag.

        All in nanoseconds. As ``current_ns`` only grows until that period is added, no bucket ever shrinks.
        """
        periods, lengths = list(self._periods), list(self._lengths)
        current = bisect_left(self._bounds_ns, current_ns)
        periods[current] += 1
        lengths[current] += current_ns
        squares = self._squares + current_ns * current_ns

        longer = sum(periods)
        lower, seen_ns, arrivals, counts = 0, idle_ns, 0, []
        for bucket, upper in enumerate([*self._bounds_ns, 0]):
            longer -= periods[bucket]
            seen_ns += lengths[bucket] - lower * periods[bucket] + (upper - lower) * longer
            total = seen_ns * VIRTUAL_ARRIVALS_PER_SECOND // NANOSECONDS
            counts.append(total - arrivals)
            arrivals, lower = total, upper
        lag_sum = squares / 2 / NANOSECONDS**2 * VIRTUAL_ARRIVALS_PER_SECOND
        longest = max(self._longest, current_ns) / NANOSECONDS
        return HistogramReading(self._bounds, tuple(counts), lag_sum, longest)
