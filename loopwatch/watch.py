"""Who owns the probes and what they found? LoopWatch: it starts and stops them and takes snapshots."""

from __future__ import annotations

import asyncio
import atexit
import functools
import os
import platform
import threading
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from loopwatch._version import __version__
from loopwatch.advice import Adviser
from loopwatch.config import Config
from loopwatch.failures import Failures, logger
from loopwatch.hot import CORE, Stage, describe_core
from loopwatch.listeners import Listeners
from loopwatch.names import printable
from loopwatch.probes import loops
from loopwatch.probes.patch import Patch
from loopwatch.probes.stalls import StallsProbe
from loopwatch.probes.steps import StepsProbe
from loopwatch.probes.threads import ThreadsProbe
from loopwatch.readings import Advice, Build, LoopReading, PoolStall, Snapshot, Stall
from loopwatch.recorder import Recorder
from loopwatch.system import HAS_GIL, sockets_are_greenlets, threads_are_greenlets

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from loopwatch.exemplars import Exemplars
    from loopwatch.exporters.opentelemetry import OpenTelemetryExporter
    from loopwatch.exporters.port import MetricsPort
    from loopwatch.exporters.traces import TraceExporter
    from loopwatch.hot import Door
    from loopwatch.probes.loops.base import LoopClock


MOST_STALLS = 100
"""How many stalls ``LoopWatch.stalls`` keeps."""


_LAST_WORDS_SECONDS = 0.5
"""How long to wait, where nobody has to, for the stall that was the last thing a loop did to be told."""

_CULPRIT = 0.5
"""The share of ``Config.stall_seconds`` from which on a hold of a stall is logged."""

_SHORTLY_SECONDS = 0.001

_EVERYONE: weakref.WeakSet[LoopWatch] = weakref.WeakSet()
"""All watches of this process."""


@functools.cache  # once is enough
def _hear_of_forks_and_the_end() -> None:
    def begin_all_anew() -> None:
        for watch in _EVERYONE:
            watch.begin_anew()

    def let_all_tell() -> None:
        for watch in tuple(_EVERYONE):
            watch.let_tell()

    if hasattr(os, "register_at_fork"):  # not where a process cannot fork
        os.register_at_fork(after_in_child=begin_all_anew)
    atexit.register(let_all_tell)


@functools.cache  # once is enough
def _log_what_is_off() -> None:
    """Log which parts do not work in this process, if any, and what the user can do about it."""
    if threads_are_greenlets():
        logger.warning(
            "loopwatch: gevent or eventlet has replaced threads with greenlets, so loopwatch runs no threads. "
            "Stalls and work in threads are not measured, spans get no states, and the loop renders "
            "/metrics. To have all of that, do not replace threads: patch with thread=False."
        )
    if not HAS_GIL:
        logger.warning(
            "loopwatch: this interpreter runs without the GIL, so no stack of a running thread can be read. "
            "Stalls are reported without their lines. To have these, set PYTHON_GIL=1."
        )


class _Part(Protocol):
    def stop(self) -> None: ...


class _Loops(NamedTuple):
    """The loop that is measured, and the sum of those before it: replaced as one, so that readers see both."""

    ended: LoopReading | None = None
    clock: LoopClock | None = None

    def read(self) -> LoopReading | None:
        reading = self.clock.read() if self.clock is not None else None
        if reading is None or self.ended is None:
            return reading or self.ended
        return reading + self.ended


