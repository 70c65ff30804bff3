"""The catalogue is the contract: its names are stable, well formed, and every one of them is exported."""

from __future__ import annotations

import re

from loopwatch import catalogue
from loopwatch.exporters.prometheus import LoopWatchCollector
from loopwatch.readings import Build, HistogramReading, LoopReading, PoolReading, RouteReading, Snapshot
from loopwatch.samples import samples_of

NAMES = {
    "loopwatch_info",
    "loopwatch_loop_lag_seconds",
    "loopwatch_loop_lag_max_seconds",
    "loopwatch_loop_time_seconds_total",
    "loopwatch_loop_iterations_total",
    "loopwatch_loop_tasks",
    "loopwatch_loop_stall_duration_seconds",
    "loopwatch_loop_stall_time_seconds_total",
    "loopwatch_loop_heartbeat_time_seconds",
    "loopwatch_request_duration_seconds",
    "loopwatch_request_cpu_seconds",
    "loopwatch_request_wait_seconds",
    "loopwatch_request_time_seconds_total",
    "loopwatch_request_victim_time_seconds_total",
    "loopwatch_request_active",
    "loopwatch_threadpool_limit",
    "loopwatch_threadpool_in_use",
    "loopwatch_threadpool_queued",
    "loopwatch_threadpool_queue_duration_seconds",
    "loopwatch_threadpool_run_duration_seconds",
    "loopwatch_threadpool_saturated_time_seconds_total",
    "loopwatch_threadpool_time_seconds_total",
    "loopwatch_self_time_seconds_total",
    "loopwatch_self_dropped_total",
}

HISTOGRAM = HistogramReading(catalogue.LATENCY_BUCKETS, (1,) * 14, 30.0)
FULL = Snapshot(
    taken_at=0.0,
    build=Build("1.2.3", "plain", "libuv", "3.11.2"),
    loop=LoopReading(1.0, 2.0, 3, HISTOGRAM, 0.5, 4, 5.0),
    routes=(RouteReading("/a/{b}", "GET", {("request", "await"): 1.5}, {"2xx": HISTOGRAM}, HISTOGRAM, HISTOGRAM),),
    victims={("/a/{b}", "/c"): 0.25},
    stall_durations={"cpu": HISTOGRAM},
    stall_times={("/a/{b}", "GET", "cpu"): 0.5},
    active=1,
    pools=(PoolReading("anyio", 40, 3, 2, HISTOGRAM, HISTOGRAM, 0.75, 0.5, 1.0),),
    self_time={"watcher": 0.1},
    dropped={"steps": 1},
)


def test_prometheus_names_are_those_that_dashboards_rely_on():
    assert {metric.prometheus_name for metric in catalogue.METRICS} == NAMES


def test_names_units_and_help_are_well_formed():
    for metric in catalogue.METRICS:
        assert re.fullmatch(r"loopwatch(\.[a-z_]+)+", metric.name)
        assert metric.unit == "s" or re.fullmatch(r"\{[a-z]+\}", metric.unit)
        assert metric.help.endswith(".")
        assert bool(metric.buckets) == (metric.kind == "histogram")


def test_every_metric_of_the_catalogue_is_exported_with_its_labels():
    exported = dict(samples_of(FULL))
    assert set(exported) == set(catalogue.METRICS)
    for metric, samples in exported.items():
        assert samples, f"{metric.name} has no sample"
        assert all(len(values) == len(metric.labels) for values, _ in samples)


def test_every_field_of_a_reading_reaches_the_page():
    text = {s.name: s.value for family in LoopWatchCollector(lambda: FULL).collect() for s in family.samples}
    assert text["loopwatch_loop_lag_max_seconds"] == 0.5
    assert text["loopwatch_loop_heartbeat_time_seconds"] == 5.0
    assert text["loopwatch_loop_iterations_total"] == 3
    assert text["loopwatch_threadpool_queued"] == 2
    assert text["loopwatch_threadpool_saturated_time_seconds_total"] == 0.75
    assert text["loopwatch_request_duration_seconds_count"] == 14
    assert text["loopwatch_self_dropped_total"] == 1
