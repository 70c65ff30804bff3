"""What did loopwatch see? Frozen records; the newer of two minus the older is the interval between them."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, field, fields, replace
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Self


@dataclass(frozen=True, slots=True)
class HistogramReading:
    """A histogram with fixed buckets.

    ``bounds`` are upper bounds in seconds; ``counts`` has one entry more, for what lies above the last.
    ``sum`` is in seconds. No observation is above ``upper_limit`` seconds; it is infinite where the largest
    observation is not known. The difference of two readings has that of the newer one.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float
    upper_limit: float = math.inf

    @property
    def count(self) -> int:
        """All observations."""
        return sum(self.counts)

    def cumulative(self) -> tuple[int, ...]:
        """Observations up to and including each bound, and in all: what Prometheus calls ``le``."""
        return tuple(accumulate(self.counts))

    def rebucketed(self, bounds: tuple[float, ...]) -> HistogramReading:
        """Return the same observations in fewer buckets: each of ``bounds`` is one of this histogram's.

        Raises:
            ValueError: one of them is not.

        """
        ends = [*(self.bounds.index(bound) + 1 for bound in bounds), len(self.counts)]
        counts = tuple(sum(self.counts[begin:end]) for begin, end in pairwise([0, *ends]))
        return replace(self, bounds=bounds, counts=counts)

    def quantile(self, q: float) -> float:
        """Estimate the ``q``-quantile in seconds as PromQL's ``histogram_quantile`` does; 0.0 when empty.

        PromQL assumes that observations reach up to the bound of their bucket. Here they end at ``upper_limit``, so
        the estimate is never above the largest observation where that is known.
        """
        cumulative = self.cumulative()
        rank = q * cumulative[-1]
        index = bisect_left(cumulative, rank)
        if not cumulative[-1] or index >= len(self.bounds):
            return min(self.bounds[-1], self.upper_limit) if cumulative[-1] else 0.0
        upper = min(self.bounds[index], self.upper_limit)
        lower = min(self.bounds[index - 1], upper) if index else 0.0
        below = cumulative[index - 1] if index else 0
        share = (rank - below) / self.counts[index] if self.counts[index] else 1.0
        return min(lower + (upper - lower) * share, upper)  # rounded, the sum may lie above the bound

    def __add__(self, other: HistogramReading) -> HistogramReading:
        counts = tuple(a + b for a, b in zip(self.counts, other.counts, strict=True))
        upper_limit = max(self.upper_limit, other.upper_limit)
        return HistogramReading(self.bounds, counts, self.sum + other.sum, upper_limit)

    def __sub__(self, older: HistogramReading) -> HistogramReading:
        counts = tuple(a - b for a, b in zip(self.counts, older.counts, strict=True))
        return HistogramReading(self.bounds, counts, self.sum - older.sum, self.upper_limit)


@dataclass(frozen=True, slots=True)
class LoopReading:
    """One event loop: ``busy``, ``idle``, ``iterations`` and ``lag`` are cumulative, the rest is of now.

    Seconds; ``responsive_at`` is Unix time. ``iterations`` is ``None`` where the loop does not tell them.
    """

    busy: float
    idle: float
    iterations: int | None
    lag: HistogramReading
    lag_max: float
    tasks: int
    responsive_at: float

    @property
    def utilization(self) -> float:
        """Busy share of the time observed, 0.0 to 1.0."""
        observed = self.busy + self.idle
        return self.busy / observed if observed else 0.0

    def __add__(self, other: LoopReading) -> LoopReading:
        return self._combined(other, 1)

    def __sub__(self, older: LoopReading) -> LoopReading:
        return self._combined(older, -1)

    def _combined(self, other: LoopReading, sign: int) -> LoopReading:
        known = self.iterations is not None and other.iterations is not None
        return replace(
            self,
            busy=self.busy + sign * other.busy,
            idle=self.idle + sign * other.idle,
            iterations=(self.iterations or 0) + sign * (other.iterations or 0) if known else self.iterations,
            lag=self.lag + other.lag if sign > 0 else self.lag - other.lag,
        )


