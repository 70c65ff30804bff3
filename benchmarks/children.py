"""Which processes does a benchmark run, and how does each of them end? None outlives the benchmark."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from typing import IO, TYPE_CHECKING

from benchmarks.variants import environ_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import FrameType

ANSWER_SECONDS = 120
"""A slice takes 0.1 s and a start takes 2 s: a process that is silent for so long has failed."""

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_alive: set[subprocess.Popen[str]] = set()
_starting = False
_came_meanwhile: list[int] = []


class BenchmarkError(Exception):
    """The benchmark cannot go on. The message is for the user."""


class Interrupted(BaseException):
    """A signal asked the benchmark to end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


def raise_on_signals() -> None:
    """Raise :class:`Interrupted` on SIGINT, SIGTERM and SIGHUP, but on those that are ignored, as below nohup."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)


def _interrupt(number: int, _frame: FrameType | None) -> None:
    if _starting:
        _came_meanwhile.append(number)
        return
    for one in SIGNALS:  # the end takes no time, and a second Ctrl-C must not leave a process behind
        signal.signal(one, signal.SIG_IGN)
    raise Interrupted(number)


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Let no signal part a process that has just started from the record of it."""
    global _starting  # noqa: PLW0603 # signals belong to the process, and so does this
    _starting = True
    try:
        yield
    finally:
        _starting = False
        if _came_meanwhile:
            _interrupt(_came_meanwhile.pop(), None)


def start(
    command: list[str], variant: str, *, errors: IO[str] | None = None, extra: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start a command in the environment of a variant, with pipes to its stdin and stdout.

    Ctrl-C in a terminal reaches the benchmark alone, which ends the process itself.
    """
    with _signals_held():
        process = subprocess.Popen(
            command, env={**environ_of(variant), **(extra or {})}, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=errors, text=True, process_group=0,
        )  # fmt: skip
        _alive.add(process)
    return process


def end(process: subprocess.Popen[str]) -> None:
    """End a process and all that it started, at once: none has anything to save."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
    _alive.discard(process)


def end_all() -> None:
    """End every process that was started and not ended."""
    for process in list(_alive):
        end(process)


def output_of(command: list[str], variant: str, seconds: float, extra: Mapping[str, str] | None = None) -> str:
    """Return what a command prints. Raise where it fails or takes longer than ``seconds``."""
    process = start(command, variant, extra=extra)
    try:
        printed, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        raise BenchmarkError(f"The variant {variant!r}: {command[0]} did not end within {seconds:.0f} s.") from None
    finally:
        end(process)
    if process.returncode != 0:
        raise BenchmarkError(
            f"The variant {variant!r}: {command[0]} failed with {process.returncode}. Its output stands above."
        )
    return printed


class Worker:
    """A process that serves one variant and waits for orders (:mod:`benchmarks.worker`)."""

    def __init__(self, variant: str, loop: str, errors: IO[str] | None = None) -> None:
        self._variant = variant
        self._process = start([sys.executable, "-m", "benchmarks.worker", variant, loop], variant, errors=errors)
        self._ready = False

    def ask(self, route: str, in_flight: int, requests: int) -> float:
        """Serve so many requests; return microseconds per request. The first call waits until the worker is up."""
        if not self._ready:
            if (line := self._line()) != "ready\n":
                raise BenchmarkError(f"The variant {self._variant!r} printed {line!r} instead of 'ready'.")
            self._ready = True
        order = self._process.stdin
        assert order is not None
        try:
            print(route, in_flight, requests, file=order, flush=True)
        except BrokenPipeError:
            raise BenchmarkError(self._ended()) from None
        return float(self._line())

    def _line(self) -> str:
        answers = self._process.stdout
        assert answers is not None
        if not select.select([answers], [], [], ANSWER_SECONDS)[0]:
            raise BenchmarkError(f"The variant {self._variant!r} did not answer within {ANSWER_SECONDS} s.")
        line = answers.readline()
        if not line:
            raise BenchmarkError(self._ended())
        return line

    def _ended(self) -> str:
        return f"The process of the variant {self._variant!r} ended. Its output stands above."

    def end(self) -> None:
        """End the process."""
        end(self._process)
