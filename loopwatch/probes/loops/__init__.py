"""When is the loop busy, and when idle? One clock for each kind of loop, chosen by what the loop can tell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loopwatch.probes.loops.heartbeat import HeartbeatClock
from loopwatch.probes.loops.libuv import LibuvClock
from loopwatch.probes.loops.selector import SelectorClock

if TYPE_CHECKING:
    import asyncio

    from loopwatch.config import Config
    from loopwatch.failures import Failures
    from loopwatch.probes.loops.base import LoopClock


def choose(loop: asyncio.AbstractEventLoop, config: Config, failures: Failures) -> LoopClock:
    """Return the best clock for ``loop``; its ``reason`` says why."""
    stall = config.stall_seconds
    if SelectorClock.supports(loop):
        return SelectorClock(loop, failures, stall_seconds=stall)
    if LibuvClock.supports(loop):
        return LibuvClock(loop, failures, stall_seconds=stall)
    return HeartbeatClock(loop, failures, stall_seconds=stall, interval_seconds=config.heartbeat_seconds)
