"""Does a million requests make the process grow? Serves them in process and prints its memory as it goes.

Run it as scripts/bench --soak. It exits with 1 if memory grew by more than 1 MB after the first tenth.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import pathlib
import resource
import sys
from typing import Any

import uvloop

from benchmarks.plan import LOOPS
from benchmarks.variants import VARIANTS, build, environ_of
from benchmarks.worker import requests

PARTS, IN_FLIGHT = 20, 16
DEF_SHARE = 10
"""One request of so many is for the function in a thread."""

LEAST = PARTS * DEF_SHARE
MOST_GROWTH_KB = 1024


def resident_kb() -> int:
    """Return the memory that the process has in RAM."""
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 1024


async def serve(app: Any, path: str, count: int) -> None:
    """Serve exactly ``count`` requests, at most 16 in flight."""
    each, further = divmod(count, IN_FLIGHT)
    await asyncio.gather(*(requests(app, path, each + (number < further)) for number in range(IN_FLIGHT)))


async def soak(app: Any, total: int) -> int:
    """Serve ``total`` requests of both kinds of route; return by how many KB the process grew after a tenth."""
    found: list[int] = []
    served = 0
    for part in range(1, PARTS + 1):
        due = total * part // PARTS - served
        await serve(app, "/async/7", due - due // DEF_SHARE)
        await serve(app, "/def/7", due // DEF_SHARE)
        served += due
        gc.collect()
        found.append(resident_kb())
        print(f"{served:>9} requests: {found[-1]} KB", flush=True)
    return found[-1] - found[PARTS // 10 - 1]


def main(arguments: list[str] | None = None) -> int:
    """Serve the requests; return the exit code."""
    parser = argparse.ArgumentParser(prog="scripts/bench --soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=1_000_000, metavar="N", help="how many (1000000)")
    parser.add_argument("--loop", choices=LOOPS, default="asyncio")
    parser.add_argument("--variant", choices=VARIANTS, default="compiled", help="what to serve (compiled)")
    options = parser.parse_args(arguments)
    if options.requests < LEAST:
        parser.error(f"--requests must be at least {LEAST}, got {options.requests}")
    os.environ.update(environ_of(options.variant))  # before loopwatch is imported, which chooses its core then
    run = uvloop.run if options.loop == "uvloop" else asyncio.run
    try:
        grown = run(soak(build(options.variant), options.requests))
    except KeyboardInterrupt:
        print("Interrupted. The lines above hold what was measured.", file=sys.stderr)
        return 130
    print(f"grown by {grown} KB after the first tenth")
    return int(grown > MOST_GROWTH_KB)


if __name__ == "__main__":
    sys.exit(main())
