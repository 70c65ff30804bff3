"""What does loopwatch cost within one process? It is started and stopped in turn, so that nothing else differs.

How fast the machine is at the moment, and where things lie in the process's memory, is the same for both sides.
Prints one JSON object: the ratio and the A/A ratio of each route and number in flight.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import statistics
import sys
from typing import TYPE_CHECKING

import uvloop

from benchmarks.variants import bare_app, install
from benchmarks.worker import seconds_of

if TYPE_CHECKING:
    from fastapi import FastAPI

PAIRS = 24
WARM_UP = 64
REQUESTS = {"async": 192, "def": 96}
"""So many in a slice, some 25 ms."""


async def slice_of(app: FastAPI, route: str, in_flight: int) -> float:
    """Return the seconds that a slice takes, after a few requests that are not timed."""
    await seconds_of(app, route, in_flight, WARM_UP)
    gc.collect(0)
    return await seconds_of(app, route, in_flight, REQUESTS[route])


async def measure(variant: str, in_flight: list[int]) -> dict[str, tuple[float, float]]:
    """Return (ratio, A/A ratio) by route and number in flight."""
    bare, watched = bare_app(), bare_app()
    watch = install(watched, variant)

    async def measured(route: str, at_once: int) -> float:
        watch.start()
        try:
            return await slice_of(watched, route, at_once)
        finally:
            watch.stop()

    found = {}
    for route, at_once in itertools.product(REQUESTS, in_flight):
        ratios, noise = [], []
        for number in range(PAIRS + 1):
            first = await slice_of(bare, route, at_once)
            one = await measured(route, at_once)
            second = await slice_of(bare, route, at_once)
            another = await measured(route, at_once)
            if number:  # the first is to warm up
                ratios.append((one + another) / (first + second))
                noise.append(second / first)
        found[f"{route} {at_once}"] = statistics.median(ratios), statistics.median(noise)
    for reading in watch.snapshot().routes:
        if sum(reading.times.values()) < sum(histogram.sum for histogram in reading.durations.values()) / 2:
            sys.exit(f"{reading.route} was not measured all the time, so these figures mean nothing.")
    return found


if __name__ == "__main__":
    run = uvloop.run if sys.argv[2] == "uvloop" else asyncio.run
    print(json.dumps(run(measure(sys.argv[1], [int(one) for one in sys.argv[3].split(",")]))))
