"""Why did the loop stand still? Evidence about its thread at two instants in, the cause of what lies between out.

The evidence is Linux's where there is any: CPU clock and ``schedstat`` of the loop's thread, its state and its
voluntary context switches, the cgroup's throttling, what the host of a virtual machine took. A missing piece is
``None``, and what cannot be told from the rest is ``unknown``: nothing is guessed. Any thread.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pathlib
import time
from collections import deque
from typing import NamedTuple

from loopwatch.catalogue import CAUSE_BLOCKING, CAUSE_CPU, CAUSE_GC, CAUSE_GIL, CAUSE_STARVED, CAUSE_UNKNOWN
from loopwatch.histogram import NANOSECONDS
from loopwatch.system import get_ident, own_cpu_clock, own_number

_MOST = 0.7
"""A share that stands for nearly all: what is measured begins a little after the stall and ends a little before."""

_HALF = 0.5

_CONTENDED = 40
"""Voluntary switches a second above which a thread was contending for the GIL: its interval of 5 ms allows 200."""

_OTHERS = 0.3
"""CPU used by other threads of the process, per second, that can hold the GIL enough to matter."""

_TICK_NS = NANOSECONDS // os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 0
_CGROUP, _MACHINE = pathlib.Path("/sys/fs/cgroup/cpu.stat"), pathlib.Path("/proc/stat")
_STEAL = 8  # the column of /proc/stat
_SLEEPS = {"S", "D"}
"""States of a thread that waits, for an event or a disk. One that is ready to run is ``R``, stolen CPU or not."""


class Evidence(NamedTuple):
    """What the system says of the loop's thread at one instant. Nanoseconds and counts; ``None``: not to be had."""

    at: int
    cpu: int | None
    process_cpu: int
    in_gc: int
    run_queue: int | None = None
    withheld: int | None = None
    voluntary: int | None = None
    asleep: bool | None = None


_MOST_RECENT, _NOTABLE_NS = 16, 1_000_000
"""How many collections are remembered one by one, and from what length on."""


class Collections:
    """How long garbage collections held one thread. Heard from :data:`gc.callbacks`."""

    def __init__(self, thread: int) -> None:
        self._thread = thread
        self._since = 0
        self._total = 0
        self._recent: deque[tuple[int, int]] = deque(maxlen=_MOST_RECENT)

    def start(self) -> None:
        """Begin to listen."""
        gc.callbacks.append(self._hear)

    def stop(self) -> None:
        """Listen no more. Safe to call twice."""
        with contextlib.suppress(ValueError):
            gc.callbacks.remove(self._hear)

    def total(self, now: int) -> int:
        """Return the nanoseconds in collections up to ``now``, one in progress included. Any thread."""
        since = self._since
        return self._total + (now - since if since else 0)

    def total_at(self, at: int) -> int:
        """Return what :meth:`total` was at an instant, about a second ago at most. Any thread."""
        since = self._since
        later = sum(end - max(start, at) for start, end in tuple(self._recent) if end > at)
        return self._total - later + (max(0, at - since) if since else 0)

    def _hear(self, phase: str, _info: dict[str, int]) -> None:
        if get_ident() != self._thread:
            return
        if phase == "start":
            self._since = time.perf_counter_ns()
        elif self._since:
            now = time.perf_counter_ns()
            self._total += now - self._since
            if now - self._since >= _NOTABLE_NS:
                self._recent.append((self._since, now))
            self._since = 0


class Witness:
    """Takes evidence about one thread, by whatever this system offers. Made in that thread, asked in any other."""

    def __init__(self) -> None:
        self._collections = Collections(get_ident())
        folder = pathlib.Path(f"/proc/self/task/{own_number()}")
        self._schedstat, self._status = folder / "schedstat", folder / "status"
        self._cpu_clock = own_cpu_clock()

    def start(self) -> None:
        """Listen to the garbage collector."""
        self._collections.start()

    def stop(self) -> None:
        """Listen no more. Safe to call twice."""
        self._collections.stop()

    def offers(self) -> dict[str, bool]:
        """Tell which pieces of evidence this system offers."""
        found = self.look()
        return {
            "CPU clock of the loop's thread": found.cpu is not None,
            "run-queue wait (schedstat)": found.run_queue is not None,
            "voluntary context switches": found.voluntary is not None,
            "throttling and steal": found.withheld is not None,
        }

    @property
    def cpu_clock(self) -> int | None:
        """The CPU clock of the thread."""
        return self._cpu_clock

    def as_of(self, at: int, cpu: int | None, process_cpu: int) -> Evidence:
        """Return what :meth:`glance` would have at an instant, of which the clocks are known."""
        return Evidence(at, cpu, process_cpu, self._collections.total_at(at))

    def glance(self) -> Evidence:
        """Take what costs a microsecond. Raises :class:`OSError` once the thread has ended."""
        now = time.perf_counter_ns()
        cpu = time.clock_gettime_ns(self._cpu_clock) if self._cpu_clock is not None else None
        return Evidence(now, cpu, time.process_time_ns(), self._collections.total(now))

    def look(self) -> Evidence:
        """Take everything. Raises :class:`OSError` once the thread has ended."""
        found = self.glance()
        status = _lines(self._status)
        state = _after(status, "State:")
        return found._replace(
            run_queue=number_in(self._schedstat, 1),
            voluntary=_number(_after(status, "voluntary_ctxt_switches:")),
            asleep=state.lstrip()[:1] in _SLEEPS if state else None,
            withheld=_withheld(),
        )


