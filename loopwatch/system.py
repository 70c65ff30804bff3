"""What are the threads, locks and clocks of the system, whatever has been put in their place?

gevent and eventlet replace functions of ``threading``, ``_thread``, ``time``, ``select``, ``socket`` and ``queue``,
before or after loopwatch is imported. A thread is a greenlet then: it runs on the loop's own thread, and its
identifier is the address of an object. A watcher like that would hold the loop that it watches, and with such an
identifier ``pthread_getcpuclockid`` reads foreign memory. What was replaced before, loopwatch takes from a second
instance of ``_thread`` and ``time``, which nobody else has.

Where threads are greenlets, loopwatch starts none. Locks are for greenlets then, too: those of ``logging`` and
``prometheus_client``, say. A thread of the system's that shares them with greenlets can leave these waiting for
ever: gevent wakes a waiter in the hub of the thread that released the lock, and that hub may never run again.

If a thread waits among greenlets when the process ends, that crashes. So where only sockets are replaced, a thread
of loopwatch's that waits for long waits for a lock or a socket of the system's; a part that cannot do so is off.

A lock is made by :func:`allocate_lock` if no code of the app can run while it is held. Any other lock is made by
``threading``, as the app's own are: then a greenlet that waits for it lets the one run that holds it.
"""

from __future__ import annotations

import _socket
import _thread
import contextlib
import socket
import sys
import threading
import time
from importlib.machinery import BuiltinImporter
from importlib.util import module_from_spec
from types import BuiltinFunctionType
from typing import TYPE_CHECKING, Any

try:
    import _queue as queue  # in C: `queue.SimpleQueue` may be one for greenlets
except ImportError:
    import queue  # type: ignore[no-redef] # it has the same class

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType


def _original(module: ModuleType, name: str) -> Any:
    """Return a function of a builtin module as the interpreter made it; where that fails, as it is now."""
    found = getattr(module, name)
    if isinstance(found, BuiltinFunctionType) and found.__module__ == module.__name__:
        return found
    try:
        spec = BuiltinImporter.find_spec(module.__name__)
        second = module_from_spec(spec)  # type: ignore[arg-type] # of `None`, which is no builtin module's, it raises
        BuiltinImporter.exec_module(second)
        return getattr(second, name)
    except Exception:
        return found


allocate_lock: Callable[[], Any] = _original(_thread, "allocate_lock")
"""Make a lock of the system's."""

get_ident: Callable[[], int] = _original(_thread, "get_ident")
"""Return the identifier by which the interpreter knows the calling thread, as in ``sys._current_frames()``."""

sleep: Callable[[float], None] = _original(time, "sleep")
"""Have the calling thread sleep, and no other."""

SimpleQueue = queue.SimpleQueue
"""A queue that the threads of the system share."""

SystemSocket = _socket.socket
"""A socket of the system's: what ``socket.socket`` is derived from."""

HAS_GIL: bool = getattr(sys, "_is_gil_enabled", lambda: True)()
"""Whether one thread at a time runs Python's code. A free-threaded interpreter has a GIL with PYTHON_GIL=1 only."""

_CPU_OF_A_THREAD = 6
"""The lowest three bits of a clock's number: CPUCLOCK_PERTHREAD_MASK and CPUCLOCK_SCHED of Linux."""


def own_number() -> int:
    """Return the number by which the system knows the calling thread, as in ``/proc/self/task``."""
    return threading.get_native_id()


def own_cpu_clock() -> int | None:
    """Return the number of the calling thread's CPU clock, for any thread to read; ``None`` where there is none.

    Linux makes it from the thread's number. So does ``pthread_getcpuclockid``, but it trusts any address.
    """
    with contextlib.suppress(AttributeError, OSError, OverflowError):
        if sys.platform == "linux":
            clock = ~own_number() << 3 | _CPU_OF_A_THREAD
        else:
            clock = time.pthread_getcpuclockid(get_ident())
        time.clock_gettime_ns(clock)
        return clock
    return None


def threads_are_greenlets() -> bool:
    """Return whether ``threading`` makes greenlets: then their identifiers are not the system's. Any thread."""
    return _thread.get_ident() != get_ident()


def sockets_are_greenlets() -> bool:
    """Return whether who waits for a socket of ``socket`` runs other greenlets meanwhile. Any thread."""
    return not issubclass(socket.socket, _socket.socket)


class Thread:
    """A thread that runs ``target(*arguments)`` at once, and keeps no process alive. It must not be a greenlet.

    Raises:
        RuntimeError: the system or the interpreter starts no more threads.

    """

    def __init__(self, target: Callable[..., None], *arguments: Any, name: str) -> None:
        self._target, self._arguments = target, arguments
        self._ident = 0
        self._running = allocate_lock()
        self._running.acquire()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def is_alive(self) -> bool:
        """Return whether the function has yet to end. Any thread."""
        return bool(self._running.locked())

    def join(self, seconds: float) -> None:
        """Wait until the function has ended, for so long at most; not at all in the thread itself. Any thread."""
        if self._ident != get_ident() and self._running.acquire(timeout=seconds):
            self._running.release()

    def _run(self) -> None:
        self._ident = get_ident()
        target, arguments = self._target, self._arguments
        del self._target, self._arguments  # they may hold this
        try:
            target(*arguments)
        finally:
            _close_hub()
            self._running.release()


class Event:
    """A flag that one thread may wait for, and any thread sets, as ``threading.Event``."""

    __slots__ = ("_gate",)

    def __init__(self) -> None:
        self._gate = allocate_lock()  # held while the flag is not set
        self._gate.acquire()

    def is_set(self) -> bool:
        """Return whether it is set. Not for threads beside the one that waits."""
        return not self._gate.locked()

    def set(self) -> None:
        """Set it; never waits. Safe to call twice."""
        with contextlib.suppress(RuntimeError):  # it is not held
            self._gate.release()

    def clear(self) -> None:
        """Reset it."""
        self._gate.acquire(blocking=False)

    def wait(self, seconds: float) -> bool:
        """Wait until it is set, for so long at most; return whether it is."""
        if not self._gate.acquire(timeout=seconds):
            return False
        self.set()
        return True


def _close_hub() -> None:
    """Close the hub that gevent made for this thread, if it had to: its descriptors would stay open."""
    find = getattr(sys.modules.get("gevent._hub_local"), "get_hub_if_exists", None)
    with contextlib.suppress(Exception):
        hub = find() if find is not None else None
        if hub is not None:
            hub.destroy(destroy_loop=True)
