"""OpenTelemetry is told what Prometheus is told: the same names, units, attributes and values."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import itertools
import random
import threading
import time
import tracemalloc
from collections import Counter

import anyio
import anyio.to_thread
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    InMemoryMetricReader,
    MetricExporter,
    MetricExportResult,
    PeriodicExportingMetricReader,
)

import loopwatch
from loopwatch import Config, HistogramReading, LoopWatch, catalogue
from loopwatch.exporters.opentelemetry import OpenTelemetryExporter
from loopwatch.exporters.opentelemetry.exporter import _spread
from loopwatch.exporters.prometheus import LoopWatchCollector
from loopwatch.readings import RouteReading
from tests.serving import wait_until
from tests.test_catalogue import FULL, HISTOGRAM
from tests.waiting import PATIENCE_SECONDS, until


@pytest.fixture
def reader():
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    reader.provider = provider
    yield reader
    provider.shutdown()


def told(reader):
    """Return {(name, unit, frozenset of attributes): value, or (counts, sum)} of one collection."""
    return {
        (metric.name, metric.unit, frozenset(point.attributes.items())): (
            (tuple(point.bucket_counts), point.sum) if hasattr(point, "bucket_counts") else point.value
        )
        for resource in reader.get_metrics_data().resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.data.data_points
    }


def scraped(snapshot):
    """Return the same of Prometheus's page: {(name, frozenset of labels): value, or (counts, sum)}."""
    found = {}
    for family in LoopWatchCollector(lambda: snapshot).collect():
        for sample in family.samples:
            labels = {name: value for name, value in sample.labels.items() if name != "le"}
            key = sample.name.removesuffix("_bucket").removesuffix("_sum"), frozenset(labels.items())
            if sample.name.endswith("_bucket"):
                found.setdefault(key, []).append(sample.value)
            elif sample.name.endswith("_sum"):
                counts = tuple(b - a for a, b in itertools.pairwise([0, *found[key]]))
                found[key] = counts, sample.value
            elif not sample.name.endswith("_count"):
                found[key] = sample.value
    return found


@contextlib.contextmanager
def started(exporter):
    exporter.start()
    try:
        yield exporter
    finally:
        exporter.stop()


def test_both_paths_tell_the_same_of_the_whole_catalogue(reader):
    with started(OpenTelemetryExporter(lambda: FULL, reader.provider)) as exporter:
        exporter.record()
        otlp = told(reader)
    by_name = {metric.name: metric for metric in catalogue.METRICS}
    assert {name for name, _, _ in otlp} == set(by_name)
    page, translated = scraped(FULL), {}
    for (name, unit, attributes), value in otlp.items():
        assert unit == by_name[name].unit
        labels = frozenset((key.replace(".", "_"), text) for key, text in attributes)
        translated[by_name[name].prometheus_name, labels] = value
    assert translated.keys() == page.keys()
    for key, value in page.items():
        if isinstance(value, tuple):
            assert translated[key][0] == value[0], key
            assert translated[key][1] == pytest.approx(value[1], rel=0.02), key
        else:
            assert translated[key] == value, key


BOUNDS, DECADES = catalogue.LATENCY_BUCKETS, catalogue.DECADES


@given(st.lists(st.floats(0.0, 60.0) | st.sampled_from(BOUNDS), max_size=200), st.sampled_from([BOUNDS, DECADES]))
def test_what_is_recorded_falls_into_the_same_buckets_and_has_the_same_sum(values, bounds):
    counts = [0] * (len(bounds) + 1)
    for value in values:
        counts[sum(bound < value for bound in bounds)] += 1
    again, total = [0] * (len(bounds) + 1), 0.0
    for value, times in _spread(HistogramReading(bounds, tuple(counts), sum(values))):
        again[sum(bound < value for bound in bounds)] += times
        total += value * times
    assert again == counts
    assert total == pytest.approx(sum(values), rel=1e-4, abs=1e-4 * (len(values) + 1))


