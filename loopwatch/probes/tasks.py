"""How many tasks of a loop are not done? Counted so that 150,000 of them cost the loop next to nothing.

Up to CPython 3.13 :func:`asyncio.all_tasks` walks a set in Python, begins anew whenever a task is made meanwhile,
and gives up when that has happened a thousand times. Here the references in that set are copied in C, which takes
some 10 ns each, and where there are very many only some are looked at.

Relies on ``asyncio.tasks._scheduled_tasks`` and its like; see docs/what-it-relies-on.md.
"""

from __future__ import annotations

import asyncio
import random
import sys
import weakref
from asyncio import tasks
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

MOST_LOOKED_AT = 5000
"""Of more tasks so many, chosen at random, stand for all: exact where all are of this loop and not done."""

_CHOICE = random.Random()  # noqa: S311 # the app may have seeded the one that the module shares


def count_tasks(loop: asyncio.AbstractEventLoop) -> int:
    """Return how many tasks of a loop are not done; from 5,000 on to within a few per cent. Any thread."""
    references = _references()
    if references is None:
        return len(asyncio.all_tasks(loop))
    eager = _count(loop, list(getattr(tasks, "_eager_tasks", ())))  # those in their first step: from 3.12 on
    if len(references) <= MOST_LOOKED_AT:
        return eager + _count(loop, (reference() for reference in references))
    chosen = _CHOICE.sample(references, MOST_LOOKED_AT)
    share = _count(loop, (reference() for reference in chosen)) / MOST_LOOKED_AT
    return eager + round(share * len(references))


def _references() -> list[Any] | None:
    """Return weak references to all tasks but eager ones, ``None`` where these are kept in another way."""
    if sys.version_info >= (3, 14):
        return None  # C keeps them, and counts fast
    kept = getattr(tasks, "_scheduled_tasks", getattr(tasks, "_all_tasks", None))
    references = getattr(kept, "data", None)
    return list(references) if isinstance(kept, weakref.WeakSet) and isinstance(references, set) else None


def _count(loop: asyncio.AbstractEventLoop, found: Iterable[Any]) -> int:
    return sum(task is not None and not task.done() and _loop_of(task) is loop for task in found)


def _loop_of(task: Any) -> Any:
    """Return the loop of a task; an event loop may have tasks of its own, which need not say it."""
    return task.get_loop() if hasattr(task, "get_loop") else None
