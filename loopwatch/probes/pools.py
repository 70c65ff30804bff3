"""Which pools of workers are there, what is each called, and how full is it?

A pool is a kind of limiters or executors, not one object. All that the same code makes, for each request,
connection or call, is one pool; what the app makes once is a pool of one member. A limiter or executor is known
from its first use on. Its pool is decided then: by a name that the user gave, by the prefix of its threads, or by
the code that uses it (:mod:`loopwatch.probes.users`). The default limiter and the loop's default executor keep
their pool when another loop is measured.

When a member is collected its places go; what the pool has counted stays for as long as the watch.
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
from typing import TYPE_CHECKING, Any, NamedTuple

from loopwatch.catalogue import LATENCY_BUCKETS
from loopwatch.histogram import NANOSECONDS, bounds_in_nanoseconds, counted
from loopwatch.hot import Member, Pool
from loopwatch.identity import WeakIdentityMap
from loopwatch.names import printable
from loopwatch.probes.frames import Sampler
from loopwatch.probes.users import User, name_of, user_of
from loopwatch.readings import PoolReading, PoolStall

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

DEFAULT_LIMITER, DEFAULT_EXECUTOR, OTHER = "anyio", "asyncio", "_other"
LONGEST_NAME = 100

MOST_PREFIXES = 8
"""So many prefixes of threads that come from one place are pools. More are taken to be made up for each call."""

_NUMBERED = re.compile(r"ThreadPoolExecutor-\d+")
"""The prefix of threads that nobody chose."""

_BOUNDS_NS = bounds_in_nanoseconds(LATENCY_BUCKETS)
_WAITS_FOR_WORK = (
    "anyio.from_thread", "anyio._core", "asyncio.run_coroutine_threadsafe",
    "concurrent.futures._base", "concurrent.futures.process", "concurrent.futures.thread.ThreadPoolExecutor",
)  # fmt: skip
_WORKERS = ("concurrent.futures.thread:", "anyio._backends._asyncio:WorkerThread.")
"""Where a thread is that runs a function without lines, one written in C."""


class _Kind(NamedTuple):
    """What tells a pool from all others: ``place`` tells apart what one function uses, 0 where that is one kind."""

    sort: str
    name: str
    place: int | tuple[int, int] = 0


class _Source(weakref.ref[Any]):
    """A limiter or executor while it lives, in the pool that it is a member of."""

    __slots__ = ("entry", "limit", "member", "number")

    entry: _Entry
    limit: float
    member: Member
    number: int

    def refresh(self) -> None:
        """Notice that the limit was changed. Any thread."""
        limit = _limit_of(self())
        if limit is not None and limit != self.limit:
            self.limit = limit
            self.member.resize(limit)


class _Entry:
    """A pool under its name, and its living members. ``members`` is how many it ever had."""

    def __init__(self, name: str, *, has_threads: bool = True) -> None:
        self.name = name
        self.pool = Pool(_BOUNDS_NS)
        self.members = 0
        self._has_threads = has_threads
        self._sources: dict[int, _Source] = {}

    def add(self, source: Any, on_end: Callable[[_Source], None] | None) -> _Source:
        """Make a limiter or executor a member; ``on_end`` is called when it is collected."""
        added = _Source(source, on_end)
        limit = _limit_of(source)
        added.entry, added.number = self, id(source)
        added.limit = math.inf if limit is None else limit
        added.member = Member(self.pool, added.limit, _is_limiter(source), is_remote(source))
        self._sources[added.number] = added
        self.members += 1
        return added

    def remove(self, source: _Source) -> None:
        """Let a member go. Any thread, in the middle of anything: this takes no lock."""
        self._sources.pop(source.number, None)
        source.member.retire()

    def living(self) -> list[tuple[_Source, Any]]:
        """Return the members that live, each with its limiter or executor. Any thread."""
        found = [(source, source()) for source in self._sources.copy().values()]
        return [(source, alive) for source, alive in found if alive is not None]

    def read(self) -> PoolReading:
        """Any thread."""
        living = self.living()
        for source, _ in living:
            source.refresh()
        limit, in_use, queued, saturated, queue, run, cpu, wait = self.pool.read()
        if living and all(_is_limiter(limiter) for _, limiter in living):
            # They also know of those who use them without a thread.
            statistics = [limiter.statistics() for _, limiter in living]
            in_use = sum(now.borrowed_tokens for now in statistics)
            queued = sum(now.tasks_waiting for now in statistics)
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
            is_anew=self.members > 1,
        )


class _Default(_Entry):
    """A pool of one member, behind which there is now this object and now that."""

    def __init__(self, name: str, source: Any) -> None:
        super().__init__(name)
        self._source = self.add(source, None)

    def follow(self, source: Any) -> None:
        """Take the limit from ``source`` from now on."""
        if self.has(source):
            return
        before, self._source = self._source, _Source(source)
        self._source.entry, self._source.number = self, id(source)
        self._source.limit, self._source.member = before.limit, before.member
        self._sources = {self._source.number: self._source}
        self._source.refresh()

    @property
    def member(self) -> Member:
        """The one that all work is submitted to."""
        return self._source.member

    def has(self, source: Any) -> bool:
        """Tell whether that limiter or executor is behind it now."""
        return self._source() is source

    def refresh(self) -> None:
        """Notice that the limit was changed."""
        self._source.refresh()


class Pools:
    """All pools of one watch. Found and named on the loop thread, read on any."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._given: WeakIdentityMap[str] = WeakIdentityMap()
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forget all pools; not the names that were given."""
        self._sources: dict[int, _Source] = {}
        self._kinds: dict[_Kind, _Entry] = {}
        self._prefixes: Counter[User] = Counter()
        self._limiter: _Default | None = None
        self._executor: _Default | None = None
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
            self._limiter = _Default(self._unique(self._given.get(limiter) or DEFAULT_LIMITER), limiter)
        self._limiter.follow(limiter)

    def end(self) -> None:
        """Let go of the loop; the figures stay."""
        self._loop = self._default_executor = None

    def set_default_executor(self, executor: Any) -> None:
        """Note what executor the loop's own is from now on."""
        self._default_executor = executor

    def of_limiter(self, limiter: Any, function: Any) -> Member:
        """Return what stands for a limiter, ``None`` being the default one; ``function`` may give it a name."""
        default = self._limiter
        if default is not None and (limiter is None or default.has(limiter)):
            return default.member
        return self._find(limiter, function).member

    def refresh(self, limiter: Any) -> None:
        """Notice that the limit of a limiter was changed."""
        default, source = self._limiter, self._sources.get(id(limiter))
        if source is not None:
            source.refresh()
        elif default is not None and default.has(limiter):
            default.refresh()

    def of_executor(self, executor: Any, function: Any) -> Member:
        """Return what stands for an executor, ``None`` being the loop's own; ``function`` may give it a name."""
        own = self._default_executor or getattr(self._loop, "_default_executor", None)
        if executor is not None and executor is not own:
            return self._find(executor, function).member
        behind = _usual_executor() if own is None else own
        if self._executor is None:
            given = None if own is None else self._given.get(own)
            self._executor = _Default(self._unique(given or DEFAULT_EXECUTOR), behind)
        self._executor.follow(behind)
        return self._executor.member

    def name(self, source: Any, name: str) -> None:
        """Give a limiter or an executor the name that metrics tell it by.

        A pool of which it is the only member that there ever was is called so; else it becomes a member of another
        pool. What is given the same name is one pool.
        """
        if not isinstance(name, str) or not name.strip() or len(name) > LONGEST_NAME:
            raise ValueError(f"a pool's name must be 1 to {LONGEST_NAME} characters, got {name!r}.")
        if not isinstance(source, Executor) and not _is_limiter(source):
            raise TypeError(
                f"name_pool needs an executor or an anyio.CapacityLimiter, got {source!r}. "
                "Pass the object that your code gives to run_in_executor() or to_thread.run_sync()."
            )
        name = self._given[source] = printable(name, LONGEST_NAME)
        for default in (self._limiter, self._executor):
            if default is not None and default.has(source):
                default.name = self._unique(name, but=default)
                return
        known = self._sources.get(id(source))
        if known is not None and known.entry.name != name:
            self._rename(known, _Kind(_sort(source), name))

    def _rename(self, source: _Source, kind: _Kind) -> None:
        entry = source.entry
        if kind not in self._kinds and entry is not self._rest and entry.members == 1:
            old = next(old for old, one in self._kinds.items() if one is entry)
            self._kinds = {kind if one is old else one: each for one, each in self._kinds.items()}
            entry.name = self._unique(kind.name, but=entry)
        else:
            self._retire(source)  # it is found anew at its next use

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
        return [entry for entry in (*own, *self._kinds.copy().values(), self._rest) if entry is not None]

    def _find(self, source: Any, function: Any) -> _Source:
        found = self._sources.get(id(source))
        if found is None:
            found = self._pool_of(source, function).add(source, self._retire)
            self._sources[found.number] = found
        return found

    def _retire(self, source: _Source) -> None:
        """Let a member go. Any thread, in the middle of anything: an executor may be collected in any."""
        if self._sources.get(source.number) is source:
            del self._sources[source.number]
        source.entry.remove(source)

    def _pool_of(self, source: Any, function: Any) -> _Entry:
        """Return the pool that a limiter or executor belongs to which is used for the first time."""
        user = user_of(type(source), function)
        kind = self._kind(source, user)
        entry = self._kinds.get(kind)
        if entry is None:
            if len(self._kinds) >= self._most:
                return self._others()
            entry = self._kinds[kind] = _Entry(self._unique(kind.name), has_threads=not is_remote(source))
            if kind.name == _prefix(source):
                self._prefixes[user] += 1
        return entry

    def _kind(self, source: Any, user: User) -> _Kind:
        sort, given, prefix = _sort(source), self._given.get(source), _prefix(source)
        if given is not None:
            return _Kind(sort, given)
        by_prefix = _Kind(sort, prefix)
        if prefix and (by_prefix in self._kinds or self._prefixes[user] < MOST_PREFIXES):
            return by_prefix
        return _Kind(sort, printable(f"{sort}:{user.function}", LONGEST_NAME), user.place)

    def _others(self) -> _Entry:
        if self._rest is None:
            self._rest = _Entry(OTHER)
        return self._rest

    def _unique(self, name: str, but: _Entry | None = None) -> str:
        taken = {OTHER, *(entry.name for entry in self._all() if entry is not but)}
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


def _sort(source: Any) -> str:
    if _is_limiter(source):
        return "limiter"
    return "processes" if is_remote(source) else "threads"


def _prefix(source: Any) -> str:
    """Return the prefix that somebody chose for the names of an executor's threads, ``""`` if nobody did."""
    prefix = printable(getattr(source, "_thread_name_prefix", ""), LONGEST_NAME)
    return "" if is_remote(source) or _NUMBERED.fullmatch(prefix) else prefix


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
            calls[name_of(function)] += 1
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
