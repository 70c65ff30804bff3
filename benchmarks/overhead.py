"""What does each instrumentation cost? One process a variant, interleaved, ratios to the bare app, with an A/A row.

Run it as scripts/bench; nothing else should run on the machine meanwhile. Four parts: ``process`` times requests
without a server, ``paired`` loopwatch alone, switched on and off in one process, ``wrk`` measures the throughput of
uvicorn, and ``instructions`` counts what valgrind executes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import pathlib
import shutil
import statistics
import subprocess
import sys

from benchmarks import instructions, throughput
from benchmarks.variants import VARIANTS, environ_of

README = pathlib.Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- benchmark -->\n", "<!-- end of benchmark -->\n"
IN_FLIGHT = (1, 4, 16, 64)
SLICES = 6
REQUESTS = {"async": 768, "def": 320}
"""So many in a slice, some 0.1 s: short, as the machine is now fast and now slow, and yet long enough for threads
that work beside the loop, as watchers do, to have their part in it."""

LOOPS = ("asyncio", "uvloop")
PAIRED = ("compiled", "pure")
"""Those that can be stopped at once: an exporter still tells what is left while the bare app is timed."""


class Worker:
    """A process that serves one variant, and waits to be asked."""

    def __init__(self, variant: str, loop: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", variant, loop],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ_of(variant),
        )  # fmt: skip
        self._variant = variant

    def warm_up(self) -> None:
        """Wait until it is there, and let it serve what each route needs at first."""
        if self._process.stdout.readline() != "ready\n":
            sys.exit(f"The variant {self._variant!r} did not start; what it printed stands above.")
        for route in REQUESTS:
            self.ask(route, 4, 1000)

    def ask(self, route: str, in_flight: int, requests: int) -> float:
        """Return microseconds per request."""
        self._process.stdin.write(f"{route} {in_flight} {requests}\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def stop(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def measure(loop: str, variants: list[str], rounds: int) -> dict[tuple[str, str], list[float]]:
    """Return the median ratio for each number in flight, by variant and route.

    Each round has processes of its own: where things come to lie in memory makes one some percent slower than the
    next, whatever it runs.
    """
    ratios: dict[tuple[str, str, int], list[float]] = {}
    for number in range(rounds):
        workers = {variant: Worker(variant, loop) for variant in variants}
        for worker in workers.values():
            worker.warm_up()
        for route, in_flight in itertools.product(REQUESTS, IN_FLIGHT):
            for variant, ratio in ratios_of(workers, route, in_flight).items():
                ratios.setdefault((variant, route, in_flight), []).append(ratio)
        for worker in workers.values():
            worker.stop()
        print(f"{loop}: round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    medians = {key: statistics.median(found) for key, found in ratios.items()}
    for route, in_flight in itertools.product(REQUESTS, IN_FLIGHT):
        row = "  ".join(f"{variant} {medians[variant, route, in_flight]:.3f}" for variant in variants)
        print(f"{loop} {route} {in_flight:>2} in flight: {row}", file=sys.stderr, flush=True)
    return {
        (variant, route): [medians[variant, route, in_flight] for in_flight in IN_FLIGHT]
        for variant, route in itertools.product(variants, REQUESTS)
    }


def cell(medians: list[float]) -> str:
    """Put together what was found for all numbers in flight: the median, and the lowest and the highest."""
    return f"{statistics.median(medians):.2f} ({min(medians):.2f} to {max(medians):.2f})"


def ratios_of(workers: dict[str, Worker], route: str, in_flight: int) -> dict[str, float]:
    """Time slices of all variants in turn; return the median of each variant's ratios to the bare app."""
    variants = list(workers)
    times: dict[str, list[float]] = {variant: [] for variant in variants}
    for number in range(SLICES):
        turn = number % len(variants)
        for variant in variants[turn:] + variants[:turn]:
            times[variant].append(workers[variant].ask(route, in_flight, REQUESTS[route]))
    return {
        variant: statistics.median(a / b for a, b in zip(times[variant], times["bare"], strict=True))
        for variant in variants
    }


