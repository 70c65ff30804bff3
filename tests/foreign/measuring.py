"""Has loopwatch measure each event loop of this process, from its first run until it is closed."""

from __future__ import annotations

import asyncio
import functools
import weakref

import uvloop

from loopwatch import LoopWatch

_loops: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()
_watches: list[LoopWatch] = []
totals = {"loops": 0, "iterations": 0, "failures": {}}
"""How many loops were measured and what came of it, as of the last :func:`add_up`."""


def measure_every_loop():
    """Start a watch for each loop just before it runs.

    A step of ours on the loop would be seen by tests that count its steps, so the loop counts as running a moment
    before it does: :meth:`LoopWatch.start` measures the running loop.
    """
    for kind in (asyncio.BaseEventLoop, uvloop.Loop):
        kind.run_forever = _measured(kind.run_forever)


def _measured(run_forever):
    @functools.wraps(run_forever)
    def measured_run_forever(loop):
        if loop not in _loops and not loop.is_closed() and asyncio._get_running_loop() is None:
            add_up()
            _loops.add(loop)
            _watches.append(LoopWatch())
            asyncio._set_running_loop(loop)
            try:
                _watches[-1].start()
            finally:
                asyncio._set_running_loop(None)
        return run_forever(loop)

    return measured_run_forever


def add_up():
    """Add up what was measured on the loops that have been closed."""
    for watch in [one for one in _watches if one.loop is None]:
        _watches.remove(watch)
        reading = watch.snapshot()
        totals["loops"] += 1
        totals["iterations"] += (reading.loop and reading.loop.iterations) or 0
        for part, count in reading.dropped.items():
            totals["failures"][part] = totals["failures"].get(part, 0) + count
