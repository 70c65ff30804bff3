"""asyncio's own loop: when is it busy, when idle? Exactly, from both ends of every ``select``.

Relies on ``loop._selector``, a private attribute of asyncio's selector loops; see docs/what-it-relies-on.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loopwatch.hot import Lookout, TimedSelect
from loopwatch.probes.loops.base import LoopClock
from loopwatch.probes.patch import Patch
from loopwatch.system import sleep

if TYPE_CHECKING:
    import asyncio

    from loopwatch.hot import Stage
    from loopwatch.readings import LoopReading

_READ_ATTEMPTS = 1000


class SelectorClock(LoopClock):
    """Times every iteration, through a :class:`~loopwatch.core.TimedSelect` in place of the selector's own."""

    name = "selector"
    reason = "asyncio's loop lets both ends of every iteration be timed"

    _select: Any = None
    _patch: Patch | None = None

    @staticmethod
    def supports(loop: asyncio.AbstractEventLoop) -> bool:
        """Tell whether ``loop`` polls through a selector that can be wrapped."""
        selector = getattr(loop, "_selector", None)
        takes_attributes = type(selector).__dictoffset__ != 0
        return callable(getattr(selector, "select", None)) and takes_attributes

    def start(self, stage: Stage) -> None:
        """Wrap the selector's ``select``. Loop thread."""
        selector = self._loop._selector  # type: ignore[attr-defined] # noqa: SLF001 # see the module
        self._select = TimedSelect(selector.select, stage, self._add_long, self._worst.add, self._fail, self._clock)
        self._patch = Patch(selector, "select", self._select.select)

    def stop(self) -> None:
        """Put back the ``select`` that was found. A wrapper that came on top of ours is left alone."""
        patch, self._patch = self._patch, None
        if patch is not None:
            patch.remove()
            self._freeze()
            self._select.switch_off()

    def lookout(self) -> Any:
        """Return what reads the beginning of the busy period from where the select keeps it."""
        if Lookout is None or self._clock is not None:
            return None
        lookout = Lookout()
        lookout.watch_selector(self._select, self._select.since_address())
        return lookout

    def _add_long(self, busy: int) -> None:
        self._add(busy, self._now())

    def _look_now(self) -> int:
        since: int = self._select.read()[0]
        return max(0, self._now() - since) if since > 0 else 0

    def _read(self) -> LoopReading:
        for _ in range(_READ_ATTEMPTS):
            before = self._select.read()
            lag = self._lag.copy()
            if before[0] and before == self._select.read():
                break
            sleep(0)  # the loop thread is changing the figures: let it finish
        since, busy, idle, iterations, short_squares = before
        lag.add_short(busy - lag.total_ns, short_squares)
        now = self._now()
        current = max(0, now - since) if since > 0 else 0
        idle += max(0, now + since) if since < 0 else 0
        return self._reading(now, busy + current, idle, iterations, current, lag)
