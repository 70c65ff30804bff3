"""What is a measurement worth on this machine now? The kernel tells, or a yardstick that suffers the same."""

from __future__ import annotations

import contextlib
import os
import pathlib
import threading
import time

WAKE_SECONDS = 0.07
QUIET_SECONDS = 0.002
NOTING_SECONDS = 0.05
_TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")
_STEAL = 8  # the column of /proc/stat: time that the host of a virtual machine gave to others


def withheld_of_each(pid):
    """Return the seconds that each thread of a process was ready to run and got no CPU, and the machine's."""
    seconds = {}
    with contextlib.suppress(OSError):  # not on Linux
        stolen = pathlib.Path("/proc/stat").read_text().split(maxsplit=9)[_STEAL]
        seconds["machine"] = int(stolen) * _TICK_SECONDS
        for thread in pathlib.Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):  # it has ended
                seconds[thread.name] = int((thread / "schedstat").read_text().split()[1]) / 1e9
    return seconds


def withheld(pid="self"):
    """Return the seconds that the threads of a process were ready to run and got no CPU."""
    return sum(withheld_of_each(pid).values())


def withheld_from_anybody():
    """Return the seconds in which some process of the machine was ready to run and got no CPU.

    That is what the kernel calls pressure. Where the kernel does not account for it, this is the time that has
    passed: any measurement may have been disturbed then.
    """
    try:
        some = pathlib.Path("/proc/pressure/cpu").read_text().partition("\n")[0]
    except OSError:
        return time.monotonic()
    return int(some.rpartition("=")[2]) / 1e6


@contextlib.contextmanager
def watching_what_is_withheld(pid):
    """Note what the machine withholds from a process; yield what returns its seconds between two Unix times.

    Threads that wait at the same time are not held up longer: of them the one that waited the longest counts.
    """
    stop, seen = threading.Event(), []

    def look():
        seen.append((time.time(), withheld_of_each(pid)))

    def note():
        while not stop.wait(NOTING_SECONDS):
            look()

    def between(start, end):
        if seen[-1][0] < end:  # the noting thread may get no CPU either
            look()
        before = [of_each for at, of_each in seen if at <= start][-1]
        after = next(of_each for at, of_each in seen if at >= end)
        waited = {thread: seconds - before.get(thread, 0.0) for thread, seconds in after.items()}
        return waited.pop("machine", 0.0) + max(waited.values(), default=0.0)

    look()
    thread = threading.Thread(target=note)
    thread.start()
    try:
        yield between
    finally:
        stop.set()
        thread.join()


def quietest(measure, pid="self", enough=3, most=7):
    """Repeat a measurement until ``enough`` were left alone, and return those; all, if the machine never rests."""
    everything, quiet = [], []
    while len(everything) < most and len(quiet) < enough:
        before = withheld(pid)
        result = measure()
        everything.append(result)
        if withheld(pid) - before < QUIET_SECONDS:
            quiet.append(result)
    return quiet if len(quiet) == enough else everything


@contextlib.contextmanager
def waking_thread():
    """Let a thread wake fourteen times a second and do nothing; yield what returns its CPU seconds, once it ended.

    That is 0.1 to 0.15 % of a core where nobody else wants it, and several times that where caches are shared.
    """
    stop, used = threading.Lock(), []

    def wake():
        before = time.thread_time()
        while not stop.acquire(timeout=WAKE_SECONDS):
            pass
        used.append(time.thread_time() - before)

    stop.acquire()
    thread = threading.Thread(target=wake)
    thread.start()
    try:
        yield lambda: used[0]
    finally:
        stop.release()
        thread.join()
