"""uvloop: when is it busy, when idle? From libuv's own accounting, which uvloop's extension module exports.

libuv tells the idle nanoseconds and the number of iterations, exactly and to any thread, but not how long each
iteration was. The watcher thread looks at both figures every few milliseconds. While neither moves, one iteration
holds the loop: that is how single periods longer than the interval are known. Of shorter ones the total is known,
and those that were a request's own step are told by whoever times steps (:meth:`LibuvClock.note_step`).

libuv's memory is read only while the loop is known to be open. Whoever closes it, and by whatever bound method,
uvloop first cancels its timers. So a timer that never fires is set; when uvloop drops its callback, reading ends.

Relies on ``uvloop.loop.libuv_get_loop_t_ptr`` and exported libuv symbols; see docs/what-it-relies-on.md.
"""

from __future__ import annotations

import contextvars
import ctypes
import functools
import sys
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from loopwatch.hot import Lookout
from loopwatch.probes.loops.base import LoopClock
from loopwatch.system import allocate_lock

if TYPE_CHECKING:
    import asyncio

    from loopwatch.hot import Stage
    from loopwatch.readings import LoopReading

_UV_METRICS_IDLE_TIME = 1  # enum uv_loop_option
_MOST_STEPS_NOTED = 1000
_FEW = 3
_LOOK_ATTEMPTS = 10
_MILLISECOND_NS = 1_000_000
_LOOK_APART_NS = 50_000
_NEVER_SECONDS = 100 * 365 * 24 * 3600.0


class _UvMetrics(ctypes.Structure):
    """``uv_metrics_t`` of libuv's public header uv.h."""

    _fields_ = (
        ("loop_count", ctypes.c_uint64),
        ("events", ctypes.c_uint64),
        ("events_waiting", ctypes.c_uint64),
        ("reserved", ctypes.c_uint64 * 13),
    )


@functools.cache
def _libuv() -> ctypes.PyDLL | None:
    """Return the library with the symbols that are needed, ``None`` where one is missing.

    Its functions are called with the GIL held: each takes well under a microsecond.
    """
    extension = getattr(sys.modules.get("uvloop.loop"), "__file__", None)
    if extension is None:
        return None
    try:
        library = ctypes.PyDLL(extension)
        library.uv_loop_configure.argtypes = (ctypes.c_void_p, ctypes.c_int)
        library.uv_metrics_idle_time.argtypes = (ctypes.c_void_p,)
        library.uv_metrics_idle_time.restype = ctypes.c_uint64
        library.uv_now.argtypes = (ctypes.c_void_p,)
        library.uv_now.restype = ctypes.c_uint64
        library.uv_metrics_info.argtypes = (ctypes.c_void_p, ctypes.c_void_p)  # an address is passed on fastest
    except (OSError, AttributeError):
        return None
    return library


def _address_of(loop: asyncio.AbstractEventLoop) -> int:
    """Return the address of the loop's ``uv_loop_t``; it is valid until the loop is closed."""
    unwrap = ctypes.pythonapi.PyCapsule_GetPointer
    unwrap.argtypes, unwrap.restype = (ctypes.py_object, ctypes.c_char_p), ctypes.c_void_p
    address: int = unwrap(sys.modules["uvloop.loop"].libuv_get_loop_t_ptr(loop), None)
    return address


