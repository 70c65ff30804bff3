"""Put a load on the gallery: its mistakes and cures in turn, and now and then more requests than it has threads.

Run: python load.py http://127.0.0.1:8000. It waits for the gallery to answer, and goes on until it is stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import sys

import httpx

CLIENTS = 3
PAUSE_SECONDS = 0.05
BURST, BURST_SECONDS = 150, 2.0  # two workers have 80 threads
OFTEN = "/mistake/sleep"  # between any two others, so that this route certainly blocks long enough for an alert
BURSTS = "/mistake/threads"


async def paths(client: httpx.AsyncClient) -> list[str]:
    """Return the paths of all mistakes and cures, once the gallery answers."""
    while True:
        with contextlib.suppress(httpx.TransportError):
            known = (await client.get("/openapi.json")).raise_for_status().json()["paths"]
            return sorted(path for path in known if path.startswith(("/mistake/", "/cure/")))
        await asyncio.sleep(0.5)


async def ask(client: httpx.AsyncClient, path: str) -> None:
    """Make one request; an answer that does not come, or is an error, is the gallery's business."""
    with contextlib.suppress(httpx.HTTPError):
        await client.get(path)


async def in_turn(client: httpx.AsyncClient, known: list[str], first: int) -> None:
    """Request one path after the other, for ever."""
    for path in itertools.cycle(known[first:] + known[:first]):
        await ask(client, path)
        await ask(client, OFTEN)
        await asyncio.sleep(PAUSE_SECONDS)


async def bursts(client: httpx.AsyncClient) -> None:
    """Request more at once than there are threads, again and again."""
    while True:
        await asyncio.gather(*(ask(client, BURSTS) for _ in range(BURST)), asyncio.sleep(BURST_SECONDS))


async def main(url: str) -> None:
    """Put the load on the gallery at this address."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=30, limits=limits, trust_env=False) as client:
        known = await paths(client)
        clients = (in_turn(client, known, number * len(known) // CLIENTS) for number in range(CLIENTS))
        await asyncio.gather(bursts(client), *clients)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # it has nothing to put in order
    if len(sys.argv) != 2 or "://" not in sys.argv[1]:
        sys.exit(f"Expected the gallery's address, such as {sys.argv[0]} http://127.0.0.1:8000")
    asyncio.run(main(sys.argv[1]))
