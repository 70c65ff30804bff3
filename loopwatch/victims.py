"""Which route lost how much time to which? A bounded number of pairs by name, all others as one."""

from __future__ import annotations

from loopwatch.catalogue import OTHERS, ROUTE

MOST_PAIRS = 200
"""How many pairs of a process have labels of their own."""

MATTERS_NS = 1_000_000_000
"""A pair gets labels of its own when it has lost this much in all, and keeps them."""

MOST_CANDIDATES = 2000
"""How many pairs without labels are remembered, to find those that lose enough."""

_OTHERS = OTHERS[ROUTE], OTHERS["blocker"]


class Victims:
    """The nanoseconds that each pair of routes has lost: (who waited, who held the loop).

    Written on the loop thread, read on any. No figure ever falls: what a pair lost before it got labels of its own
    stays with the others'. Where there are too many candidates, those that lost less than the average are forgotten
    and begin anew.
    """

    def __init__(self) -> None:
        self._lost: dict[tuple[str, str], int] = {}
        self._candidates: dict[tuple[str, str], int] = {}

    def __len__(self) -> int:
        """Return how many pairs have figures, the one that stands for all others included. Any thread."""
        return len(self._lost)

    def add(self, pair: tuple[str, str], lost: int) -> None:
        """Add what the first of a pair lost to the second, in nanoseconds."""
        if pair not in self._lost and not self._is_to_be_named(pair, lost):
            pair = _OTHERS
        self._lost[pair] = self._lost.get(pair, 0) + lost

    def read(self) -> dict[tuple[str, str], int]:
        """Return the nanoseconds of each pair. Any thread."""
        return self._lost.copy()

    def _is_to_be_named(self, pair: tuple[str, str], lost: int) -> bool:
        if len(self._lost) - (_OTHERS in self._lost) >= MOST_PAIRS:
            self._candidates.clear()
            return False
        in_all = self._candidates.pop(pair, 0) + lost
        if in_all >= MATTERS_NS:
            return True
        if len(self._candidates) >= MOST_CANDIDATES:
            average = sum(self._candidates.values()) / len(self._candidates)
            self._candidates = {one: ns for one, ns in self._candidates.items() if ns > average}
        self._candidates[pair] = in_all
        return False
