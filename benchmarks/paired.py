"""What does loopwatch cost within one process? It is started and stopped in turn, so that nothing else differs.

How fast the machine is at the moment, and where things lie in the process's memory, is the same for both sides.
As a command, prints one JSON object: the ratio and the A/A ratio of each route and number in flight.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import statistics
import sys
from collections import defaultdict
from typing import TYPE_CHECKING

import uvloop

from benchmarks.children import output_of
from benchmarks.plan import Columns, Plan, Progress, cell
from benchmarks.variants import bare_app, install
from benchmarks.worker import seconds_per_request

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastapi import FastAPI

CAN_BE_PAIRED = ("compiled", "pure")
"""Variants that can be stopped at once: an exporter still sends its last figures while the bare app is timed."""

WARM_UP = 64
REQUESTS = {"async": 192, "def": 96}
"""So many in a slice, some 25 ms."""

PATIENCE_SECONDS = 900


def measure(plan: Plan) -> Iterator[Progress]:
    """Measure the variants that can be paired: a column for each loop and route."""
    variants = [variant for variant in plan.variants if variant in CAN_BE_PAIRED]
    for loop in plan.loops:
        ratios: dict[tuple[str, str], list[float]] = defaultdict(list)
        for number, variant in itertools.product(range(plan.rounds), variants):
            for slices, (ratio, noise) in pairs_in_new_process(plan, variant, loop).items():
                ratios[variant, slices].append(ratio)
                ratios["again", slices].append(noise)
            medians = {key: statistics.median(found) for key, found in ratios.items()}
            done = f"{loop}: pairs of {variant}, round {number + 1} of {plan.rounds}"
            yield Progress(done, columns(plan, loop, medians))


def columns(plan: Plan, loop: str, medians: dict[tuple[str, str], float]) -> Columns:
    """Return the cells of a loop, a column for each route; variants that were not measured have none."""
    measured = {variant for variant, _ in medians}
    return {
        f"{loop}, `{route}`, one process": {
            variant: cell([medians[variant, f"{route} {at_once}"] for at_once in plan.in_flight])
            for variant in plan.variants
            if variant in measured
        }
        for route in REQUESTS
    }


def pairs_in_new_process(plan: Plan, variant: str, loop: str) -> dict[str, tuple[float, float]]:
    """Return (ratio, A/A ratio) by route and number in flight, of a new process."""
    in_flight = ",".join(map(str, plan.in_flight))
    command = [sys.executable, "-m", "benchmarks.paired", variant, loop, in_flight, str(plan.effort.pairs)]
    found: dict[str, tuple[float, float]] = json.loads(output_of(command, variant, PATIENCE_SECONDS))
    return found


async def slice_of(app: FastAPI, route: str, in_flight: int) -> float:
    """Return the seconds per request of a slice, after a few requests that are not timed."""
    await seconds_per_request(app, route, in_flight, WARM_UP)
    gc.collect(0)
    return await seconds_per_request(app, route, in_flight, REQUESTS[route])


async def pairs_of(variant: str, in_flight: list[int], pairs: int) -> dict[str, tuple[float, float]]:
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
        for number in range(pairs + 1):
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
            sys.exit(f"loopwatch did not measure {reading.route} all the time, so these figures mean nothing.")
    return found


if __name__ == "__main__":
    run = uvloop.run if sys.argv[2] == "uvloop" else asyncio.run
    print(json.dumps(run(pairs_of(sys.argv[1], [int(one) for one in sys.argv[3].split(",")], int(sys.argv[4])))))
