"""How many requests a second does uvicorn serve with each variant, by ``wrk``? One process each, in turns."""

from __future__ import annotations

import re
import socket
import statistics
import subprocess
import sys
import time

from benchmarks.variants import environ_of

SECONDS, CONNECTIONS = 2, 16
PATIENCE_SECONDS = 30


class Server:
    """uvicorn with one variant, on a port of its own."""

    def __init__(self, variant: str, loop: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "benchmarks.served:app", "--loop", loop, "--port", str(self._port),
             "--log-level", "error", "--no-access-log"],
            env=environ_of(variant),
        )  # fmt: skip
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"The variant {variant!r} did not start; what it printed stands above.")
            time.sleep(0.1)

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._port)) == 0

    def ask(self, seconds: float) -> float:
        """Return requests per second."""
        url = f"http://127.0.0.1:{self._port}/async/7"
        command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", url]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        if "Non-2xx" in told:
            sys.exit(f"{url} failed:\n{told}")
        return float(re.search(r"Requests/sec:\s+([0-9.]+)", told).group(1))

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()


def measure(loop: str, variants: list[str], rounds: int) -> dict[str, str]:
    """Return the throughput of each variant, in parts of the bare app's: the median of the rounds' ratios.

    Each round has new processes: how one happens to lie in memory makes as much of a difference as is to be found.
    """
    rates: dict[str, list[float]] = {variant: [] for variant in variants}
    for number in range(rounds):
        servers = {variant: Server(variant, loop) for variant in variants}
        for server in servers.values():
            server.ask(1)
        turn = number % len(variants)
        for variant in variants[turn:] + variants[:turn]:
            rates[variant].append(servers[variant].ask(SECONDS))
        for server in servers.values():
            server.stop()
        print(f"{loop} wrk round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    ratios = {v: [a / b for a, b in zip(rates[v], rates["bare"], strict=True)] for v in variants}
    return {variant: f"{statistics.median(found):.2f}" for variant, found in ratios.items()}
