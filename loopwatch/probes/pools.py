"""Which pools of workers are there, what is each called, and how full is it?

A pool is one of anyio's limiters or an executor. It is known from its first use on, for as long as it lives; the
default limiter and the loop's default executor keep their place when another loop is measured. Names come from
the user, or else from what others know the pool by: the prefix of its threads, or the first function that it ran.
A pool that is gone leaves its name and its figures to the next of that name: some make an executor per request.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
import time
import weakref
from collections import Counter
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from loopwatch.catalogue import LATENCY_BUCKETS
from loopwatch.histogram import NANOSECONDS, bounds_in_nanoseconds, counted
from loopwatch.hot import Pool
from loopwatch.probes.frames import Sampler
from loopwatch.readings import PoolReading, PoolStall

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

DEFAULT_LIMITER, DEFAULT_EXECUTOR, OTHER = "anyio", "asyncio", "_other"
LONGEST_NAME = 100

_NUMBERED = re.compile(r"ThreadPoolExecutor-\d+")
"""The prefix of threads that nobody chose."""

_BOUNDS_NS = bounds_in_nanoseconds(LATENCY_BUCKETS)
_WAITS_FOR_WORK = (
    "anyio.from_thread", "anyio._core", "asyncio.run_coroutine_threadsafe",
    "concurrent.futures._base", "concurrent.futures.process", "concurrent.futures.thread.ThreadPoolExecutor",
)  # fmt: skip
_WORKERS = ("concurrent.futures.thread:", "anyio._backends._asyncio:WorkerThread.")
"""Where a thread is that runs a function without lines, one written in C."""


class _Entry:
    """A pool under its name, and the limiter or executor behind it."""

    def __init__(self, name: str, source: Any) -> None:
        in_line = is_remote(source)
        self.name = name
        self._has_threads = not in_line
        self._limit = math.inf
        self._source: Callable[[], Any] = _nothing
        self.pool = Pool(_BOUNDS_NS, math.inf, _is_limiter(source), in_line)
        if source is not None:
            self.follow(weakref.ref(source))

    def follow(self, source: Callable[[], Any]) -> None:
        """Take the limit from what ``source`` returns, from now on."""
        self._source = source
        self.refresh()

    def is_of(self, source: Any) -> bool:
        """Tell whether this is the pool of that limiter or executor."""
        return source is not None and self._source() is source

    def refresh(self) -> None:
        """Notice that the limit was changed."""
        limit = _limit_of(self._source())
        if limit is not None and limit != self._limit:
            self._limit = limit
            self.pool.resize(limit)

    def read(self) -> PoolReading:
        """Any thread."""
        source = self._source()
        self.refresh()
        limit, held, saturated, queue, run, cpu, wait = self.pool.read()
        in_use = min(held, limit)
        queued = held - in_use
        if _is_limiter(source):  # it also knows of those who use it without a thread
            now = source.statistics()
            in_use, queued = now.borrowed_tokens, now.tasks_waiting
        return PoolReading(
            self.name,
            limit,
            int(in_use),
            int(queued),
            counted(LATENCY_BUCKETS, *queue),
            counted(LATENCY_BUCKETS, *run),
            saturated / NANOSECONDS,
            cpu / NANOSECONDS if self._has_threads else None,
            wait / NANOSECONDS if self._has_threads else None,
        )


class Pools:
    """All pools of one watch. Found and named on the loop thread, read on any."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._given: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forget all pools; not the names that were given."""
        self._entries: dict[int, _Entry] = {}
        self._gone: dict[tuple[str, type], _Entry] = {}
        self._limiter: _Entry | None = None
        self._executor: _Entry | None = None
        self._rest: _Entry | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._default_executor: Executor | None = None
        self._told: dict[str, float] = {}

    def begin(self, loop: asyncio.AbstractEventLoop, limiter: Any) -> None:
        """Measure another loop, whose default limiter this is; ``None`` where anyio is not in use."""
        self._loop = loop
        if limiter is None:
            return
        if self._limiter is None:
            self._limiter = _Entry(self._unique(self._given.get(limiter, DEFAULT_LIMITER)), limiter)
        self._limiter.follow(weakref.ref(limiter))

    def end(self) -> None:
        """Let go of the loop; the figures stay."""
        self._loop = self._default_executor = None

    def set_default_executor(self, executor: Any) -> None:
        """Note what executor the loop's own is from now on."""
        self._default_executor = executor

    def of_limiter(self, limiter: Any, function: Any) -> Pool:
        """Return the pool of a limiter, ``None`` being the default one; ``function`` may give it a name."""
        entry = self._limiter
        if entry is None or not (limiter is None or entry.is_of(limiter)):
            entry = self._find(limiter, lambda: f"limiter:{_name_of(function)}")
        return entry.pool

    def refresh(self, source: Any) -> None:
        """Notice that the limit of a limiter was changed."""
        for entry in self._all():
            if entry.is_of(source):
                entry.refresh()

    def of_executor(self, executor: Any, function: Any) -> Pool:
        """Return the pool of an executor, ``None`` being the loop's own; ``function`` may give it a name."""
        own = self._default_executor or getattr(self._loop, "_default_executor", None)
        if executor is not None and executor is not own:
            return self._find(executor, lambda: _executor_name(executor, function)).pool
        if self._executor is None:
            given = None if own is None else self._given.get(own)
            self._executor = _Entry(self._unique(given or DEFAULT_EXECUTOR), None)
        self._executor.follow(_usual_executor if own is None else weakref.ref(own))
        return self._executor.pool

    def name(self, source: Any, name: str) -> None:
        """Give a limiter or an executor the name that metrics tell it by."""
        if not isinstance(name, str) or not name.strip() or len(name) > LONGEST_NAME:
            raise ValueError(f"a pool's name must be 1 to {LONGEST_NAME} characters, got {name!r}.")
        if not isinstance(source, Executor) and not _is_limiter(source):
            raise TypeError(
                f"name_pool needs an executor or an anyio.CapacityLimiter, got {source!r}. "
                "Pass the object that your code gives to run_in_executor() or to_thread.run_sync()."
            )
        self._given[source] = name
        for entry in self._all():
            if entry.is_of(source):
                entry.name = self._unique(name, but=entry)

    def read(self) -> tuple[PoolReading, ...]:
        """Return the state of each pool. Any thread."""
        return tuple(entry.read() for entry in self._all())

    def stuck(self, seconds: float) -> list[PoolStall]:
        """Return the pools in which nothing has ended for ``seconds`` while work waits, each once. Any thread."""
        found, told = [], {}
        for entry in self._all():
            waited, running = entry.pool.stuck()
            if waited < seconds * NANOSECONDS:
                continue
            since = self._told.get(entry.name)
            told[entry.name] = since if since is not None else time.time() - waited / NANOSECONDS
            if since is None:
                found.append(_pool_stall(entry.read(), told[entry.name], waited / NANOSECONDS, running))
        self._told = told
        return found

    def _all(self) -> list[_Entry]:
        own = (self._limiter, self._executor)
        return [entry for entry in (*own, *self._entries.copy().values(), self._rest) if entry is not None]

    def _find(self, source: Any, name: Callable[[], str]) -> _Entry:
        entry = self._entries.get(id(source))
        if entry is None:
            if len(self._entries) >= self._most:
                return self._others()
            known = self._unique(self._given.get(source) or name()), type(source)
            entry = self._gone.pop(known, None)
            if entry is not None:
                entry.follow(weakref.ref(source))
            elif len(self._entries) + len(self._gone) < self._most:
                entry = _Entry(known[0], source)
            else:
                return self._others()
            self._entries[id(source)] = entry
            weakref.finalize(source, self._retire, id(source), type(source)).atexit = False
        return entry

    def _retire(self, key: int, kind: type) -> None:
        """Any thread: an executor may be collected in any."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._gone[entry.name, kind] = entry

    def _others(self) -> _Entry:
        if self._rest is None:
            self._rest = _Entry(OTHER, None)
        return self._rest

    def _unique(self, name: str, but: _Entry | None = None) -> str:
        taken = {entry.name for entry in self._all() if entry is not but}
        names = itertools.chain([name], (f"{name} {number}" for number in itertools.count(2)))
        return next(one for one in names if one not in taken)


def is_threads(executor: Any) -> bool:
    """Tell whether an executor runs functions in threads of this interpreter, where they can be timed."""
    return isinstance(executor, ThreadPoolExecutor) and not is_remote(executor)


def is_remote(source: Any) -> bool:
    """Tell whether an executor pickles its work: for other processes, or for other interpreters."""
    names = {kind.__name__ for kind in type(source).__mro__}
    return not names.isdisjoint({"ProcessPoolExecutor", "InterpreterPoolExecutor"})


def tells_its_executor(loop: asyncio.AbstractEventLoop) -> bool:
    """Tell whether a loop's own executor can be seen: else it is noted when it is set."""
    return hasattr(loop, "_default_executor")


