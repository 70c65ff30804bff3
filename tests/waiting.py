"""Wait until something is true, on a loop or in a thread, for so long at most: no test stands for ever."""

from __future__ import annotations

import asyncio
import time

PATIENCE_SECONDS = 30
_PAUSE_SECONDS = 0.005


async def until(ready, what, seconds=PATIENCE_SECONDS):
    """Let the loop go on until ``ready()`` is true, and return that; fail with ``what`` was waited for."""
    deadline = time.monotonic() + seconds
    while not (result := ready()):
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        await asyncio.sleep(_PAUSE_SECONDS)
    return result


def blocking_until(ready, what, seconds=PATIENCE_SECONDS):
    """Block the thread until ``ready()`` is true, and return that; fail with ``what`` was waited for."""
    deadline = time.monotonic() + seconds
    while not (result := ready()):
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(_PAUSE_SECONDS)
    return result
