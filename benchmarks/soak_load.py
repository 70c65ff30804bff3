"""Which requests does the soak make, and what has become of them? One event loop, a fixed mix, 16 connections."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
from collections import Counter
from typing import TYPE_CHECKING

from benchmarks.soak_app import CANCELLED

if TYPE_CHECKING:
    from collections.abc import Iterator

IN_FLIGHT = 16
ANSWER_SECONDS = 60
"""A request that takes longer has failed."""

MIX = ("cancelled", "async", "left", "async", "def", *("async",) * 5, "cancelled", *("async",) * 4, "def") + (
    "async",
) * 4
"""Of 20 requests 2 are cancelled, 1 is left by its client, and 2 are for a worker thread."""

_STATUS = {"cancelled": CANCELLED}


@dataclasses.dataclass
class Outcome:
    """What has become of the requests so far."""

    sent: Counter[str] = dataclasses.field(default_factory=Counter)
    answered: Counter[str] = dataclasses.field(default_factory=Counter)
    cut: int = 0
    """Requests without an answer on connections that were there before the last kill."""

    failed: Counter[str] = dataclasses.field(default_factory=Counter)
    """All others without the expected answer, by what was wrong."""


class Load:
    """Makes requests of the mix to a port of this machine."""

    def __init__(self, port: int) -> None:
        self.outcome = Outcome()
        self.kills = 0
        """How many workers were killed so far: a connection that is older than the last kill may be cut by it."""

        self._port = port
        self._kinds: Iterator[str] = itertools.cycle(MIX)
        self._due = 0
        self._idle: list[_Connection] = []

    async def make(self, count: int) -> None:
        """Make so many requests, at most 16 in flight."""
        self._due = count
        await asyncio.gather(*(self._one_after_another() for _ in range(min(IN_FLIGHT, count))))

    async def get(self, path: str) -> tuple[int, str]:
        """Return status and body of one request on a connection of its own."""
        connection = await _Connection.open(self._port, 0)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await connection.get(path)
        finally:
            connection.close()

    def close(self) -> None:
        """Close all connections."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    async def _one_after_another(self) -> None:
        connection = self._idle.pop() if self._idle else None
        while self._due > 0:
            self._due -= 1
            kind = next(self._kinds)
            self.outcome.sent[kind] += 1
            if kind == "left":
                await self._leave(f"/{kind}/7")
            else:
                connection = await self._ask(connection, kind)
        if connection is not None:
            self._idle.append(connection)

    async def _ask(self, connection: _Connection | None, kind: str) -> _Connection | None:
        """Make a request; return its connection if that can be used again."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                if connection is None:
                    connection = await _Connection.open(self._port, self.kills)
                status, _ = await connection.get(f"/{kind}/7")
        except (OSError, EOFError, TimeoutError) as error:
            if connection is not None:
                connection.close()
                if connection.kills < self.kills:
                    self.outcome.cut += 1
                    return None
            self.outcome.failed[type(error).__name__] += 1
            return None
        if status == _STATUS.get(kind, 200):
            self.outcome.answered[kind] += 1
        else:
            self.outcome.failed[f"status {status} of /{kind}"] += 1
        return connection

    async def _leave(self, path: str) -> None:
        """Ask for a path and go without waiting for the answer."""
        with contextlib.suppress(OSError):  # nobody is there to see it fail
            connection = await _Connection.open(self._port, self.kills)
            connection.ask(path)
            connection.close()


class _Connection:
    """One connection, which is kept alive. ``kills`` is how many workers had been killed when it was made."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kills: int) -> None:
        self._reader, self._writer, self.kills = reader, writer, kills

    @classmethod
    async def open(cls, port: int, kills: int) -> _Connection:
        return cls(*await asyncio.open_connection("127.0.0.1", port), kills)

    def ask(self, path: str) -> None:
        self._writer.write(f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".encode())

    async def get(self, path: str) -> tuple[int, str]:
        self.ask(path)
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = int(head.partition("content-length:")[2].partition("\r")[0])
        return int(head.split(" ", 2)[1]), (await self._reader.readexactly(length)).decode()

    def close(self) -> None:
        self._writer.close()