@dataclass(frozen=True, slots=True)
class RouteReading:
    """All requests of one route and method, cumulative.

    ``times`` maps ``(phase, state)`` to seconds, ``durations`` a status class such as ``2xx`` to a histogram;
    ``cpu_times`` and ``wait_times`` are histograms of each request's CPU time and of all its other time.
    """

    route: str
    method: str
    times: Mapping[tuple[str, str], float]
    durations: Mapping[str, HistogramReading]
    cpu_times: HistogramReading
    wait_times: HistogramReading

    @property
    def requests(self) -> int:
        """Requests whose response has ended."""
        return sum(histogram.count for histogram in self.durations.values())

    def seconds(self, *states: str, phase: str = "request") -> float:
        """Sum the time spent in ``states`` (all, if none is named) during ``phase``, in seconds."""
        return sum(
            time for (of, state), time in self.times.items() if of == phase and (not states or state in states)
        )

    @property
    def cpu(self) -> float:
        """Seconds on a CPU, on the loop and in worker threads."""
        return self.seconds("loop_cpu", "thread_cpu")

    @property
    def wait(self) -> float:
        """Seconds in every state that is not CPU."""
        return self.seconds() - self.cpu

    def __sub__(self, older: RouteReading) -> RouteReading:
        times = {key: time - older.times.get(key, 0.0) for key, time in self.times.items()}
        durations = {
            key: histogram - older.durations[key] if key in older.durations else histogram
            for key, histogram in self.durations.items()
        }
        return replace(
            self,
            times=times,
            durations=durations,
            cpu_times=self.cpu_times - older.cpu_times,
            wait_times=self.wait_times - older.wait_times,
        )


@dataclass(frozen=True, slots=True)
class PoolReading:
    """One pool of workers: ``limit``, ``in_use`` and ``queued`` are of now, the rest is cumulative.

    ``limit`` is how many may work at once. ``queue_times`` and ``run_times`` are of each piece of work,
    ``saturated`` is the time at the limit. ``cpu`` and ``wait`` divide the time in which work ran; ``None`` for
    processes. Seconds.

    ``is_anew`` is whether the pool's limiters or executors are made anew, for each request, connection or call:
    then ``limit`` is the sum of those that live, and ``saturated`` the time in which work waited for a place.
    """

    pool: str
    limit: float
    in_use: int
    queued: int
    queue_times: HistogramReading
    run_times: HistogramReading
    saturated: float
    cpu: float | None
    wait: float | None
    is_anew: bool = False

    def __sub__(self, older: PoolReading) -> PoolReading:
        return replace(
            self,
            queue_times=self.queue_times - older.queue_times,
            run_times=self.run_times - older.run_times,
            saturated=self.saturated - older.saturated,
            cpu=None if self.cpu is None else self.cpu - (older.cpu or 0.0),
            wait=None if self.wait is None else self.wait - (older.wait or 0.0),
        )


@dataclass(frozen=True, slots=True)
class Advice:
    """What size a pool of workers should have, ``None`` where no size helps, and the reason in words."""

    pool: str
    limit: float
    suggested: int | None
    reason: str

    def __str__(self) -> str:
        """Say it in one sentence."""
        return f"pool {self.pool}: {self.reason}"


@dataclass(frozen=True, slots=True)
class PoolStall:
    """A pool in which nothing has ended for ``duration`` seconds, and still does not, while ``queued`` wait.

    ``started_at`` is Unix seconds. Of the pool's ``threads``, ``waiting`` wait for other work; where that needs the
    same pool, none of them can ever end. ``calls`` counts what they are doing; ``stacks`` are theirs, outermost
    first.
    """

    pool: str
    started_at: float
    duration: float
    limit: float
    queued: int
    threads: int
    waiting: int
    calls: tuple[tuple[str, int], ...]
    stacks: tuple[tuple[str, ...], ...]

    def __str__(self) -> str:
        """Say it in one sentence."""
        doing = "; ".join(f"{count} in {call}" for call, count in self.calls[:3])
        running = f"{self.threads} of {self.limit:.0f} threads run{f': {doing}' if doing else ''}; "
        return (
            f"pool {self.pool}: nothing has ended for {self.duration:.0f} s while {self.queued} wait; "
            f"{running if self.threads else ''}{self.remedy}"
        )

    @property
    def remedy(self) -> str:
        """What to do about it."""
        if self.waiting and 2 * self.waiting >= self.threads:
            return (
                "they wait for other work: if that needs the same pool, none can ever end; "
                "give one of the two a limiter or executor of its own"
            )
        return "if that should end sooner, set a timeout on these calls; if not, give them a pool of their own"


