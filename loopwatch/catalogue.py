"""Which metrics exist, and what is each called on every path that leaves the process?

Names, units, help texts, attributes and buckets stand here once. Exporters, documentation, dashboards
and tests read them from here, so that none of them can drift from the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds in seconds of every latency histogram; each alert threshold is one of them."""

DECADES = (0.001, 0.01, 0.1, 1.0)
"""Upper bounds in seconds, some of :data:`LATENCY_BUCKETS`, where there are two more histograms for each route."""

STATES = (
    "loop_cpu",
    "loop_blocked",
    "thread_cpu",
    "thread_wait",
    "thread_queue",
    "loop_wait",
    "await",
)
"""The states of a request, in order of precedence: where several are active at once, the first wins."""

PHASES = ("request", "background")
"""``request`` up to the end of the response; ``background`` for what runs on after it."""

CAUSE_CPU, CAUSE_BLOCKING, CAUSE_GIL = "cpu", "blocking", "gil"
CAUSE_STARVED, CAUSE_GC, CAUSE_UNKNOWN = "starved", "gc", "unknown"
CAUSES = (CAUSE_CPU, CAUSE_BLOCKING, CAUSE_GIL, CAUSE_STARVED, CAUSE_GC, CAUSE_UNKNOWN)
"""Why the loop stood still: it computed, slept in the kernel, waited for the GIL, got no CPU, collected garbage."""

