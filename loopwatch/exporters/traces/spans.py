"""What is told on the span of a request, and when does it really end?

Its end is put off while a stall of the request's may still be told: see :mod:`loopwatch.exporters.traces.exporter`.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from operator import add
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from loopwatch import catalogue

if TYPE_CHECKING:
    from collections.abc import Iterable

    from opentelemetry.trace import Span

    from loopwatch.readings import Hold

EVENT = "loopwatch.stall"
"""The name of the span event for a stall."""

CAUSED, SUFFERED = "caused", "suffered"
"""The role of a request in a hold: it held the loop for at least half of that, or for long enough to be a stall by
itself; or else it was due meanwhile."""

HALF = 0.5
"""The share of a hold that makes a request its cause, and of what was held or waited that holds must explain."""

_MOST_HOLDS = 128

_STATES = tuple(f"loopwatch.time.{state}" for state in catalogue.STATES)


class Told(NamedTuple):
    """A hold of a stall, and when it began and ended by the clock of the loop, in nanoseconds."""

    began: int
    ended: int
    hold: Hold

    def overlap(self, holds: Iterable[tuple[int, int]]) -> int:
        """Return for how many nanoseconds of the hold one of these lasted."""
        return sum(max(0, min(end, self.ended) - max(start, self.began)) for start, end in holds)


class Owner(Protocol):
    """Who decides over the end of a span: the exporter."""

    def on_the_loop(self) -> bool:
        """Tell whether this is the thread of the loop that is measured."""
        ...

    def forget(self, request: Any) -> None:
        """Forget a request whose span has ended, if its account is closed."""
        ...

    def put_off(self, span: RequestSpan) -> bool:
        """Tell whether the end of a span is to be put off."""
        ...

    def tell_stalls(self, span: RequestSpan) -> None:
        """Put the stalls of a request on its span, which still records."""
        ...

    def fail(self, error: Exception) -> None:
        """Report what went wrong."""
        ...


class RequestSpan:
    """The span of one request. Its ``end`` stands in for the span's own. Loop thread, but for the ends."""

    __slots__ = (
        "_end", "_owner", "_times", "ended", "ended_at", "held", "request", "settled", "span", "stands_in",
        "waited",
    )  # fmt: skip

    def __init__(self, owner: Owner, request: Any, span: Span) -> None:
        self._owner, self.request, self.span = owner, request, span
        self._times: tuple[int, ...] = ()
        self.held: deque[tuple[int, int]] = deque(maxlen=_MOST_HOLDS)
        self.waited: deque[tuple[int, int]] = deque(maxlen=_MOST_HOLDS)
        self.ended = False
        self.ended_at: int | None = None
        self.settled = False  # from then on other threads look at what was held and waited for
        self._end = span.end
        self.stands_in = True
        try:
            span.end = self.end  # type: ignore[method-assign]
        except (AttributeError, TypeError):
            self.stands_in = False

    def note(self, times: tuple[int, ...]) -> None:
        """Add the times of an account that is about to be closed, or of one message more."""
        self._times = tuple(map(add, self._times, times)) if self._times else times

    def tell_states(self) -> None:
        """Put the states on the span, if there were any."""
        self.span.set_attributes({name: time / 1e9 for name, time in zip(_STATES, self._times, strict=False)})

    def end(self, end_time: int | None = None) -> None:
        """End the span, or put that off. Any thread; mostly the loop's. Only the first call counts."""
        if self.ended:
            if self.ended_at is None:
                self._end(end_time)  # to whoever made the span: it has ended already
            return
        self.ended = True
        try:
            if self.span.is_recording() and self._close(end_time):
                return
        except Exception as error:
            self._owner.fail(error)
        self.ended_at = None
        self._release()
        self._end(end_time)

    def really_end(self) -> None:
        """End the span as of the instant at which that was asked for. The thread of the exporter."""
        try:
            self._owner.tell_stalls(self)
        finally:
            self._release()
            self._end(self.ended_at)

    def is_explained(self, recent: Iterable[Told]) -> bool:
        """Tell whether a stall was told for every time at which the loop was held or waited for. Any thread."""
        return all(
            sum(told.overlap([hold]) for told in recent) >= HALF * (hold[1] - hold[0])
            for hold in (*self.held, *self.waited)
        )

    def _close(self, end_time: int | None) -> bool:
        """Put on the span what is known; tell whether its end is put off."""
        request = self.request
        self.ended_at = end_time if end_time is not None else time.time_ns()  # first: the rest takes time
        if request is not None and request.is_open():
            self.note(request.read_now() if self._owner.on_the_loop() else request.read())
        self.settled = True
        self.tell_states()
        self._owner.forget(request)
        if self._owner.put_off(self):
            return True
        self._owner.tell_stalls(self)
        return False

    def _release(self) -> None:
        """Give the span its own end back, so that neither keeps the other alive. Never raises."""
        self.request = None
        with contextlib.suppress(AttributeError, TypeError):  # whatever stood in the way of setting it
            if self.span.end == self.end:
                del self.span.end


def attributes_of(hold: Hold, role: str) -> dict[str, str | int | float]:
    """Return what the event of a stall says of a hold, without anything of the request but its route."""
    known: dict[str, str | int | float] = {
        "loopwatch.stall.role": role,
        "loopwatch.stall.cause": hold.cause,
        "loopwatch.stall.duration": hold.duration,
        "loopwatch.stall.remedy": hold.remedy,
        "loopwatch.stall.call": hold.call,
    }
    if hold.route is not None:
        known["loopwatch.stall.holder"] = hold.holder  # else a task's name, which may say anything
    if hold.function:
        known["code.function.name"] = hold.function.replace(":", ".", 1)
        known["code.file.path"] = hold.filename
        known["code.line.number"] = hold.lineno
    # Else it is on the span of the request that caused it: victims may be many, and stacks are long.
    if hold.stack and (role == CAUSED or hold.route is None):
        known["code.stacktrace"] = "\n".join(hold.stack)
    return known
