"""What does each instrumentation cost? One process a variant, interleaved, ratios to the bare app, with an A/A row.

Run it as scripts/bench; nothing else should run on the machine meanwhile. Four parts: ``process`` times requests
without a server, ``paired`` loopwatch alone, switched on and off in one process, ``wrk`` measures the throughput of
uvicorn, and ``instructions`` counts what valgrind executes.

Everything that can be wrong is checked before the first round. Each round's figures are printed as it ends, and the
table of all finished rounds also where the benchmark is interrupted or fails.
"""

from __future__ import annotations

import argparse
import pathlib
import shutil
import sys
import tempfile
from typing import TYPE_CHECKING

from benchmarks import in_process, instructions, paired, throughput
from benchmarks.children import BenchmarkError, Interrupted, Worker, end_all, raise_on_signals
from benchmarks.plan import FULL, IN_FLIGHT, LOOPS, QUICK, Columns, Plan, Progress
from benchmarks.variants import VARIANTS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

README = pathlib.Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- benchmark -->\n", "<!-- end of benchmark -->\n"

PARTS: dict[str, Callable[[Plan], Iterator[Progress]]] = {
    "process": in_process.measure,
    "paired": paired.measure,
    "wrk": throughput.measure,
    "instructions": instructions.measure,
}
NEEDS = {"wrk": {"wrk": "wrk"}, "instructions": {"valgrind": "valgrind", "vgdb": "valgrind"}}
"""The commands that a part calls, and the package of each."""


def table(variants: Collection[str], columns: Columns) -> str:
    """Return a Markdown table; a cell without a figure is empty."""
    lines = ["| times the bare app | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for variant in variants:
        cells = ["1" if variant == "bare" else cells.get(variant, "") for cells in columns.values()]
        lines.append(f"| {VARIANTS[variant]} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def with_table(text: str, found: str) -> str:
    """Return the text of the README with a new table between its two markers."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise BenchmarkError(f"It has no lines {BEGIN.strip()} and {END.strip()} for the table to stand between.")
    return before + begin + found + end + after


def check_file(file: pathlib.Path) -> None:
    """Raise where the table cannot be written into a file."""
    try:
        with file.open("r+") as opened:
            with_table(opened.read(), "")
    except (OSError, UnicodeDecodeError, BenchmarkError) as error:
        raise BenchmarkError(f"--write cannot write the table into {file}: {error}") from error


def check_variants(plan: Plan) -> None:
    """Start every variant once and let it answer; raise with the reasons of those that do not."""
    reasons = {}
    with tempfile.TemporaryDirectory() as folder:
        workers = {}
        for variant in plan.variants:
            with (pathlib.Path(folder) / variant).open("w") as errors:
                workers[variant] = Worker(variant, plan.loops[0], errors)
        for variant, worker in workers.items():
            try:
                for route in plan.effort.requests:
                    worker.ask(route, 1, 1)
            except BenchmarkError as error:
                lines = (pathlib.Path(folder) / variant).read_text().strip().splitlines()
                reasons[variant] = lines[-1] if lines else str(error)
            worker.end()
    if reasons:
        found = "".join(f"\n  {variant}: {reason}" for variant, reason in reasons.items())
        raise BenchmarkError(f"Nothing was measured, as these variants do not run:{found}\nSee --help.")


def options_of(arguments: list[str] | None) -> tuple[Plan, list[str], pathlib.Path | None]:
    """Return what to measure, by which parts, and the file to write into. Exit where an option is wrong."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--rounds",
        type=int,
        default=15,
        metavar="N",
        help="rounds whose median is taken, each in new processes (15)",
    )
    parser.add_argument(
        "--variants",
        default=",".join(VARIANTS),
        metavar="A,B",
        help=f"bare first, and of {', '.join(VARIANTS)} (all)",
    )
    parser.add_argument("--parts", default=",".join(PARTS), metavar="A,B", help=f"of {', '.join(PARTS)} (all)")
    parser.add_argument("--loops", default=",".join(LOOPS), metavar="A,B", help=f"of {', '.join(LOOPS)} (all)")
    parser.add_argument(
        "--in-flight", default=",".join(map(str, IN_FLIGHT)), metavar="N,M",
        help="numbers of requests in flight, for process and paired (1,4,16,64)",
    )  # fmt: skip
    parser.add_argument(
        "--quick", action="store_true", help="little work, to see that it runs; the figures mean nothing"
    )
    parser.add_argument(
        "--write", nargs="?", type=pathlib.Path, const=README, metavar="FILE",
        help="write the table between the two markers of a file (README.md)",
    )  # fmt: skip
    options = parser.parse_args(arguments)

    def some_of(option: str, given: str, known: Collection[str]) -> list[str]:
        names = given.split(",")
        if set(names) - set(known) or len(set(names)) < len(names):
            parser.error(f"{option} takes any of {', '.join(known)}, each once, got {given!r}")
        return names

    variants = some_of("--variants", options.variants, VARIANTS)
    parts = some_of("--parts", options.parts, PARTS)
    loops = some_of("--loops", options.loops, LOOPS)
    if variants[0] != "bare" or len(variants) == 1:
        parser.error(f"--variants takes 'bare' and then at least one other, got {options.variants!r}")
    if options.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {options.rounds}")
    in_flight = options.in_flight.split(",")
    if not all(one.isdecimal() and int(one) for one in in_flight) or len(set(in_flight)) < len(in_flight):
        parser.error(f"--in-flight takes numbers of 1 or more, each once, got {options.in_flight!r}")
    if "paired" in parts and not set(variants) & set(paired.CAN_BE_PAIRED):
        able = " or ".join(paired.CAN_BE_PAIRED)
        parser.error(f"paired measures {able} only: name one in --variants, or leave paired out of --parts")
    if options.write and options.quick:
        parser.error("--write takes figures that mean something: leave out --quick")
    for part in parts:
        for binary, package in NEEDS.get(part, {}).items():
            if shutil.which(binary) is None:
                parser.error(f"{part} needs {binary}: apt-get install {package}, or leave {part} out of --parts")
    effort = QUICK if options.quick else FULL
    plan = Plan(tuple(variants), options.rounds, tuple(loops), tuple(map(int, in_flight)), effort)
    return plan, parts, options.write


def run(plan: Plan, parts: list[str], columns: Columns) -> None:
    """Run the parts; keep in ``columns`` what was measured so far, and print it as each round ends."""
    for part in parts:
        for done, so_far in PARTS[part](plan):
            columns.update(so_far)
            print(done, file=sys.stderr)
            for heading, cells in so_far.items():
                row = "  ".join(f"{variant} {cell}" for variant, cell in cells.items() if variant != "bare")
                print(f"    {heading}: {row or 'nothing to compare yet'}", file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Measure and print the table; return the exit code."""
    plan, parts, file = options_of(arguments)
    raise_on_signals()
    columns: Columns = {}
    try:
        if file is not None:
            check_file(file)
        check_variants(plan)
        run(plan, parts, columns)
        if file is not None:
            file.write_text(with_table(file.read_text(), table(plan.variants, columns)))
    except BenchmarkError as error:
        print(error, file=sys.stderr)
        return 1
    except Interrupted as interrupted:
        finished = "The table holds the rounds that were finished." if columns else "No round was finished."
        print(f"Interrupted by {interrupted}. {finished}", file=sys.stderr)
        return interrupted.exit_code
    finally:
        end_all()
        if columns:
            print(table(plan.variants, columns), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