def number_in(file: pathlib.Path, index: int) -> int | None:
    """Return one of the numbers in a file, counted from 0; ``None`` where there is none."""
    try:
        return int(file.read_text(encoding="latin-1").split()[index])
    except (OSError, ValueError, IndexError):
        return None


def _lines(file: pathlib.Path) -> list[str]:
    try:
        return file.read_text(encoding="latin-1").split("\n")  # it holds the thread's name, in bytes of any kind
    except (OSError, ValueError):
        return []


def _after(lines: list[str], label: str) -> str:
    """Return what stands behind a label at a line's beginning; nothing if no line has it."""
    return next((line[len(label) :] for line in lines if line.startswith(label)), "")


def _number(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


def _withheld() -> int | None:
    """Return how long the cgroup was throttled and the whole machine was given to others, in nanoseconds."""
    throttled = _number(_after(_lines(_CGROUP), "throttled_usec "))
    stolen = number_in(_MACHINE, _STEAL)
    if throttled is None and stolen is None:
        return None
    return (throttled or 0) * 1000 + (stolen or 0) * _TICK_NS


def cause_between(  # noqa: PLR0911 # one cause after the other, the surest first
    first: Evidence, last: Evidence, *, kept_out: bool = False
) -> str:
    """Return the cause of a stall that held the loop from ``first`` to ``last``, ``unknown`` where it is not clear.

    ``kept_out`` tells that the watcher waited for the GIL all the while.
    """
    wall = last.at - first.at
    if wall <= 0:
        return CAUSE_UNKNOWN
    if (last.in_gc - first.in_gc) / wall >= _HALF:
        return CAUSE_GC
    if first.cpu is None or last.cpu is None:
        return CAUSE_UNKNOWN
    cpu = (last.cpu - first.cpu) / wall
    if cpu >= _MOST:
        return CAUSE_CPU
    others = (last.process_cpu - first.process_cpu) / wall - cpu
    if kept_out and cpu < _HALF <= others:
        return CAUSE_GIL
    queued = _share(first.run_queue, last.run_queue, wall)
    withheld = _share(first.withheld, last.withheld, wall)
    if queued is not None and queued >= _HALF:
        return CAUSE_STARVED
    if first.voluntary is None or last.voluntary is None:
        return CAUSE_UNKNOWN  # asleep, but whether it wanted the GIL is not known
    switches = (last.voluntary - first.voluntary) * NANOSECONDS / wall
    if switches >= _CONTENDED and others >= _OTHERS:
        return CAUSE_GIL
    asleep = 1 - cpu - (queued or 0.0)
    if asleep >= _MOST:
        return CAUSE_STARVED if _never_slept(first, last) else CAUSE_BLOCKING
    if asleep <= 1 - _MOST:  # it wanted the CPU nearly all the time, and got it for a good part
        return CAUSE_CPU if cpu >= (queued or 0.0) else CAUSE_STARVED
    if withheld is not None and cpu + min(withheld, asleep) + (queued or 0.0) >= _MOST and cpu < _HALF:
        return CAUSE_STARVED
    return CAUSE_UNKNOWN


def cause_by_cpu(cpu: int, wall: int, otherwise: str) -> str:
    """Return the cause of a hold of which only the CPU time is known.

    ``otherwise`` is that of what is around it.
    """
    if cpu >= _MOST * wall:
        return CAUSE_CPU
    if cpu > (1 - _MOST) * wall or otherwise in {CAUSE_GIL, CAUSE_STARVED, CAUSE_GC}:
        return otherwise
    return CAUSE_BLOCKING


def _never_slept(first: Evidence, last: Evidence) -> bool:
    """Tell for certain: ready to run at both ends, and no switch by itself in between.

    Time that such a thread neither ran nor queued for was taken by the host of a virtual machine.
    """
    return first.asleep is last.asleep is False and first.voluntary == last.voluntary


def _share(first: int | None, last: int | None, wall: int) -> float | None:
    return None if first is None or last is None else (last - first) / wall
