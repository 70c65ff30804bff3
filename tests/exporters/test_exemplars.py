"""A histogram of requests leads to traces: each exemplar is a request that took what it says."""

from __future__ import annotations

import asyncio
import types

import pytest
from fastapi import FastAPI
from opentelemetry.sdk.metrics import AlwaysOnExemplarFilter, MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import sampling
from opentelemetry.trace import SpanContext, TraceFlags

import loopwatch
from loopwatch import Config, catalogue
from loopwatch.exemplars import Exemplars
from loopwatch.exporters.opentelemetry import OpenTelemetryExporter
from loopwatch.testing import block_loop, burn_cpu
from tests.only import only
from tests.spans import Spans, client_of, globally

pytestmark = pytest.mark.blocks

SPAN = SpanContext(1, 2, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))
HISTOGRAMS = (catalogue.REQUEST_DURATION, catalogue.REQUEST_CPU, catalogue.REQUEST_WAIT)


@pytest.fixture
def reader():
    reader = InMemoryMetricReader()
    reader.provider = MeterProvider([reader])
    yield reader
    reader.provider.shutdown()


def make_app():
    app = FastAPI()

    @app.get("/mixed")
    async def mixed(times: int = 1):
        burn_cpu(0.03 * times)
        block_loop(0.02 * times)

    @app.get("/missing")
    async def missing():
        raise LookupError("theirs")

    return app


def collect(reader):
    """Return {metric: {(route, status class): point}} of one collection, which takes all exemplars."""
    by_name = {metric.name: metric for metric in HISTOGRAMS}
    found = {metric: {} for metric in HISTOGRAMS}
    for resource in reader.get_metrics_data().resource_metrics:
        for scope in resource.scope_metrics:
            for one in scope.metrics:
                for point in one.data.data_points if one.name in by_name else ():
                    key = point.attributes["http.route"], point.attributes.get("http.response.status_class")
                    found[by_name[one.name]][key] = point
    return found


async def asked(paths, reader, sampler=sampling.ALWAYS_ON):
    """Ask an app; return its spans, the snapshot, and the points of each histogram of requests."""
    spans = Spans(sampler=sampler)
    with globally(spans.provider):
        watch = loopwatch.install(app := make_app(), Config(opentelemetry=True))
        watch._opentelemetry._provider = reader.provider
        async with client_of(app) as client:
            for path in paths:
                await client.get(path)
        found = await spans.some(len(paths) if sampler is sampling.ALWAYS_ON else 0)
        snapshot = watch.snapshot()
        collected = await asyncio.to_thread(collect, reader)
        watch.stop()
    return found, snapshot, collected


def test_each_histogram_of_requests_leads_to_the_span_of_one(run, reader):
    (span,), snapshot, collected = run(lambda: asked(["/mixed"], reader))
    route = snapshot.route("/mixed")
    truths = route.durations["2xx"], route.cpu_times, route.wait_times
    for metric, truth in zip(HISTOGRAMS, truths, strict=True):
        (point,) = collected[metric].values()
        (exemplar,) = point.exemplars
        assert (exemplar.trace_id, exemplar.span_id) == (span.context.trace_id, span.context.span_id)
        assert exemplar.value == pytest.approx(truth.sum, rel=1e-6)
        assert point.sum == pytest.approx(truth.sum, rel=1e-6)
        assert tuple(point.bucket_counts) == truth.rebucketed(metric.buckets).counts


@pytest.mark.contended  # a fast request is slow where it gets no CPU
def test_a_slow_request_has_an_exemplar_beside_many_fast_ones(run, reader):
    found, snapshot, collected = run(lambda: asked(["/mixed?times=0"] * 40 + ["/mixed?times=4"], reader))
    (point,) = collected[catalogue.REQUEST_DURATION].values()
    truth = snapshot.route("/mixed").durations["2xx"]
    assert tuple(point.bucket_counts) == truth.counts
    assert point.sum == pytest.approx(truth.sum, rel=1e-4)
    slow = max(found, key=lambda span: span.end_time - span.start_time)
    exemplar = only(one for one in point.exemplars if one.value > 0.15)
    assert exemplar.span_id == slow.context.span_id
    assert len(point.exemplars) >= 2


