"""How long does a request take with each variant, without a server? One process each, in turns."""

from __future__ import annotations

import itertools
import statistics
import sys
from collections import defaultdict
from typing import TYPE_CHECKING

from benchmarks.children import Worker
from benchmarks.plan import Columns, Plan, Progress, cell

if TYPE_CHECKING:
    from collections.abc import Iterator

WARM_UP_IN_FLIGHT = 4


def measure(plan: Plan) -> Iterator[Progress]:
    """Measure each variant's time per request, in parts of the bare app's: a column for each loop and route.

    Each round has processes of its own: where things come to lie in memory makes one some percent slower than the
    next, whatever it runs.
    """
    for loop in plan.loops:
        ratios: dict[tuple[str, str, int], list[float]] = defaultdict(list)
        for number in range(plan.rounds):
            for key, ratio in one_round(plan, loop).items():
                ratios[key].append(ratio)
            medians = {key: statistics.median(found) for key, found in ratios.items()}
            yield Progress(f"{loop}: round {number + 1} of {plan.rounds}", columns(plan, loop, medians))
        for route, in_flight in itertools.product(plan.effort.requests, plan.in_flight):
            row = "  ".join(f"{variant} {medians[variant, route, in_flight]:.3f}" for variant in plan.variants)
            print(f"{loop} {route} {in_flight:>2} in flight: {row}", file=sys.stderr, flush=True)


def columns(plan: Plan, loop: str, medians: dict[tuple[str, str, int], float]) -> Columns:
    """Return the cells of a loop, a column for each route."""
    return {
        f"{loop}, `{route}`": {
            variant: cell([medians[variant, route, in_flight] for in_flight in plan.in_flight])
            for variant in plan.variants
        }
        for route in plan.effort.requests
    }


def one_round(plan: Plan, loop: str) -> dict[tuple[str, str, int], float]:
    """Start a process for each variant; return the ratios by variant, route and number in flight."""
    workers = {variant: Worker(variant, loop) for variant in plan.variants}
    for worker, route in itertools.product(workers.values(), plan.effort.requests):
        worker.ask(route, WARM_UP_IN_FLIGHT, plan.effort.warm_up)
    found = {
        (variant, route, in_flight): ratio
        for route, in_flight in itertools.product(plan.effort.requests, plan.in_flight)
        for variant, ratio in ratios_of(plan, workers, route, in_flight).items()
    }
    for worker in workers.values():
        worker.end()
    return found


def ratios_of(plan: Plan, workers: dict[str, Worker], route: str, in_flight: int) -> dict[str, float]:
    """Time slices of all variants in turn; return the median of each variant's ratios to the bare app."""
    variants = list(plan.variants)
    times: dict[str, list[float]] = {variant: [] for variant in variants}
    for number in range(plan.effort.slices):
        turn = number % len(variants)
        for variant in variants[turn:] + variants[:turn]:
            times[variant].append(workers[variant].ask(route, in_flight, plan.effort.requests[route]))
    return {
        variant: statistics.median(a / b for a, b in zip(times[variant], times["bare"], strict=True))
        for variant in variants
    }
