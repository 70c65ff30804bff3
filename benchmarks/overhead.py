"""What does each instrumentation cost? One process a variant, interleaved, ratios to the bare app, with an A/A row.

Run it as scripts/bench; nothing else should run on the machine meanwhile. Three parts: ``process`` times requests
without a server, ``wrk`` measures the throughput of uvicorn, and ``instructions`` counts what valgrind executes.
"""

from __future__ import annotations

import argparse
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
REQUESTS = {"async": 8000, "def": 4000}
"""Some 0.4 s of them: threads that work beside the loop, as watchers do, must have their part in it."""

LOOPS = ("asyncio", "uvloop")


class Worker:
    """A process that serves one variant, and waits to be asked."""

    def __init__(self, variant: str, loop: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", variant, loop],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ_of(variant),
        )  # fmt: skip
        if self._process.stdout.readline() != "ready\n":
            sys.exit(f"The variant {variant!r} did not start; what it printed stands above.")

    def ask(self, route: str, in_flight: int, requests: int) -> float:
        """Return microseconds per request."""
        self._process.stdin.write(f"{route} {in_flight} {requests}\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def stop(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def measure(loop: str, variants: list[str], rounds: int) -> dict[tuple[str, str], tuple[float, float]]:
    """Return the lowest and highest median ratio over the numbers in flight, by variant and route."""
    workers = {variant: Worker(variant, loop) for variant in variants}
    ratios: dict[tuple[str, str], list[float]] = {}
    for worker in workers.values():
        for route in REQUESTS:
            worker.ask(route, 4, 500)
    for route, requests in REQUESTS.items():
        for in_flight in IN_FLIGHT:
            times: dict[str, list[float]] = {variant: [] for variant in variants}
            for number in range(rounds):
                turn = number % len(variants)
                for variant in variants[turn:] + variants[:turn]:
                    times[variant].append(workers[variant].ask(route, in_flight, requests))
            for variant in variants:
                pairs = zip(times[variant], times["bare"], strict=True)
                ratios.setdefault((variant, route), []).append(statistics.median(a / b for a, b in pairs))
            row = "  ".join(f"{variant} {ratios[variant, route][-1]:.3f}" for variant in variants)
            print(f"{loop} {route} {in_flight:>2} in flight: {row}", file=sys.stderr, flush=True)
    for worker in workers.values():
        worker.stop()
    return {key: (min(found), max(found)) for key, found in ratios.items()}


def process(variants: list[str], rounds: int) -> list[tuple[str, dict[str, str]]]:
    """Time requests in process; return a column of cells for each loop and route."""
    columns = []
    for loop in LOOPS:
        measured = measure(loop, variants, rounds)
        for route in REQUESTS:
            spans = {variant: measured[variant, route] for variant in variants}
            cells = {variant: f"{low:.2f} to {high:.2f}" for variant, (low, high) in spans.items()}
            columns.append((f"{loop}, `{route}`", cells))
    return columns


def wrk(variants: list[str], rounds: int) -> list[tuple[str, dict[str, str]]]:
    """Measure the throughput of uvicorn with each variant; return a column of cells for each loop."""
    return [(f"{loop}, wrk", throughput.measure(loop, variants, rounds)) for loop in LOOPS]


def count(variants: list[str], _rounds: int) -> list[tuple[str, dict[str, str]]]:
    """Count instructions; return one column of cells."""
    return [("instructions", instructions.measure(variants))]


PARTS = {"process": process, "wrk": wrk, "instructions": count}
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
    parser.add_argument("--rounds", type=int, default=15, help="rounds whose median is taken (15)")
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