def test_only_what_has_grown_is_recorded(reader):
    now = [FULL]
    with started(OpenTelemetryExporter(lambda: now[0], reader.provider)) as exporter:
        for _ in range(3):
            exporter.record()
        more = HISTOGRAM + HistogramReading(HISTOGRAM.bounds, (5, *[0] * 13), 0.001)
        now[0] = dataclasses.replace(FULL, loop=dataclasses.replace(FULL.loop, lag=more))
        exporter.record()
        (lag,) = [value for (name, _, _), value in told(reader).items() if name == "loopwatch.loop.lag"]
    assert lag[0] == more.counts


def many_routes(count, times):
    """Return a snapshot in which each route, with two methods, was in every state, and had ``times`` requests."""
    one = HistogramReading(catalogue.LATENCY_BUCKETS, (times, *[0] * 13), 0.0005 * times)
    states = {(phase, state): 0.1 * times for phase in catalogue.PHASES for state in catalogue.STATES}
    by_class = {"2xx": one, "4xx": one}
    routes = [
        RouteReading(f"/r{number}", method, states, by_class, one, one)
        for number in range(count)
        for method in ("GET", "POST")
    ]
    labels = [(route.route, route.method) for route in routes]
    stall_times = {(*one, cause): 0.5 * times for one in labels for cause in catalogue.CAUSES}
    return dataclasses.replace(FULL, routes=tuple(routes), stall_times=stall_times)


def test_no_instrument_has_more_attribute_sets_than_the_sdk_counts_apart(reader):
    now = [many_routes(100, 3)]
    with started(OpenTelemetryExporter(lambda: now[0], reader.provider)) as exporter:
        exporter.record()
        before = told(reader)
        now[0] = many_routes(500, 7)
        exporter.record()
        exporter._fresh = float("-inf"), {}
        after = told(reader)
    assert not [key for key in after if ("otel.metric.overflow", True) in key[2]]
    assert max(Counter(name for name, _, _ in after).values()) < 2000
    assert before.keys() <= after.keys()  # who had a name keeps it
    total = sum(value for (name, _, _), value in after.items() if name == "loopwatch.request.time")
    assert total == pytest.approx(500 * 2 * 14 * 0.7)
    counts = [value[0] for (name, _, _), value in after.items() if name == "loopwatch.request.duration"]
    assert sum(map(sum, counts)) == 500 * 2 * 2 * 7
    others = frozenset(
        {"http.route": "_other", "http.request.method": "_OTHER", "state": "await", "phase": "request"}.items()
    )
    assert after["loopwatch.request.time", "s", others] > 0


def test_a_watch_tells_the_global_provider_even_if_that_is_set_later(run, monkeypatch, reader):
    from opentelemetry.metrics import _internal

    monkeypatch.setattr(_internal, "_METER_PROVIDER", None)
    monkeypatch.setattr(_internal, "_PROXY_METER_PROVIDER", _internal._ProxyMeterProvider())

    async def main():
        async with LoopWatch(Config(opentelemetry=True)) as watch:
            await asyncio.sleep(0.05)
            _internal._PROXY_METER_PROVIDER.on_set_meter_provider(reader.provider)
            end = time.monotonic() + PATIENCE_SECONDS
            while True:
                now = await asyncio.to_thread(told, reader)
                by_name = {name: value for (name, _, _), value in now.items()}
                if "loopwatch.loop.lag" in by_name and sum(by_name["loopwatch.loop.lag"][0]) >= 1000:
                    return by_name, watch.snapshot()
                assert time.monotonic() < end, "no second of the loop is told"
                await asyncio.sleep(0.1)

    by_name, snapshot = run(main)
    assert by_name["loopwatch.loop.iterations"] > 0
    assert snapshot.self_time["opentelemetry"] > 0