def _address_of_function(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


class _Look(NamedTuple):
    """libuv's figures at one instant: nanoseconds, nanoseconds, a count; and for how long it has run callbacks."""

    now: int
    idle: int
    iterations: int
    running: int = 0


class _Canary:
    """The callback of a timer that never fires: a loop that is being closed lets go of it."""

    __slots__ = ("__weakref__",)

    def __call__(self) -> None:
        """Do nothing, in a hundred years."""


class LibuvClock(LoopClock):
    """Folds libuv's figures into busy periods, each time that it is looked at."""

    name = "libuv"
    reason = "uvloop exports libuv's own account of idle time"
    lives_by_looks = True

    def __init__(self, *loop_and_failures: Any, **options: Any) -> None:
        super().__init__(*loop_and_failures, **options)
        # Guards the address and the figures below. Held for one look at a time, some ten microseconds.
        self._lock = allocate_lock()
        self._library: Any = None
        self._lookout: Any = None
        self._address = 0
        self._metrics, self._step_metrics = _UvMetrics(), _UvMetrics()
        self._step_metrics_at = ctypes.addressof(self._step_metrics)
        self._origin = self._window = _Look(0, 0, 0)
        self._busy = 0
        self._in_one_iteration = 0
        self._long_steps: deque[tuple[int, int]] = deque(maxlen=_MOST_STEPS_NOTED)
        self._timer: asyncio.TimerHandle | None = None
        self._canary: weakref.ref[_Canary] | None = None

    @staticmethod
    def supports(loop: asyncio.AbstractEventLoop) -> bool:
        """Tell whether ``loop`` is uvloop's and its libuv can be asked."""
        module = sys.modules.get("uvloop.loop")
        return (
            isinstance(loop, getattr(module, "Loop", ()))
            and hasattr(module, "libuv_get_loop_t_ptr")
            and _libuv() is not None
        )

    def start(self, stage: Stage) -> None:
        """Switch on libuv's accounting. Loop thread."""
        self._hear_of_the_close()
        self._library, self._address = _libuv(), _address_of(self._loop)
        if self._library.uv_loop_configure(self._address, _UV_METRICS_IDLE_TIME):
            raise RuntimeError("libuv refuses to measure its idle time")
        # Window: the last look at which the count of iterations had moved.
        self._origin = self._window = self._look()
        stage.watch_libuv(
            self._look_from_loop,
            self._address,
            _address_of_function(self._library.uv_metrics_info),
            _address_of_function(self._library.uv_metrics_idle_time),
        )

    def stop(self) -> None:
        """Forget the address. Must come before the loop is closed."""
        self._canary = None  # before the timer is cancelled: nobody is to hear of that
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        if not self._address:
            return
        if self._lookout is not None:
            self._lookout.let_go()
        self._freeze()
        with self._lock:
            self._address = 0

    def _hear_of_the_close(self) -> None:
        """Set the timer, in an empty context: it would keep what the present one holds alive."""
        canary = _Canary()
        self._timer = self._loop.call_later(_NEVER_SECONDS, canary, context=contextvars.Context())
        self._canary = weakref.ref(canary, self._end)

    def _end(self, _canary: weakref.ref[_Canary]) -> None:
        """End the reading while libuv's memory is still there. The thread that closes the loop."""
        try:
            self.stop()
            self.on_closed()
        except Exception as error:
            self._failures.report("loop clock", error, "the end of a loop was not noticed")

    def lookout(self) -> Any:
        """Return what asks libuv directly."""
        if Lookout is None or self._clock is not None:
            return None
        library, self._lookout = self._library, Lookout()
        functions = library.uv_metrics_info, library.uv_metrics_idle_time, library.uv_now
        self._lookout.watch_libuv(self._address, *map(_address_of_function, functions))
        return self._lookout

    def look_back(self, seen: list[tuple[int, ...]]) -> None:
        """Fold what was seen, as if it had been looked at then."""
        with self._lock:
            for at, held, _, _, idle, iterations in seen:
                window = self._window
                if self._address and at > window.now and iterations >= window.iterations:
                    self._fold(_Look(at, idle, iterations, held))

    def _look_from_loop(self, seen: int) -> tuple[int, int]:
        """Return idle nanoseconds, 0 if no iteration has begun since those ``seen``, and the count of iterations.

        Loop thread: the address is good, nobody else uses the struct.
        """
        address = self._address
        if not address:  # another thread has stopped the measuring meanwhile
            return 0, seen
        self._library.uv_metrics_info(address, self._step_metrics_at)
        iterations: int = self._step_metrics.loop_count
        return (0 if iterations == seen else self._library.uv_metrics_idle_time(address)), iterations

    def note_step(self, length: int) -> None:
        """Hear of a step that held the loop: a lower bound of its iteration. Loop thread."""
        address = self._address
        if address:
            self._library.uv_metrics_info(address, self._step_metrics_at)
            self._long_steps.append((self._step_metrics.loop_count, length))

    def _look_now(self) -> int:
        with self._lock:
            return self._fold(self._look()) if self._address else 0

    def _look(self) -> _Look:
        """Read time and idle time so close together that no idle time in between looks like busy time."""
        for _ in range(_LOOK_ATTEMPTS):
            before = self._now()
            self._library.uv_metrics_info(self._address, ctypes.byref(self._metrics))
            idle = self._library.uv_metrics_idle_time(self._address)
            now = self._now()
            if now - before < _LOOK_APART_NS:
                break
        # Idle time stands still while callbacks run; libuv then caches when the poll ended, in milliseconds.
        polling = self._library.uv_metrics_idle_time(self._address) != idle
        woke = (self._library.uv_now(self._address) + 1) * _MILLISECOND_NS
        return _Look(now, idle, self._metrics.loop_count, 0 if polling else max(0, now - woke))

    def _fold(self, look: _Look) -> int:
        """Add the busy periods that ended since the window began; return the length of the present one.

        libuv counts an iteration when it begins to poll: while the count stands still, the loop first idles and
        then runs what it polled, so all busy time of such a window is one period.
        """
        window = self._window
        busy = max(0, (look.now - window.now) - (look.idle - window.idle))
        ended = look.iterations - window.iterations
        if not ended:
            self._in_one_iteration = max(busy, self._in_one_iteration)
            return self._in_one_iteration
        running = min(look.running, busy)  # belongs to the iteration that has just begun
        busy = max(busy - running, self._in_one_iteration)
        self._busy += busy
        for length, periods in self._split(busy, ended, window.iterations):
            self._add(length, look.now - running, periods)
            self._worst.add(length, look.now)
        self._window = look._replace(now=look.now - running)
        self._in_one_iteration = running
        return running

    def _split(self, busy: int, ended: int, before: int) -> list[tuple[int, int]]:
        """Divide ``busy`` among the ``ended`` iterations that began to poll as number ``before`` and later.

        What was seen from outside or told by steps is given to its iteration, the rest in equal parts.
        """
        known: dict[int, int] = {}
        while self._long_steps and self._long_steps[0][0] < before + ended:
            iteration, length = self._long_steps.popleft()
            known[iteration] = known.get(iteration, 0) + length
        if self._in_one_iteration > known.get(before, 0):
            others = sum(known.values()) - known.get(before, 0)
            rest = max(0, busy - others - self._in_one_iteration)
            # Few have passed since: it went on a little. Many: a loop that polls that often kept us from the GIL.
            known[before] = self._in_one_iteration + (rest if ended <= _FEW else rest // ended)
        lengths = list(known.values())[:ended]
        unknown = ended - len(lengths)
        split = [(length, 1) for length in lengths]
        return [*split, (max(0, busy - sum(lengths)) // unknown, unknown)] if unknown else split

    def _read(self) -> LoopReading:
        with self._lock:
            return self._final or self._read_locked()

    def _read_locked(self) -> LoopReading:
        look = self._look()
        current = self._fold(look)
        idle = look.idle - self._origin.idle
        iterations = look.iterations - self._origin.iterations
        return self._reading(look.now, self._busy + current, idle, iterations, current, self._lag)