@dataclass(frozen=True, slots=True)
class Hold:
    """One uninterrupted stretch of a stall in which one request, task or callback had the loop.

    ``started_at`` is Unix seconds, ``duration`` seconds. ``route`` and ``method`` are those of the request that
    held the loop, ``task`` is the name of the task that did; each is ``None`` where there was none. ``function``
    (``module:qualname``), ``filename`` and ``lineno`` say where: the innermost line of the app's own code, and
    ``call`` what that line was calling; they are empty where it was not seen. ``stack`` is the stack, outermost
    first. ``cause`` is one of ``catalogue.CAUSES``; ``remedy`` says what to do about it.
    """

    started_at: float
    duration: float
    route: str | None
    method: str | None
    task: str | None
    cause: str
    function: str
    filename: str
    lineno: int
    call: str
    stack: tuple[str, ...]
    remedy: str

    def __str__(self) -> str:
        """Say it in one sentence."""
        return f"{self.holder} {self.what_happened}; {self.remedy}"

    @property
    def holder(self) -> str:
        """Who held the loop: ``GET /report``, a task's name, or a callback."""
        if self.route is not None:
            return f"{self.method} {self.route}"
        return f"task {self.task}" if self.task is not None else "a callback"

    @property
    def what_happened(self) -> str:
        """How long, where and why."""
        place = f"{self.function} ({self.filename}:{self.lineno})" if self.function else "a place that was not seen"
        called = f" in {self.call}" if self.call else ""
        why = {
            "cpu": f"computing{called}",
            "blocking": f"blocking{called}",
            "gil": "waiting for the GIL, which another thread held",
            "starved": "getting no CPU from the machine",
            "gc": "collecting garbage",
        }.get(self.cause, f"calling {self.call}, cause unknown" if self.call else "cause unknown")
        return f"held the event loop for {self.duration * 1000:.0f} ms in {place}, {why}"


@dataclass(frozen=True, slots=True)
class Stall(Hold):
    """One uninterrupted busy period of the loop, longer than ``Config.stall_seconds``.

    ``started_at`` and ``duration`` are its own. It consists of one or more ``holds``, here longest first; the other
    fields are those of the longest. Time of which nothing is known is in no hold.
    """

    holds: tuple[Hold, ...] = ()

    @classmethod
    def of(cls, started_at: float, duration: float, holds: Sequence[Hold]) -> Self:
        """Return a stall of one or more holds, the longest first."""
        longest = {field.name: getattr(holds[0], field.name) for field in fields(Hold)}
        return cls(**longest | {"started_at": started_at, "duration": duration, "holds": tuple(holds)})

    def __str__(self) -> str:
        """Say it in one sentence for each hold."""
        return "; ".join(map(str, self.holds))


@dataclass(frozen=True, slots=True)
class Build:
    """What measures: the ``version`` of loopwatch, its ``core``, the loop's ``clock``, the version of ``python``.

    ``core`` is ``compiled`` or ``plain``; ``clock`` is ``selector``, ``libuv`` or ``heartbeat``.
    """

    version: str
    core: str
    clock: str
    python: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that one :class:`loopwatch.LoopWatch` has seen, at one moment.

    ``taken_at`` is Unix seconds. ``stall_durations`` maps a cause to a histogram, ``stall_times`` maps
    (route, method, cause) to seconds. ``victims`` maps (route, route that held the loop) to the seconds that the
    first lost to the second. ``loop`` is ``None`` before the first loop was met or where its clock failed,
    ``build`` while no loop is measured.
    """

    taken_at: float
    build: Build | None = None
    loop: LoopReading | None = None
    routes: tuple[RouteReading, ...] = ()
    victims: Mapping[tuple[str, str], float] = field(default_factory=dict)
    stall_durations: Mapping[str, HistogramReading] = field(default_factory=dict)
    stall_times: Mapping[tuple[str, str, str], float] = field(default_factory=dict)
    active: int = 0
    pools: tuple[PoolReading, ...] = ()
    self_time: Mapping[str, float] = field(default_factory=dict)
    dropped: Mapping[str, int] = field(default_factory=dict)

    def route(self, route: str, method: str = "GET") -> RouteReading | None:
        """Find the reading of one route template and method; ``None`` if there was no such request."""
        return next((r for r in self.routes if (r.route, r.method) == (route, method)), None)

    def pool(self, name: str) -> PoolReading | None:
        """Find the reading of one pool of workers; ``None`` if it was not used."""
        return next((pool for pool in self.pools if pool.pool == name), None)

    def __sub__(self, older: Snapshot) -> Snapshot:
        before = {(r.route, r.method): r for r in older.routes}
        pools = {pool.pool: pool for pool in older.pools}
        routes = (r - before[r.route, r.method] if (r.route, r.method) in before else r for r in self.routes)
        return replace(
            self,
            loop=self.loop - older.loop if self.loop and older.loop else self.loop,
            routes=tuple(routes),
            pools=tuple(p - pools[p.pool] if p.pool in pools else p for p in self.pools),
            stall_durations={
                cause: histogram - older.stall_durations[cause] if cause in older.stall_durations else histogram
                for cause, histogram in self.stall_durations.items()
            },
            stall_times={key: time - older.stall_times.get(key, 0.0) for key, time in self.stall_times.items()},
            victims={pair: lost - older.victims.get(pair, 0.0) for pair, lost in self.victims.items()},
            self_time={part: time - older.self_time.get(part, 0.0) for part, time in self.self_time.items()},
            dropped={why: count - older.dropped.get(why, 0) for why, count in self.dropped.items()},
        )
