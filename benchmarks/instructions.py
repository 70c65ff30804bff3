"""How many instructions does a request execute with each variant? No other load changes this figure.

It is an upper bound for what measures time: below valgrind all takes some fifty times longer, so that short steps
are booked as long ones are, and watchers look more often during a request.
"""

from __future__ import annotations

import asyncio
import pathlib
import re
import subprocess
import sys
import tempfile

from benchmarks.variants import build, environ_of
from benchmarks.worker import requests

FEW, MANY = 300, 900


def executed(variant: str, count: int) -> int:
    """Return what valgrind counts of a process that serves ``count`` requests."""
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "callgrind"
        subprocess.run(
            ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", "-q",
             sys.executable, "-m", "benchmarks.instructions", variant, str(count)],
            env={**environ_of(variant), "PYTHONHASHSEED": "0"}, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        return int(re.search(r"^(?:summary|totals): (\d+)", out.read_text(), re.MULTILINE).group(1))


def measure(variants: list[str]) -> dict[str, str]:
    """Return each variant's instructions per request, in parts of the bare app's."""
    per_request = {}
    for variant in variants:
        per_request[variant] = (executed(variant, MANY) - executed(variant, FEW)) / (MANY - FEW)
        print(f"{variant}: {per_request[variant]:.0f} instructions a request", file=sys.stderr, flush=True)
    return {variant: f"{count / per_request['bare']:.3f}" for variant, count in per_request.items()}


if __name__ == "__main__":
    asyncio.run(requests(build(sys.argv[1]), "/async/7", int(sys.argv[2])))
