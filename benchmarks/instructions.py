"""How many instructions does a request execute with each variant? No other load changes this figure.

It is an upper bound for what measures time: below valgrind all takes some fifty times longer, so that short steps
are booked as long ones are, and watchers look more often during a request.
"""

from __future__ import annotations

import asyncio
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING

from benchmarks.children import BenchmarkError, output_of
from benchmarks.plan import Plan, Progress
from benchmarks.variants import build
from benchmarks.worker import requests

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastapi import FastAPI

MARK = "ctermid"
"""A function of the C library that only :func:`serve` calls. Valgrind writes down its count at each call."""

PATIENCE_SECONDS = 1800


def executed(variant: str, warm_up: int, count: int) -> int:
    """Return the instructions that valgrind counts while a process serves ``count`` requests."""
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "callgrind"
        output_of(
            ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", f"--dump-before={MARK}", "-q",
             "--instr-atstart=no",
             sys.executable, "-m", "benchmarks.instructions", variant, str(warm_up), str(count)],
            variant, PATIENCE_SECONDS, {"PYTHONHASHSEED": "0"},
        )  # fmt: skip
        between_marks = out.with_name("callgrind.2")
        counted = between_marks.read_text() if between_marks.exists() else ""
    total = re.search(r"^(?:summary|totals): (\d+)", counted, re.MULTILINE)
    if total is None:
        raise BenchmarkError(f"valgrind did not notice the calls of {MARK}() by the variant {variant!r}.")
    return int(total[1])


def measure(plan: Plan) -> Iterator[Progress]:
    """Count each variant's instructions per request, in parts of the bare app's: one column."""
    warm_up, count = plan.effort.counted
    per_request: dict[str, float] = {}
    for variant in plan.variants:
        per_request[variant] = executed(variant, warm_up, count) / count
        cells = {variant: f"{found / per_request['bare']:.3f}" for variant, found in per_request.items()}
        yield Progress(f"{variant}: {per_request[variant]:.0f} instructions a request", {"instructions": cells})


def count_from_now_on() -> None:
    """Have valgrind begin to count: with imports counted too, a process would take six times longer to start."""
    command = ["vgdb", f"--pid={os.getpid()}", "instrumentation", "on"]
    with tempfile.TemporaryFile("w+") as printed:
        vgdb = subprocess.Popen(command, stdout=printed, stderr=printed)
        while vgdb.poll() is None:  # not wait(): valgrind obeys only while this process executes something
            pass
        if vgdb.returncode != 0:
            printed.seek(0)
            sys.exit(f"{' '.join(command)} failed with {vgdb.returncode}: {printed.read()}")


async def serve(app: FastAPI, warm_up: int, count: int) -> None:
    """Serve the requests to warm up, and between two marks those that are counted."""
    await requests(app, "/async/7", warm_up)
    os.ctermid()
    await requests(app, "/async/7", count)
    os.ctermid()


if __name__ == "__main__":
    built = build(sys.argv[1])
    count_from_now_on()
    asyncio.run(serve(built, int(sys.argv[2]), int(sys.argv[3])))
