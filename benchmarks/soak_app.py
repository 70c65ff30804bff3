"""What does the soak serve? Routes whose requests end, are cancelled or are left, and an exact count of each.

For uvicorn: the variant that ``BENCH_VARIANT`` names. Each worker counts in a file of its own in ``SOAK_COUNTS``.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import pathlib
import struct
from typing import Any

from benchmarks.variants import build

KINDS = ("async", "def", "cancelled", "left")
CANCELLED = 499
"""What a request is answered with that was cancelled."""

_NUMBERS = {kind: number for number, kind in enumerate(KINDS)}
_COUNTS = struct.Struct(f"={len(KINDS)}Q")
_WORKS_SECONDS = 0.01
_FOR_EVER_SECONDS = 3600.0


class Counted:
    """Counts the requests of each kind that have ended in an app, and cancels those that are to be cancelled.

    The file is mapped into memory, so a worker that is killed loses none of its counts.
    """

    def __init__(self, app: Any, file: pathlib.Path) -> None:
        self._app = app
        partial = file.with_suffix(".partial")
        partial.write_bytes(bytes(_COUNTS.size))
        with partial.open("r+b") as opened:
            self._ended = memoryview(mmap.mmap(opened.fileno(), _COUNTS.size)).cast("Q")
        partial.rename(file)  # who sees it sees all of it

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one scope, as ASGI defines it."""
        kind = _NUMBERS.get(scope.get("path", "").split("/")[1]) if scope["type"] == "http" else None
        if kind is None:
            await self._app(scope, receive, send)
            return
        try:
            if KINDS[kind] == "cancelled":
                await self._cancel(scope, receive, send)
            else:
                await self._app(scope, receive, send)
        finally:
            self._ended[kind] += 1

    async def _cancel(self, scope: Any, receive: Any, send: Any) -> None:
        """Cancel the request once it waits, as a server does that stops, and answer in its place."""
        request = asyncio.ensure_future(self._app(scope, receive, send))
        await asyncio.sleep(0)
        request.cancel()
        await asyncio.wait((request,))
        await send({"type": "http.response.start", "status": CANCELLED, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})


def ended(file: pathlib.Path) -> dict[str, int]:
    """Return how many requests of each kind have ended in the worker of a file. Any process, at any time."""
    return dict(zip(KINDS, _COUNTS.unpack(file.read_bytes()), strict=True))


def build_soaked(variant: str, counts: pathlib.Path) -> Counted:
    """Return the app of a variant with the soak's own routes, counted in a file named by this process."""
    app = build(variant)

    @app.get("/cancelled/{item}", response_model=None)
    async def waits_until_it_is_cancelled() -> None:
        await asyncio.sleep(_FOR_EVER_SECONDS)

    @app.get("/left/{item}", response_model=None)
    async def works_after_its_client_has_gone() -> None:
        await asyncio.sleep(_WORKS_SECONDS)

    return Counted(app, counts / str(os.getpid()))


if "SOAK_COUNTS" in os.environ:
    app = build_soaked(os.environ["BENCH_VARIANT"], pathlib.Path(os.environ["SOAK_COUNTS"]))
