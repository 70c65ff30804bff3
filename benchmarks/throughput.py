"""How many requests a second does uvicorn serve with each variant, by ``wrk``? One process each, in turns."""

from __future__ import annotations

import re
import socket
import statistics
import sys
import time
from typing import TYPE_CHECKING

from benchmarks.children import ANSWER_SECONDS, BenchmarkError, end, output_of, start
from benchmarks.plan import Plan, Progress

if TYPE_CHECKING:
    from collections.abc import Iterator

CONNECTIONS = 16
WARM_UP_SECONDS = 1


class Server:
    """uvicorn with one variant, on a port of its own."""

    def __init__(self, variant: str, loop: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self._variant = variant
        self._process = start(
            [sys.executable, "-m", "uvicorn", "benchmarks.served:app", "--loop", loop, "--port", str(self._port),
             "--log-level", "error", "--no-access-log"],
            variant,
        )  # fmt: skip

    def wait_until_it_answers(self) -> None:
        """Wait until the server accepts connections."""
        deadline = time.monotonic() + ANSWER_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise BenchmarkError(f"The variant {self._variant!r} did not start. Its output stands above.")
            time.sleep(0.1)

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._port)) == 0

    def requests_per_second(self, seconds: int) -> float:
        """Have wrk load the server for so many seconds."""
        url = f"http://127.0.0.1:{self._port}/async/7"
        command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", url]
        printed = output_of(command, self._variant, seconds + ANSWER_SECONDS)
        rate = re.search(r"Requests/sec:\s+([0-9.]+)", printed)
        if "Non-2xx" in printed or rate is None or float(rate[1]) == 0:
            raise BenchmarkError(f"The variant {self._variant!r} did not answer {url} as it should:\n{printed}")
        return float(rate[1])

    def end(self) -> None:
        """End the process."""
        end(self._process)


def measure(plan: Plan) -> Iterator[Progress]:
    """Measure the throughput of each variant, in parts of the bare app's: a column for each loop."""
    for loop in plan.loops:
        ratios: dict[str, list[float]] = {variant: [] for variant in plan.variants}
        for number in range(plan.rounds):
            rates = one_round(plan, loop, turn=number % len(plan.variants))
            for variant, rate in rates.items():
                ratios[variant].append(rate / rates["bare"])
            cells = {variant: f"{statistics.median(found):.2f}" for variant, found in ratios.items()}
            yield Progress(f"{loop}: wrk, round {number + 1} of {plan.rounds}", {f"{loop}, wrk": cells})


def one_round(plan: Plan, loop: str, turn: int) -> dict[str, float]:
    """Start a server for each variant; return the requests per second of each.

    Each round has new processes: how one happens to lie in memory makes as much of a difference as is to be found.
    """
    servers = {variant: Server(variant, loop) for variant in plan.variants}
    for server in servers.values():
        server.wait_until_it_answers()
        server.requests_per_second(WARM_UP_SECONDS)
    order = plan.variants[turn:] + plan.variants[:turn]
    rates = {variant: servers[variant].requests_per_second(plan.effort.wrk_seconds) for variant in order}
    for server in servers.values():
        server.end()
    return rates