def test_a_failure_has_one_too(run, reader):
    (span,), _, collected = run(lambda: asked(["/missing"], reader))
    (exemplar,) = collected[catalogue.REQUEST_DURATION]["/missing", "5xx"].exemplars
    assert exemplar.span_id == span.context.span_id


class RecordOnly(sampling.StaticSampler):
    """Spans record, but are not exported: an exemplar would lead nowhere."""

    def __init__(self):
        super().__init__(sampling.Decision.RECORD_ONLY)


@pytest.mark.parametrize("sampler", [sampling.ALWAYS_OFF, RecordOnly()], ids=["off", "record only"])
def test_no_exemplar_leads_to_a_trace_that_was_not_sampled(run, sampler):
    reader = InMemoryMetricReader()
    reader.provider = MeterProvider([reader], exemplar_filter=AlwaysOnExemplarFilter())
    spans, snapshot, collected = run(lambda: asked(["/mixed?times=0"], reader, sampler))
    reader.provider.shutdown()
    assert spans == []
    (point,) = collected[catalogue.REQUEST_DURATION].values()
    assert point.count == snapshot.route("/mixed").durations["2xx"].count
    assert [one.span_id for one in point.exemplars] == [None]


def test_of_each_bucket_the_last_is_kept_however_long_nobody_takes_it():
    exemplars = Exemplars()
    for number in range(10_000):
        exemplars.note(("/", "GET"), 2, (number * 1_000_000, 0, 0, 0, 0, 0, 500_000_000), SPAN)
    taken = exemplars.take()
    durations = taken[catalogue.REQUEST_DURATION, ("/", "GET", "2xx")]
    assert [one.value for one in durations] == [0.5, 1.0, 2.5, 5.0, 10.0, 10.499]
    assert [one.value for one in taken[catalogue.REQUEST_CPU, ("/", "GET")]] == [0.0, 0.5, 2.0, 4.5, 9.5, 9.999]
    assert {one.value for one in taken[catalogue.REQUEST_WAIT, ("/", "GET")]} == {0.5}
    assert exemplars.take() == {}


def test_an_exemplar_that_the_snapshot_lacks_yet_leaves_counts_and_sums_true(reader):
    """The loop notes one, and counts it a moment later: a snapshot may come in between."""
    durations = [loopwatch.HistogramReading(catalogue.LATENCY_BUCKETS, counts, total) for counts, total in (
        ((0, 0, 0, 1, *[0] * 10), 0.006),
        ((0, 0, 0, 2, *[0] * 10), 0.015),
    )]  # fmt: skip
    now = [durations[0]]

    def snapshot():
        route = types.SimpleNamespace(
            route="/", method="GET", durations={"2xx": now[0]}, cpu_times=now[0], wait_times=now[0], times={}
        )
        return types.SimpleNamespace(
            build=None, loop=None, stall_durations={}, stall_times={}, routes=[route], victims={}, active=0,
            pools=[], self_time={}, dropped={},
        )  # fmt: skip

    exporter = OpenTelemetryExporter(snapshot, reader.provider)
    exporter.start()
    try:
        exporter.exemplars.note(("/", "GET"), 2, (9_000_000, 0, 0, 0, 0, 0, 0), SPAN)
        exporter.record()
        now[0] = durations[1]
        exporter.record()
    finally:
        exporter.stop()
    point = collect(reader)[catalogue.REQUEST_DURATION]["/", "2xx"]
    assert tuple(point.bucket_counts) == durations[1].counts
    assert point.sum == pytest.approx(durations[1].sum)
