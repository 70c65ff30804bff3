"""How do the examples run servers? Each writes a log of its own, and each is stopped, whatever ends the example."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import os
import pathlib
import select
import shutil
import signal
import socket
import subprocess
import sys
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
    from typing import Self

HOST = "127.0.0.1"
STOP_SECONDS = 5.0
CANCEL_SECONDS = 0.5  # a cancellation may get lost while a connection is made: then it is repeated
LOG_LINES = 20
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Failed(Exception):  # noqa: N818 # it is no error of the program
    """What went wrong, for the user: what was expected, and what to do."""


def port_number(text: str) -> int:
    """Convert an option's text to a port."""
    if text.isdecimal() and int(text) <= 65535:
        return int(text)
    raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, where 0 picks a free one, got {text!r}")


def seconds(text: str) -> float:
    """Convert an option's text to seconds; ``inf`` is one of them."""
    with contextlib.suppress(ValueError):
        if (value := float(text)) > 0:
            return value
    raise argparse.ArgumentTypeError(f"expected a number of seconds above 0, such as 20, or inf, got {text!r}")


def usable_port(port: int, option: str) -> int:
    """Return ``port``, or a free one if it is 0; fail where a server could not have it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # servers do so too
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise Failed(
                f"Port {port} of {HOST} cannot be used ({os.strerror(error.errno or 0)}); expected a free port. "
                f"Give {option} another one, or leave it out: then a free one is picked."
            ) from None
        return int(probe.getsockname()[1])


class Stopping:
    """Takes note of Ctrl-C, SIGTERM and a closed terminal; none of them interrupts what is being done.

    So no server is lost between its start and the note that it is running, and nothing interrupts the cleaning up.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        """The signal that was the first to come."""
        self._before: dict[int, Any] = {}
        self._wake: Callable[[], object] = lambda: None

    def __enter__(self) -> Self:
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                self._before[number] = signal.signal(number, lambda number, _: self.request(number))
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def request(self, number: int) -> None:
        """Ask what runs to end, as if this signal had come."""
        if self.number is None:
            self.number = number
        self._wake()

    @property
    def exit_code(self) -> int:
        """0 after Ctrl-C, which is how the examples are meant to end; else 128 and the signal, as in a shell."""
        return 0 if self.number in {None, signal.SIGINT} else 128 + (self.number or 0)

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine until it ends or is to end."""
        asyncio.run(self._until_stopped(work))

    async def _until_stopped(self, work: Coroutine[Any, Any, None]) -> None:
        stopped = asyncio.Event()
        self._wake = functools.partial(asyncio.get_running_loop().call_soon_threadsafe, stopped.set)
        try:
            if self.number is not None:
                stopped.set()
            task = asyncio.create_task(work)
            waits = asyncio.create_task(stopped.wait())
            await asyncio.wait({task, waits}, return_when=asyncio.FIRST_COMPLETED)
            await _cancel_the_others()
        finally:
            self._wake = lambda: None
        if not task.cancelled():
            task.result()


async def _cancel_the_others() -> None:
    # anyio makes connections in tasks of its own: one that is cancelled before it begins leaves its coroutine.
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        for other in others:
            other.cancel()
        ended, _ = await asyncio.wait(others, timeout=CANCEL_SECONDS)
        for other in ended:
            other.cancelled() or other.exception()  # that its client was closed, say


class Output:
    """Standard output that asks the program to end, in place of failing, when nobody reads it any more."""

    def __init__(self, stopping: Stopping) -> None:
        self._stopping = stopping
        self._file = sys.stdout or pathlib.Path(os.devnull).open("w")  # noqa: SIM115 # it lasts as long as the process

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, text: str) -> int:
        """Write a text."""
        try:
            return self._file.write(text)
        except OSError:
            self._close()
            return len(text)

    def flush(self) -> None:
        """Write what is still buffered."""
        try:
            self._file.flush()
        except OSError:
            self._close()

    def check(self) -> None:
        """Find out whether anybody still reads, without writing."""
        with contextlib.suppress(OSError, ValueError):
            poll = select.poll()
            poll.register(self._file.fileno(), 0)
            if any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
                self._close()

    def _close(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._file.fileno())  # else the interpreter fails when it writes the rest
        os.close(nowhere)
        self._stopping.request(signal.SIGPIPE)


@functools.cache
def _dies_with_its_parent() -> tuple[str, ...]:
    """Return what a command begins with, where it can, to be stopped even if this process is killed."""
    setpriv = shutil.which("setpriv")
    command = (setpriv or "", "--pdeathsig", "TERM")
    works = setpriv is not None and subprocess.run([*command, "true"], capture_output=True, check=False)
    return command if works and not works.returncode else ()


class Server:
    """A running server and what it wrote."""

    def __init__(
        self, name: str, command: Sequence[str], log: pathlib.Path, env: Mapping[str, str] | None = None
    ) -> None:
        self.name, self.log = name, log
        with log.open("wb") as file:
            try:
                # A session of its own: Ctrl-C is for this process to handle.
                self._process = subprocess.Popen(
                    [*_dies_with_its_parent(), *command],
                    start_new_session=True, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                    env={**os.environ, **(env or {})},
                )  # fmt: skip
            except OSError as error:
                raise Failed(f"{name} could not be started ({error}).") from None

    def has_ended(self) -> bool:
        """Return whether it ended by itself."""
        return self._process.poll() is not None

    def why_it_ended(self) -> str:
        """Say that it ended, and the end of its log."""
        lines = self.log.read_text(errors="replace").splitlines()[-LOG_LINES:]
        says = "its log says:\n" + "\n".join(lines) if lines else "its log is empty."
        return f"{self.name} ended (exit code {self._process.returncode}); {says}"

    def stop(self) -> None:
        """Stop it and what it started, politely first."""
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


@contextlib.contextmanager
def running(
    name: str, command: Sequence[str], folder: pathlib.Path, env: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """Run a server, whose log is in ``folder``; stop it at the end."""
    server = Server(name, command, folder / f"{name}.log", env)
    try:
        yield server
    finally:
        server.stop()
