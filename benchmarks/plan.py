"""What is measured, and how much of it? The options of a run, and what its parts report."""

from __future__ import annotations

import dataclasses
import statistics
from typing import NamedTuple, TypeAlias

Columns: TypeAlias = dict[str, dict[str, str]]
"""The columns of the table: a cell for each variant, by heading."""

LOOPS = ("asyncio", "uvloop")
IN_FLIGHT = (1, 4, 16, 64)


@dataclasses.dataclass(frozen=True)
class Effort:
    """How much work one round is."""

    slices: int = 6
    requests: dict[str, int] = dataclasses.field(default_factory=lambda: {"async": 768, "def": 320})
    """Requests in a slice of each route, some 0.1 s: short, as the machine is now fast and now slow, and yet long
    enough for threads that work beside the loop, as watchers do, to have their part in it."""

    warm_up: int = 1000
    pairs: int = 24
    wrk_seconds: int = 2
    counted: tuple[int, int] = (300, 600)
    """Requests below valgrind: those to warm up, and those that are counted."""


FULL = Effort()
QUICK = Effort(slices=2, requests={"async": 64, "def": 64}, warm_up=64, pairs=2, wrk_seconds=1, counted=(10, 30))
"""Shows that everything works; the figures are no measurement."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """The options of a run."""

    variants: tuple[str, ...]
    rounds: int
    loops: tuple[str, ...] = LOOPS
    in_flight: tuple[int, ...] = IN_FLIGHT
    effort: Effort = FULL


class Progress(NamedTuple):
    """What a part reports as each of its rounds ends."""

    done: str
    columns: Columns
    """Made of all rounds so far."""


def cell(medians: list[float]) -> str:
    """Put together what was found for all numbers in flight: the median, and the lowest and the highest."""
    return f"{statistics.median(medians):.2f} ({min(medians):.2f} to {max(medians):.2f})"
