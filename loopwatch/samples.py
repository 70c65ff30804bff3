"""What is the value of each metric in a snapshot? The one place where the catalogue meets the readings."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

from loopwatch import catalogue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from loopwatch.catalogue import Metric
    from loopwatch.readings import HistogramReading, Snapshot

    Sample = tuple[tuple[str, ...], float | HistogramReading]
    """Values of the attributes, in the catalogue's order, and the value."""

    Samples = list[tuple[Metric, list[Sample]]]


def samples_of(snapshot: Snapshot) -> Iterator[tuple[Metric, list[Sample]]]:
    """Yield each metric of the catalogue that there is something to tell of, with its samples."""
    build, loop = snapshot.build, snapshot.loop
    if build is not None:
        yield catalogue.INFO, [((build.version, build.core, build.clock, build.python), 1)]
    if loop is not None:
        yield catalogue.LOOP_LAG, [((), loop.lag)]
        yield catalogue.LOOP_LAG_MAX, [((), loop.lag_max)]
        yield catalogue.LOOP_TIME, [(("busy",), loop.busy), (("idle",), loop.idle)]
        if loop.iterations is not None:
            yield catalogue.LOOP_ITERATIONS, [((), loop.iterations)]
        yield catalogue.LOOP_TASKS, [((), loop.tasks)]
        yield catalogue.LOOP_HEARTBEAT_TIME, [((), loop.responsive_at)]
    durations = snapshot.stall_durations.items()
    yield catalogue.LOOP_STALL_DURATION, [((cause,), histogram) for cause, histogram in durations]
    yield catalogue.LOOP_STALL_TIME, list(snapshot.stall_times.items())
    yield (
        catalogue.REQUEST_DURATION,
        [
            ((route.route, route.method, status_class), histogram)
            for route in snapshot.routes
            for status_class, histogram in route.durations.items()
        ],
    )
    for metric, kind in ((catalogue.REQUEST_CPU, "cpu_times"), (catalogue.REQUEST_WAIT, "wait_times")):
        histograms = [((route.route, route.method), getattr(route, kind)) for route in snapshot.routes]
        yield metric, [(values, histogram.rebucketed(metric.buckets)) for values, histogram in histograms]
    yield catalogue.REQUEST_VICTIM_TIME, list(snapshot.victims.items())
    yield (
        catalogue.REQUEST_TIME,
        [
            ((route.route, route.method, state, phase), seconds)
            for route in snapshot.routes
            for (phase, state), seconds in route.times.items()
            if seconds
        ],
    )
    yield catalogue.REQUEST_ACTIVE, [((), snapshot.active)]
    pools = snapshot.pools
    yield catalogue.THREADPOOL_LIMIT, [((pool.pool,), pool.limit) for pool in pools]
    yield catalogue.THREADPOOL_IN_USE, [((pool.pool,), pool.in_use) for pool in pools]
    yield catalogue.THREADPOOL_QUEUED, [((pool.pool,), pool.queued) for pool in pools]
    yield catalogue.THREADPOOL_QUEUE_DURATION, [((pool.pool,), pool.queue_times) for pool in pools]
    yield catalogue.THREADPOOL_RUN_DURATION, [((pool.pool,), pool.run_times) for pool in pools]
    yield catalogue.THREADPOOL_SATURATED_TIME, [((pool.pool,), pool.saturated) for pool in pools]
    yield (
        catalogue.THREADPOOL_TIME,
        [
            ((pool.pool, state), seconds)
            for pool in pools
            for state, seconds in (("cpu", pool.cpu), ("wait", pool.wait))
            if seconds is not None
        ],
    )
    yield catalogue.SELF_TIME, [((part,), seconds) for part, seconds in snapshot.self_time.items()]
    yield catalogue.SELF_DROPPED, [((reason,), count) for reason, count in snapshot.dropped.items()]


def merged(several: Iterable[Samples]) -> Samples:
    """Add up the samples of several watches, metric by metric, as the catalogue says."""
    together: dict[Metric, dict[tuple[str, ...], Any]] = {}
    for samples in several:
        for metric, ours in samples:
            combine, known = _COMBINE[metric.together], together.setdefault(metric, {})
            for values, value in ours:
                known[values] = combine(known[values], value) if values in known else value
    return [(metric, list(values.items())) for metric, values in together.items()]


_COMBINE: dict[str, Callable[[Any, Any], Any]] = {"sum": operator.add, "max": max, "min": min}