Kind = Literal["counter", "gauge", "histogram"]
Together = Literal["sum", "max", "min"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric, named as OpenTelemetry names it; the Prometheus name follows from it."""

    name: str
    kind: Kind
    unit: str
    help: str
    attributes: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    together: Together = "sum"
    """What several loops, or several worker processes, are together: all of them, or the one that is worst."""

    @property
    def prometheus_name(self) -> str:
        """The name that OpenTelemetry's own translation to Prometheus gives (dots, unit, ``_total``).

        Source: the OpenTelemetry specification, "Prometheus and OpenMetrics Compatibility".
        """
        name = self.name.replace(".", "_")
        if self.unit == "s":
            name += "_seconds"
        return name + "_total" if self.kind == "counter" else name

    @property
    def labels(self) -> tuple[str, ...]:
        """The attributes as Prometheus label names."""
        return tuple(attribute.replace(".", "_") for attribute in self.attributes)


ROUTE, METHOD, STATUS_CLASS = "http.route", "http.request.method", "http.response.status_class"

OTHERS = {ROUTE: "_other", METHOD: "_OTHER", "blocker": "_other", "pool": "_other"}
"""What stands for all values of an attribute that have no label of their own: there is a bound to their number."""

INFO = Metric(
    "loopwatch.info",
    "gauge",
    "{info}",
    "1, with what measures: loopwatch's version, its core (compiled, plain), "
    "the clock of the event loop (selector, libuv, heartbeat), and Python's version.",
    ("version", "core", "clock", "python"),
    together="max",
)
LOOP_LAG = Metric(
    "loopwatch.loop.lag",
    "histogram",
    "s",
    "How long an event that becomes ready at a random instant waits until the loop gets to it; "
    "counted in virtual arrivals, 1000 a second.",
    buckets=LATENCY_BUCKETS,
)
LOOP_LAG_MAX = Metric(
    "loopwatch.loop.lag.max",
    "gauge",
    "s",
    "Worst lag of the last 60 seconds, a stall still in progress included.",
    together="max",
)
LOOP_TIME = Metric(
    "loopwatch.loop.time",
    "counter",
    "s",
    "Time the event loop was busy, or idle in its event provider.",
    ("state",),
)
LOOP_ITERATIONS = Metric("loopwatch.loop.iterations", "counter", "{iteration}", "Iterations of the event loop.")
LOOP_TASKS = Metric("loopwatch.loop.tasks", "gauge", "{task}", "Tasks that are not done.")
LOOP_STALL_DURATION = Metric(
    "loopwatch.loop.stall.duration",
    "histogram",
    "s",
    "Busy periods of the event loop longer than the stall threshold.",
    ("cause",),
    LATENCY_BUCKETS,
)
LOOP_STALL_TIME = Metric(
    "loopwatch.loop.stall.time",
    "counter",
    "s",
    "Time in stalls, by the requests that held the event loop, each for its own time; _none where nobody knows.",
    (ROUTE, METHOD, "cause"),
)
LOOP_HEARTBEAT_TIME = Metric(
    "loopwatch.loop.heartbeat.time",
    "gauge",
    "s",
    "Unix time when the event loop was last known to be responsive (an idle loop: now).",
    together="min",
)
REQUEST_DURATION = Metric(
    "loopwatch.request.duration",
    "histogram",
    "s",
    "Wall time from a request's entry to the end of its response.",
    (ROUTE, METHOD, STATUS_CLASS),
    LATENCY_BUCKETS,
)
REQUEST_CPU = Metric(
    "loopwatch.request.cpu",
    "histogram",
    "s",
    "CPU time of a request, on the event loop and in worker threads.",
    (ROUTE, METHOD),
    DECADES,
)
REQUEST_WAIT = Metric(
    "loopwatch.request.wait",
    "histogram",
    "s",
    "Time of a request in which it used no CPU.",
    (ROUTE, METHOD),
    DECADES,
)
REQUEST_TIME = Metric(
    "loopwatch.request.time",
    "counter",
    "s",
    "Wall time of requests, each instant in exactly one state; states that a route never was in are left out.",
    (ROUTE, METHOD, "state", "phase"),
)
REQUEST_VICTIM_TIME = Metric(
    "loopwatch.request.victim.time",
    "counter",
    "s",
    "Time that requests of a route were due to run while a step of another, the blocker, held the event loop.",
    (ROUTE, "blocker"),
)
REQUEST_ACTIVE = Metric("loopwatch.request.active", "gauge", "{request}", "Requests in progress.")
THREADPOOL_LIMIT = Metric(
    "loopwatch.threadpool.limit",
    "gauge",
    "{thread}",
    "Workers that the pool may use at once: the sum of its living limiters or executors.",
    ("pool",),
)
THREADPOOL_IN_USE = Metric(
    "loopwatch.threadpool.in_use", "gauge", "{thread}", "Workers of the pool in use.", ("pool",)
)
THREADPOOL_QUEUED = Metric(
    "loopwatch.threadpool.queued",
    "gauge",
    "{item}",
    "Work that waits for a free worker of the pool.",
    ("pool",),
)
THREADPOOL_QUEUE_DURATION = Metric(
    "loopwatch.threadpool.queue.duration",
    "histogram",
    "s",
    "Time from the submission of work to its begin in a worker.",
    ("pool",),
    LATENCY_BUCKETS,
)
THREADPOOL_RUN_DURATION = Metric(
    "loopwatch.threadpool.run.duration",
    "histogram",
    "s",
    "Time that work ran in a worker.",
    ("pool",),
    LATENCY_BUCKETS,
)
THREADPOOL_SATURATED_TIME = Metric(
    "loopwatch.threadpool.saturated.time",
    "counter",
    "s",
    "Time in which the pool was at its limit; where limiters or executors are made anew, in which work waited.",
    ("pool",),
)
THREADPOOL_TIME = Metric(
    "loopwatch.threadpool.time",
    "counter",
    "s",
    "Time that work ran in the pool's threads, on a CPU or waiting.",
    ("pool", "state"),
)
SELF_TIME = Metric("loopwatch.self.time", "counter", "s", "CPU time that loopwatch's own threads used.", ("part",))
SELF_DROPPED = Metric(
    "loopwatch.self.dropped",
    "counter",
    "{failure}",
    "Failures of loopwatch itself; what failed was switched off, the app went on.",
    ("reason",),
)

METRICS = (
    INFO,
    LOOP_LAG,
    LOOP_LAG_MAX,
    LOOP_TIME,
    LOOP_ITERATIONS,
    LOOP_TASKS,
    LOOP_STALL_DURATION,
    LOOP_STALL_TIME,
    LOOP_HEARTBEAT_TIME,
    REQUEST_DURATION,
    REQUEST_CPU,
    REQUEST_WAIT,
    REQUEST_TIME,
    REQUEST_VICTIM_TIME,
    REQUEST_ACTIVE,
    THREADPOOL_LIMIT,
    THREADPOOL_IN_USE,
    THREADPOOL_QUEUED,
    THREADPOOL_QUEUE_DURATION,
    THREADPOOL_RUN_DURATION,
    THREADPOOL_SATURATED_TIME,
    THREADPOOL_TIME,
    SELF_TIME,
    SELF_DROPPED,
)
"""Every metric that loopwatch exports."""