def _nothing() -> None:
    return None


@functools.cache
def _usual_executor() -> ThreadPoolExecutor:
    """Return an executor as a loop makes its own. It starts no thread until it is used, and it never is."""
    return ThreadPoolExecutor()


def _is_limiter(source: Any) -> bool:
    return hasattr(source, "total_tokens") and hasattr(source, "statistics")


def _limit_of(source: Any) -> float | None:
    """Return how many may work at once, ``None`` where that is not told."""
    limit: float | None = getattr(source, "total_tokens", None)
    return getattr(source, "_max_workers", None) if limit is None else limit


def _executor_name(executor: Any, function: Any) -> str:
    if is_remote(executor):
        return f"processes:{_name_of(function)}"
    prefix = str(getattr(executor, "_thread_name_prefix", ""))
    return f"threads:{_name_of(function)}" if _NUMBERED.fullmatch(prefix) or not prefix else prefix[:LONGEST_NAME]


def _name_of(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    module = getattr(function, "__module__", None) or type(function).__module__
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    return f"{module}.{name}"[:LONGEST_NAME]


def _pool_stall(now: PoolReading, since: float, seconds: float, running: list[tuple[int, Any]]) -> PoolStall:
    """Put together what is known of a pool that is stuck, and of the functions that its threads run."""
    sampler = Sampler()
    calls: Counter[str] = Counter()
    stacks, waiting = [], 0
    for thread, function in running:
        sample = sampler.sample(thread)
        if sample is None:
            continue
        stacks.append(tuple(str(line) for line in sample.stack))
        if sample.culprit.function.startswith(_WORKERS):
            calls[_name_of(function)] += 1
        else:
            calls[f"{sample.culprit}" + (f" in {sample.call}" if sample.call else "")] += 1
            waiting += any(name.startswith(_WAITS_FOR_WORK) for name in (sample.call, *sample.inner))
    return PoolStall(
        pool=now.pool,
        started_at=since,
        duration=seconds,
        limit=now.limit,
        queued=now.queued,
        threads=len(running),
        waiting=waiting,
        calls=tuple(calls.most_common()),
        stacks=tuple(stacks),
    )