def test_a_pool_that_is_made_for_each_call_is_one_series_that_never_falls(run, reader):
    runs, seen = "loopwatch.threadpool.run.duration", []

    async def main():
        async with LoopWatch(Config(metrics_path=None)) as watch:
            with started(OpenTelemetryExporter(watch.snapshot, reader.provider)) as exporter:
                for _ in range(3):
                    for _ in range(2):
                        await anyio.to_thread.run_sync(len, "", limiter=anyio.CapacityLimiter(1))
                    gc.collect()
                    exporter.record()
                    found = await asyncio.to_thread(told, reader)
                    pools = {
                        dict(labels)["pool"]: value for (name, _, labels), value in found.items() if name == runs
                    }
                    seen.append([sum(counts) for pool, (counts, _) in pools.items() if "limiter:" in pool])

    run(main)
    assert seen == [[2], [4], [6]]


def test_an_exporter_that_fails_is_reported_once_and_the_app_goes_on(run, monkeypatch, caplog):
    def fails(*_):
        raise OSError("theirs")

    monkeypatch.setattr("loopwatch.exporters.opentelemetry.exporter.samples_of", fails)

    async def main():
        async with LoopWatch(Config(opentelemetry=True)) as watch:
            await asyncio.sleep(0.05)
        return watch

    def reports():
        return [record for record in caplog.records if "opentelemetry failed" in record.message]

    watch = run(main)
    wait_until(reports, "the report")
    assert len(reports()) == 1
    assert "opentelemetry" in watch.snapshot().dropped


@pytest.mark.parametrize("seconds", [300, pytest.param(3600, marks=pytest.mark.slow)])
def test_memory_stays_bounded_while_nobody_collects(reader, seconds):
    """Only differences are kept: an hour without a collection holds no more than a second."""
    seed = random.Random(1)
    reading = [HistogramReading(BOUNDS, (0,) * 14, 0.0)]
    exporter = OpenTelemetryExporter(
        lambda: dataclasses.replace(FULL, loop=dataclasses.replace(FULL.loop, lag=reading[0])), reader.provider
    )

    def pass_time(seconds):
        for _ in range(seconds):
            grown = HistogramReading(BOUNDS, (seed.randrange(3), *[0] * 13), 0.001)
            reading[0] = reading[0] + grown
            exporter.record()

    with started(exporter):
        pass_time(60)
    its_thread_ends()  # tracemalloc must not be stopped while another thread allocates
    tracemalloc.start()
    try:
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        pass_time(seconds)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 6 * seconds + 2000  # bytes: less than an object a second


@pytest.mark.contended
@pytest.mark.parametrize("outage", ["raises", "hangs"])
def test_an_export_that_raises_or_hangs_costs_a_loop_nothing(run, outage, caplog):
    asked, over, failures = threading.Event(), threading.Event(), []

    class Exporter(MetricExporter):
        def export(self, *_, **__):
            asked.set()
            if outage == "raises":
                raise OSError("theirs")
            over.wait(30)
            return MetricExportResult.FAILURE

        def force_flush(self, *_, **__):
            return True

        def shutdown(self, *_, **__):
            over.set()

    provider = MeterProvider([PeriodicExportingMetricReader(Exporter(), 100)])

    async def main():
        async with LoopWatch() as watch:
            with started(OpenTelemetryExporter(watch.snapshot, provider, failures.append)):
                await until(asked.is_set, "an export")
                for _ in range(50):
                    await asyncio.sleep(0.01)
            return watch

    try:
        watch = run(main)
    finally:
        over.set()
        provider.shutdown()
    its_thread_ends()
    assert failures == []
    assert watch.snapshot().dropped == {}
    # A loop that gets no CPU stalls by itself.
    assert [stall for stall in watch.stalls if stall.cause not in {"starved", "unknown"}] == []


def its_thread_ends():
    wait_until(
        lambda: not any(thread.name == "loopwatch-opentelemetry" for thread in threading.enumerate()),
        "its thread to end",
    )


def test_without_opentelemetry_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "loopwatch.exporters.opentelemetry", None)
    with pytest.raises(ImportError, match=r"pip install 'loopwatch\[otel\]'"):
        loopwatch.LoopWatch(Config(opentelemetry=True))