class LoopWatch:
    """Measures one event loop and what runs on it.

    Use it as an asynchronous context manager where there is no ASGI app; :func:`loopwatch.install` and
    :class:`loopwatch.LoopWatchMiddleware` start and stop one themselves.

    Raises:
        TypeError: ``config`` is not a :class:`loopwatch.Config`.

    """

    def __init__(self, config: Config | None = None) -> None:
        # Here, so that importing loopwatch loads nothing, and no loop has to wait for it.
        from loopwatch.exporters.log import StallLog  # noqa: PLC0415
        from loopwatch.exporters.port import MetricsPort  # noqa: PLC0415
        from loopwatch.exporters.prometheus import PrometheusExporter  # noqa: PLC0415

        if config is not None and not isinstance(config, Config):
            raise TypeError(
                f"config must be a loopwatch.Config, got {config!r}. Write for example Config(stall_seconds=0.05)."
            )
        self.config = config or Config()
        self.recorder = Recorder(self.config.max_routes)
        self.failures = Failures()
        self.stage = Stage(self.failures.report)
        self.door: Door | None = None
        self.prometheus = PrometheusExporter(
            self.snapshot,
            lambda error: self.failures.report("snapshot", error, "scrapes lack loopwatch's metrics"),
        )
        self._port = None
        if self.config.metrics_port is not None:
            self._port = MetricsPort(
                self.config.metrics_host,
                self.config.metrics_port,
                self.config.metrics_path or "/metrics",
                self.prometheus.page,
                lambda error: self.failures.report("metrics port", error, "metrics are not served there"),
            )
        self._opentelemetry: OpenTelemetryExporter | None = None
        self._traces: TraceExporter | None = None
        if self.config.opentelemetry:
            self._opentelemetry = self._opentelemetry_exporter()
            self._traces = self._trace_exporter(self._opentelemetry.exemplars)
        self.loop: asyncio.AbstractEventLoop | None = None
        self._loops = _Loops()
        self._steps = StepsProbe(self.stage)
        self._threads = ThreadsProbe(self.config.max_pools, self.failures)
        self._stalls: StallsProbe | None = None
        self._ending: StallsProbe | None = None
        self._recent: deque[Stall] = deque(maxlen=MOST_STALLS)
        self._log = StallLog(self.config.stall_seconds * _CULPRIT)
        self._listeners = Listeners(self.failures)
        if self._traces is not None:
            self._listeners.add(Stall, self._traces.hear)  # first: it never blocks
        self._listeners.add(Stall, self._log.hear)
        self._listeners.add(PoolStall, self._log.hear_pool_stall)
        self._listeners.add(Advice, self._log.hear_advice)
        self._pool_stalls: deque[PoolStall] = deque(maxlen=MOST_STALLS)
        self._adviser = Adviser(self._threads.pools.read)
        self._parts: list[tuple[str, _Part]] = []
        self._changing = threading.RLock()  # of starting and stopping: an app may run on loops of several threads
        self._measured: tuple[asyncio.AbstractEventLoop, Stage] | None = None  # read as one, by any thread
        self._close: Patch | None = None
        self._watcher_cpu = 0.0
        _hear_of_forks_and_the_end()
        _EVERYONE.add(self)

    def __reduce__(self) -> tuple[type[LoopWatch], tuple[Config]]:
        """Copy or pickle the configuration only: no measurements, no listeners."""
        return LoopWatch, (self.config,)

    def start(self) -> None:
        """Begin to measure the running loop; another one that was measured before is let go of. Loop thread.

        What cannot be started is reported once and left off; nothing is raised.

        Raises:
            RuntimeError: no event loop is running in this thread.

        """
        loop = asyncio.get_running_loop()
        with self._changing:
            self._start(loop)

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        if loop is self.loop:
            self._attempt("steps", lambda: self._steps.start(loop))
            return
        self.stop()
        if self.others():
            logger.warning(
                "loopwatch: this event loop is measured by another LoopWatch already; "
                "/metrics adds the two up, and tells of the loop twice what there is"
            )
        self.loop = loop
        self.stage = Stage(self.failures.report)
        self._attempt("loop clock", lambda: self._start_clock(loop))
        self._attempt("steps", lambda: self._start_steps(loop))
        self._measured = loop, self.stage
        if self.door is not None:
            self.door.renew(loop, self.stage)  # it may have been stopped and started
        if not threads_are_greenlets():
            self._attempt("threads", lambda: self._start_threads(loop))
            self._attempt("stalls", lambda: self._start_stalls(loop))
        self._attempt("prometheus", self._start_prometheus)
        port = self._port
        if port is not None:
            self._attempt("metrics port", lambda: self._start_port(port))
        self._attempt("opentelemetry", self._start_opentelemetry)
        if not threads_are_greenlets():
            self._attempt("traces", self._start_traces)
        self._attempt("loop close", lambda: self._stop_when_closed(loop))
        _log_what_is_off()

    def stage_of(self, loop: asyncio.AbstractEventLoop) -> Stage | None:
        """Return the stage that ``loop`` is measured on now; None where another one, or none, is measured."""
        measured = self._measured
        return measured[1] if measured is not None and measured[0] is loop else None

    def stop(self) -> None:
        """Stop measuring and restore all that was patched; snapshots keep what was seen. Safe to call twice."""
        with self._changing:
            self._stop()

    def _stop_on(self, loop: asyncio.AbstractEventLoop) -> None:
        """Stop, unless another loop is measured by now. Any thread."""
        with self._changing:
            if self.loop is loop:
                self._stop()

    def _stop(self) -> None:
        loop, self.loop = self.loop, None
        self._measured = None
        if loop is None:
            return
        parts, self._parts = self._parts, []
        for name, part in reversed(parts):
            self._attempt(name, part.stop)
        self._attempt("loop close", self._forget_close)
        self._ending, self._stalls = self._stalls, None
        if self._ending is not None:
            self._watcher_cpu += self._ending.cpu_seconds
        if self._loops.clock is not None:
            self._loops = _Loops(self._loops.read())

    def let_tell(self) -> None:
        """Wait a little until what was seen is told: the process ends, and its threads with it. Any thread."""
        if self._ending is not None:
            self._ending.join(_LAST_WORDS_SECONDS)
        self._listeners.join(_LAST_WORDS_SECONDS)

    def others(self) -> list[LoopWatch]:
        """Return the other watches that measure the running loop."""
        loop = asyncio.get_running_loop()
        return [one for one in tuple(_EVERYONE) if one.loop is loop and one is not self]

    def begin_anew(self) -> None:
        """Forget all that was measured: it is that of the process which forked this one, and its threads are too.

        No lock is taken, as another thread may have held it when that happened.
        """
        self._changing = threading.RLock()
        self.loop = self._measured = self._close = self._stalls = self._ending = None
        self._parts, self._loops, self._watcher_cpu = [], _Loops(), 0.0
        self.stage = Stage(self.failures.report)
        self._steps = StepsProbe(self.stage)
        self._threads.begin_anew()
        self._adviser = Adviser(self._threads.pools.read)
        self._recent.clear()
        self._pool_stalls.clear()
        told = self._listeners, self.prometheus, self._port, self._opentelemetry, self._traces
        for part in (self.recorder, self.failures, self.door, *told):
            if part is not None:
                part.begin_anew()

    def snapshot(self) -> Snapshot:
        """Return everything seen so far. Any thread; on the loop it takes some 50 microseconds.

        Cumulative and frozen: the difference of two snapshots is the interval between them.
        """
        stalls, clock = self._stalls, self.clock_name
        watcher = self._watcher_cpu + (stalls.cpu_seconds if stalls is not None else 0.0)
        stall_durations, stall_times = self.recorder.read_stalls()
        telling = {}
        if self._opentelemetry is not None and self._traces is not None:
            telling["opentelemetry"] = self._opentelemetry.cpu_seconds + self._traces.cpu_seconds
        return Snapshot(
            taken_at=time.time(),
            build=Build(__version__, CORE, clock, platform.python_version()) if clock else None,
            loop=self._loops.read(),
            stall_durations=stall_durations,
            stall_times=stall_times,
            routes=self.recorder.read(),
            victims=self.recorder.read_victims(),
            active=self.door.count_active() if self.door is not None else 0,
            pools=self._threads.pools.read(),
            self_time={"watcher": watcher, **self.prometheus.cpu_times(), **telling},
            dropped=self.failures.read(),
        )

    @property
    def clock_name(self) -> str:
        """The clock that measures the loop: ``selector``, ``libuv`` or ``heartbeat``; ``""`` before any does."""
        clock = self._loops.clock
        return clock.name if clock is not None else ""

    @property
    def stalls(self) -> tuple[Stall, ...]:
        """The most recent stalls that have ended, newest last. Any thread."""
        return tuple(self._recent)

    def on_stall(self, listener: Callable[[Stall], None]) -> Callable[[Stall], None]:
        """Have ``listener`` called with every stall that has ended; a decorator.

        It runs on a thread of loopwatch's own, one call after the other; what it raises is logged once. Where it
        blocks, up to a hundred stalls wait for it, and further ones are dropped and counted.

        Raises:
            TypeError: it cannot be called, or is a coroutine function.

        """
        self._listeners.add(Stall, listener)
        return listener

    @property
    def pool_stalls(self) -> tuple[PoolStall, ...]:
        """The most recent pools in which nothing ended while work waited, newest last. Any thread."""
        return tuple(self._pool_stalls)

    def on_pool_stall(self, listener: Callable[[PoolStall], None]) -> Callable[[PoolStall], None]:
        """Have ``listener`` called when nothing has ended in a pool for long while work waits; a decorator.

        It runs where the listeners of :meth:`on_stall` do; the time is ``Config.pool_stall_seconds``.

        Raises:
            TypeError: it cannot be called, or is a coroutine function.

        """
        self._listeners.add(PoolStall, listener)
        return listener

    def name_pool(self, pool: Any, name: str) -> None:
        """Name an executor, or an ``anyio.CapacityLimiter`` used for threads, in metrics and words. Any time.

        What is not printable in ``name`` is written as an escape.

        Raises:
            TypeError: ``pool`` is neither.
            ValueError: ``name`` is empty or too long.

        """
        self._threads.pools.name(pool, name)

    def advice(self) -> tuple[Advice, ...]:
        """Suggest a size for each pool whose work had to wait much during the last hour. Any thread."""
        return self._adviser.advice()

    def _look_at_pools(self) -> None:
        """Watcher thread, about once a second. What fails here must not end the watch over the loop."""
        try:
            for stall in self._threads.pools.stuck(self.config.pool_stall_seconds):
                self._pool_stalls.append(stall)
                self._listeners.tell(stall)
            for advice in self._adviser.due():
                self._listeners.tell(advice)
        except Exception as error:
            self.failures.report("pools", error, "what is wrong with a pool may not be told")

    def _hear_stall(self, stall: Stall) -> None:
        """Watcher thread."""
        self.recorder.note_stall(stall)
        self._recent.append(stall)
        self._listeners.tell(stall)

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
        give_up_at = time.monotonic() + _LAST_WORDS_SECONDS
        # A thread that ends wakes nobody up.
        while self._ending is not None and self._ending.is_watching() and time.monotonic() < give_up_at:  # noqa: ASYNC110
            await asyncio.sleep(_SHORTLY_SECONDS)

    def _attempt(self, name: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:
            self.failures.report(name, error, "that part of loopwatch is off")

    def _start_clock(self, loop: asyncio.AbstractEventLoop) -> None:
        clock = loops.choose(loop, self.config, self.failures)
        kind = printable(f"{type(loop).__module__}.{type(loop).__qualname__}")
        self.stage = Stage(self.failures.report, clock.note_step)
        clock.on_closed = lambda: self._stop_on(loop)
        clock.start(self.stage)
        self._parts.append(("loop clock", clock))
        self._loops = _Loops(self._loops.ended, clock)
        logger.info(
            "loopwatch: measuring %s with the %s clock (%s) and the %s",
            kind,
            clock.name,
            clock.reason,
            describe_core(),
        )

    def _start_steps(self, loop: asyncio.AbstractEventLoop) -> None:
        self._steps = StepsProbe(self.stage)
        self._parts.append(("steps", self._steps))
        self._steps.start(loop)

    def _start_threads(self, loop: asyncio.AbstractEventLoop) -> None:
        self._parts.append(("threads", self._threads))
        self._threads.start(loop, self.stage)

    def _start_stalls(self, loop: asyncio.AbstractEventLoop) -> None:
        clock = self._loops.clock
        if clock is None:
            return  # it failed, and the log says so
        self._stalls = StallsProbe(
            clock,
            self.stage,
            self.failures,
            stall_seconds=self.config.stall_seconds,
            interval_seconds=self.config.watch_interval_seconds,
            on_stall=self._hear_stall,
            on_long=lambda stall: self._listeners.tell_one(self._log.hear_early, stall),
            each_second=self._look_at_pools,
            on_closed=lambda: self._stop_on(loop),
        )
        self._parts.insert(0, ("stalls", self._stalls))  # stopped last: it tells what the clock's stop ended
        self._stalls.start(loop)

    def _start_prometheus(self) -> None:
        self._parts.append(("prometheus", self.prometheus))
        self.prometheus.start()

    def _start_port(self, port: MetricsPort) -> None:
        if threads_are_greenlets() or sockets_are_greenlets():
            logger.warning(
                "loopwatch: gevent or eventlet has replaced sockets, so Config.metrics_port is not served. "
                "Scrape the app's own port, at Config.metrics_path."
            )
            return
        self._parts.append(("metrics port", port))
        port.start()

    def _opentelemetry_exporter(self) -> OpenTelemetryExporter:
        try:
            from loopwatch.exporters.opentelemetry import OpenTelemetryExporter  # noqa: PLC0415 # it is optional
        except ImportError as error:
            raise ImportError(
                "Config(opentelemetry=True) needs OpenTelemetry's API: pip install 'loopwatch[otel]'."
            ) from error
        return OpenTelemetryExporter(
            self.snapshot,
            on_failure=lambda error: self.failures.report("opentelemetry", error, "it lacks some of the metrics"),
        )

    def _start_opentelemetry(self) -> None:
        if self._opentelemetry is not None:
            self._parts.append(("opentelemetry", self._opentelemetry))
            self._opentelemetry.start()

    def _trace_exporter(self, exemplars: Exemplars) -> TraceExporter:
        from loopwatch.exporters.traces import TraceExporter  # noqa: PLC0415 # it is optional

        return TraceExporter(
            self.config.stall_seconds,
            on_failure=lambda error: self.failures.report("traces", error, "spans may lack states or stalls"),
            exemplars=exemplars,
        )

    def _start_traces(self) -> None:
        if self._traces is not None and self.door is not None:
            self._parts.append(("traces", self._traces))
            self._traces.start(self.door, self.stage)

    def _stop_when_closed(self, loop: asyncio.AbstractEventLoop) -> None:
        """Stop before the loop is closed, where no lifespan or context manager does it."""
        close = loop.close

        @functools.wraps(close)
        def stop_and_close() -> None:
            self._stop_on(loop)
            if self._ending is not None:
                self._ending.join(_LAST_WORDS_SECONDS)  # nothing runs on the loop any more
            close()

        self._close = Patch(loop, "close", stop_and_close)

    def _forget_close(self) -> None:
        close, self._close = self._close, None
        if close is not None:
            close.remove()
