"""How does a stall get into the log? One record for each culprit, and a count of those that were held back.

A pool in which nothing ends, and one that is too small, are told of here too.

Runs on the thread that calls listeners: handlers may block.
"""

from __future__ import annotations

import itertools
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from loopwatch.readings import Advice, Hold, PoolStall, Stall

_AGAIN_SECONDS = 60.0
"""After this long a culprit is named again."""

_MOST_PER_PERIOD = 20
"""Records in :data:`_AGAIN_SECONDS`, of all culprits together."""

_MOST_CULPRITS = 1000
_MOST_STACKS, _MOST_LINES = 10, 30
_ADVISE_SECONDS = 3600.0
_SAME_SECONDS = 0.05

_FIELDS = ("duration", "route", "method", "task", "cause", "function", "filename", "lineno", "call", "remedy")

logger = logging.getLogger("loopwatch")


@dataclass
class _Culprit:
    logged_at: float
    held_back: int = 0


class StallLog:
    """Writes stalls to logger ``loopwatch`` as warnings, their fields as ``extra``: ``stall_route`` and so on.

    A stall has a record for its longest hold, and for each other of at least ``least_seconds``.
    """

    def __init__(self, least_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._least, self._clock = least_seconds, clock
        self._culprits: dict[tuple[str | None, ...], _Culprit] = {}
        self._early: tuple[float, Hold] | None = None
        self._period = (float("-inf"), 0)
        self._held_back = 0
        self._advised: dict[str, float] = {}

    def hear(self, stall: Stall) -> None:
        """Log a stall that has ended."""
        for number, hold in enumerate(stall.holds):
            if (number == 0 or hold.duration >= self._least) and not self._was_early(stall, hold):
                self._log(hold, str(hold))

    def hear_early(self, stall: Stall) -> None:
        """Log a stall that still lasts; who has held the loop for the longest is not logged again at its end."""
        self._early = stall.started_at, stall.holds[0]
        self._log(stall.holds[0], f"{stall.holds[0]} (and still does)")

    def hear_pool_stall(self, stall: PoolStall) -> None:
        """Log a pool in which nothing ends, with the stacks of its threads."""
        stacks = "".join(f"; thread {number}: {_written(stack)}" for number, stack in _numbered(stall.stacks))
        fields = {f"pool_{name}": getattr(stall, name) for name in ("duration", "limit", "queued", "remedy")}
        logger.warning("loopwatch: %s%s", stall, stacks, extra={**fields, "pool_name": stall.pool})

    def hear_advice(self, advice: Advice) -> None:
        """Log what size a pool should have, at most once an hour for each pool."""
        now = self._clock()
        if now - self._advised.get(advice.pool, float("-inf")) < _ADVISE_SECONDS:
            return
        self._advised[advice.pool] = now
        fields = {"pool_name": advice.pool, "pool_limit": advice.limit, "pool_suggested": advice.suggested}
        logger.warning("loopwatch: %s", advice, extra=fields)

    def _was_early(self, stall: Stall, hold: Hold) -> bool:
        """Tell whether a hold was logged while it lasted. Its line may have changed since."""
        if self._early is None:
            return False
        started_at, early = self._early
        return abs(started_at - stall.started_at) < _SAME_SECONDS and (hold.route, hold.method, hold.task) == (
            early.route, early.method, early.task
        )  # fmt: skip

    def _log(self, hold: Hold, text: str) -> None:
        now = self._clock()
        key = hold.route, hold.method, hold.function
        known = self._culprits.get(key)
        if not self._may_log(known, now):
            if known is not None:
                known.held_back += 1
            else:
                self._held_back += 1
            return
        held_back = known.held_back if known is not None else 0
        if len(self._culprits) >= _MOST_CULPRITS:
            self._culprits.clear()
        self._culprits[key] = _Culprit(now)
        if held_back:
            text += f" [{held_back} more like it since it was last logged]"
        if self._held_back:
            text += f" [{self._held_back} stalls of other culprits were not logged]"
            self._held_back = 0
        fields = {f"stall_{name}": getattr(hold, name) for name in _FIELDS}
        logger.warning("loopwatch: %s", text, extra={**fields, "stall_held_back": held_back})

    def _may_log(self, known: _Culprit | None, now: float) -> bool:
        if known is not None and now - known.logged_at < _AGAIN_SECONDS:
            return False
        since, count = self._period
        if now - since >= _AGAIN_SECONDS:
            since, count = now, 0
        self._period = since, count + 1
        return count < _MOST_PER_PERIOD


def _numbered(stacks: tuple[tuple[str, ...], ...]) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Number the stacks, each that occurs several times once."""
    return enumerate(itertools.islice(dict.fromkeys(stacks), _MOST_STACKS), 1)


def _written(stack: tuple[str, ...]) -> str:
    """Return a stack in one line, of which the innermost are what matters."""
    shown = stack[-_MOST_LINES:]
    return " > ".join(shown if len(shown) == len(stack) else ("…", *shown))