def process(variants: list[str], rounds: int) -> list[tuple[str, dict[str, str]]]:
    """Time requests in process; return a column of cells for each loop and route."""
    columns = []
    for loop in LOOPS:
        measured = measure(loop, variants, rounds)
        for route in REQUESTS:
            cells = {variant: cell(measured[variant, route]) for variant in variants}
            columns.append((f"{loop}, `{route}`", cells))
    return columns


def paired(variants: list[str], rounds: int) -> list[tuple[str, dict[str, str]]]:
    """Time loopwatch's variants, started and stopped in turn within one process; return columns of cells."""
    columns = []
    for loop in LOOPS:
        ratios: dict[tuple[str, str], list[float]] = {}
        for number, variant in itertools.product(range(rounds), [one for one in variants if one in PAIRED]):
            for cell, (ratio, noise) in ask_paired(variant, loop).items():
                ratios.setdefault((variant, cell), []).append(ratio)
                ratios.setdefault(("again", cell), []).append(noise)
            print(f"{loop}: pairs of {variant}, {number + 1} of {rounds}", file=sys.stderr, flush=True)
        for route in REQUESTS:
            cells = dict.fromkeys(variants, "")
            for variant in sorted({variant for variant, _ in ratios}):
                medians = [statistics.median(ratios[variant, f"{route} {at_once}"]) for at_once in IN_FLIGHT]
                cells[variant] = cell(medians)
                row = "  ".join(f"{median:.3f}" for median in medians)
                print(f"{loop} {route} {variant}, {IN_FLIGHT} in flight: {row}", file=sys.stderr, flush=True)
            columns.append((f"{loop}, `{route}`, one process", cells))
    return columns


def ask_paired(variant: str, loop: str) -> dict[str, tuple[float, float]]:
    """Return (ratio, A/A ratio) by route and number in flight, of a new process."""
    arguments = [sys.executable, "-m", "benchmarks.paired", variant, loop, ",".join(map(str, IN_FLIGHT))]
    done = subprocess.run(arguments, env=environ_of(variant), check=True, stdout=subprocess.PIPE)
    found: dict[str, tuple[float, float]] = json.loads(done.stdout)
    return found


def wrk(variants: list[str], rounds: int) -> list[tuple[str, dict[str, str]]]:
    """Measure the throughput of uvicorn with each variant; return a column of cells for each loop."""
    return [(f"{loop}, wrk", throughput.measure(loop, variants, rounds)) for loop in LOOPS]


def count(variants: list[str], _rounds: int) -> list[tuple[str, dict[str, str]]]:
    """Count instructions; return one column of cells."""
    return [("instructions", instructions.measure(variants))]


PARTS = {"process": process, "paired": paired, "wrk": wrk, "instructions": count}
NEEDS = {"wrk": "wrk", "instructions": "valgrind"}


def table(variants: list[str], columns: list[tuple[str, dict[str, str]]]) -> str:
    """Return a Markdown table."""
    lines = [
        "| times the bare app | " + " | ".join(head for head, _ in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for variant in variants:
        cells = [cells[variant] if variant != "bare" else "1" for _, cells in columns]
        lines.append(f"| {VARIANTS[variant]} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rounds", type=int, default=15, help="rounds whose median is taken, each in new processes (15)"
    )
    parser.add_argument("--variants", default=",".join(VARIANTS), help="which to measure, bare first (all)")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)} (all)")
    parser.add_argument("--write", action="store_true", help="write the table into the README")
    options = parser.parse_args()
    variants, parts = options.variants.split(","), options.parts.split(",")
    if set(variants) - set(VARIANTS) or variants[0] != "bare" or options.rounds < 1:
        parser.error(f"--variants takes 'bare' and then any of {', '.join(VARIANTS)}; --rounds at least 1")
    if set(parts) - set(PARTS):
        parser.error(f"--parts takes any of {', '.join(PARTS)}")
    for part in parts:
        if part in NEEDS and shutil.which(NEEDS[part]) is None:
            parser.error(f"{part} needs {NEEDS[part]}: apt-get install {NEEDS[part]}, or leave it out of --parts")
    found = table(variants, [column for part in parts for column in PARTS[part](variants, options.rounds)])
    print(found)
    if options.write:
        before, _, rest = README.read_text().partition(BEGIN)
        README.write_text(before + BEGIN + found + END + rest.partition(END)[2])


if __name__ == "__main__":
    main()
