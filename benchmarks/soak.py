"""Does a million requests make the process grow? Serves them in process and prints its memory as it goes.

Run it as scripts/bench --soak. It exits with 1 if memory grew by more than 1 MB after the first tenth.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import pathlib
import resource
import sys
from typing import Any

import uvloop

from benchmarks.variants import build
from benchmarks.worker import requests

PARTS, IN_FLIGHT = 20, 16
MOST_GROWTH_KB = 1024


def resident_kb() -> int:
    """Return the memory that the process has in RAM."""
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 1024


async def soak(app: Any, total: int) -> int:
    """Serve ``total`` requests of both kinds of route; return by how many KB the process grew after a tenth."""
    found = []
    for part in range(PARTS):
        for path, share in (("/async/7", 9), ("/def/7", 1)):
            count = total * share // (10 * PARTS * IN_FLIGHT)
            await asyncio.gather(*(requests(app, path, count) for _ in range(IN_FLIGHT)))
        gc.collect()
        found.append(resident_kb())
        print(f"{total * (part + 1) // PARTS:>9} requests: {found[-1]} KB", flush=True)
    return found[-1] - found[PARTS // 10 - 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=1_000_000, help="how many (1000000)")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    parser.add_argument("--variant", default="compiled", help="compiled, or bare for comparison")
    options = parser.parse_args()
    run = uvloop.run if options.loop == "uvloop" else asyncio.run
    grown = run(soak(build(options.variant), options.requests))
    print(f"grown by {grown} KB after the first tenth")
    sys.exit(grown > MOST_GROWTH_KB)


if __name__ == "__main__":
    main()
