"""The span of a request, whoever made it, says which states its time was in and which stalls it was part of."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import inspect
import threading
import time
from typing import Any, NamedTuple

import pytest
from fastapi import FastAPI, WebSocket
from opentelemetry import trace
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware as ContribMiddleware
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.trace import TracerProvider, sampling
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from starlette.middleware.opentelemetry import OpenTelemetryMiddleware as StarlettesMiddleware

import loopwatch
from loopwatch import Config, Hold, LoopWatchMiddleware, Stall
from loopwatch.exporters.traces import TraceExporter
from loopwatch.exporters.traces import exporter as exporting
from loopwatch.exporters.traces.spans import EVENT, RequestSpan
from loopwatch.exporters.traces.starts import SpanStarts
from loopwatch.testing import block_loop, burn_cpu
from tests.only import only
from tests.requests import STATES, door_on, scope
from tests.serving import wait_until
from tests.spans import Spans, client_of, globally
from tests.waiting import until

pytestmark = pytest.mark.quick_on_asyncio

ON = Config(opentelemetry=True)
NO_TELEMETRY = {"tracing": False, "metrics": False, "logs": False}


@pytest.fixture
def spans():
    spans = Spans()
    with globally(spans.provider):
        yield spans


def make_app(telemetry=None):
    app = FastAPI(telemetry=telemetry)

    @app.get("/wait")
    async def wait(seconds: float = 0.05):
        started = time.perf_counter()
        await asyncio.sleep(seconds)
        return time.perf_counter() - started

    @app.get("/block")
    async def block(seconds: float = 0.2):
        return block_loop(seconds)

    @app.get("/thread")
    def thread():
        return block_loop(0.05)

    @app.get("/raise")
    async def fails():
        await asyncio.sleep(0.03)
        raise OSError("theirs")

    @app.websocket("/chat")
    async def chat(socket: WebSocket):
        await socket.accept()
        for _ in range(2):
            await socket.receive_text()
            await asyncio.sleep(0.05)
        await socket.close()

    return app


def own(config=ON):
    app = make_app()
    return app, loopwatch.install(app, config)


def own_inside(config=ON):
    app = LoopWatchMiddleware(make_app(), config)
    return app, app.watch


def contrib_inside(config=ON):
    app = make_app(NO_TELEMETRY)
    app.add_middleware(ContribMiddleware)
    return app, loopwatch.install(app, config)


def contrib_outside(config=ON):
    app = make_app(NO_TELEMETRY)
    watch = loopwatch.install(app, config)
    return ContribMiddleware(app), watch


def contrib_fastapi(config=ON):
    app = make_app()
    FastAPIInstrumentor.instrument_app(app)
    return app, loopwatch.install(app, config)


def starlettes(config=ON):
    app = make_app(NO_TELEMETRY)
    app.add_middleware(StarlettesMiddleware)
    return app, loopwatch.install(app, config)


MAKERS = [own, own_inside, contrib_inside, contrib_outside, contrib_fastapi, starlettes]


@pytest.fixture(params=MAKERS, ids=lambda make: make.__name__)
def make(request):
    return request.param


@contextlib.asynccontextmanager
async def warm_client_of(app, spans):
    """Yield a client of an app that has been asked before, and has been idle since."""
    async with client_of(app) as client:
        spans.exporter.clear()
        await client.get("/wait")
        await spans.some(1)
        await asyncio.sleep(0.15)
        spans.exporter.clear()
        yield client


def states(span):
    """Return the seconds in each state that a span tells, which are all seven or none."""
    found = {name.removeprefix("loopwatch.time."): v for name, v in span.attributes.items() if "loopwatch" in name}
    assert set(found) in (set(STATES), set())
    return found


def stalls(span):
    return [event for event in span.events if event.name == EVENT]


def seconds(span):
    return (span.end_time - span.start_time) / 1e9


MARGIN_SECONDS = 0.002
"""What the middlewares and the framework may do themselves between two clocks that should agree."""


class Asked(NamedTuple):
    """What a path answered, the seconds that this took, and those in which this thread computed meanwhile."""

    answer: Any
    took: float
    computed: float

    @property
    def not_computed(self):
        """The time in which this thread slept, or waited for a CPU: all that was blocked or waited for is in it."""
        return self.took - self.computed


async def ask(client, path):
    started, computed = time.perf_counter(), time.thread_time()
    response = await client.get(path)
    answer = response.json() if response.is_success else response.status_code
    return Asked(answer, time.perf_counter() - started, time.thread_time() - computed)


def agree(span, reading, asked):
    """The states on a span are those of the request up to its end, or to that of the span if that is earlier.

    Between the last step that they know and the end of the span the thread may lose its CPU: to read the CPU clock
    is to offer it.
    """
    told = states(span)
    (duration,) = (durations.sum for durations in reading.durations.values())
    inside = sum(told.values())
    lost = max(0.0, asked.not_computed - (inside - told["loop_cpu"]))
    assert min(seconds(span), duration) - lost - MARGIN_SECONDS <= inside <= duration + 1e-6 <= asked.took + 1e-6
    for state in STATES:
        assert 0.0 <= reading.seconds(state) - told[state] + 1e-6 <= duration - inside + 2e-6, state


# --- states


@pytest.mark.contended
@pytest.mark.blocks
def test_the_span_tells_the_states_whoever_made_it(run, make, spans):
    async def main():
        app, watch = make()
        async with client_of(app) as client:
            await client.get("/wait")  # the first request builds the middleware
            await spans.some(1)
            spans.exporter.clear()
            before = watch.snapshot()
            asked = await ask(client, "/wait")
            (span,) = await spans.some(1)
            return asked, span, watch.snapshot() - before, watch

    spans.exporter.clear()
    asked, span, interval, watch = run(main)
    told = states(span)
    # What the handler measured begins and ends in a step, and a step may be held up.
    in_steps = told["loop_cpu"] + told["loop_blocked"]
    assert asked.answer - in_steps - MARGIN_SECONDS <= told["await"] + told["loop_wait"]
    assert told["await"] + told["loop_wait"] <= asked.answer + MARGIN_SECONDS
    agree(span, interval.route("/wait"), asked)
    assert stalls(span) == []
    assert watch.snapshot().dropped == {}


@pytest.mark.contended
@pytest.mark.blocks
@pytest.mark.parametrize(("path", "state"), [("/block?seconds=0.06", "loop_blocked"), ("/thread", "thread_wait")])
def test_each_state_is_the_truth(run, make, spans, path, state):
    async def main():
        app, watch = make(Config(opentelemetry=True, stall_seconds=1.0))  # so that no span waits for a stall
        async with client_of(app) as client:
            await client.get("/wait")
            await spans.some(1)
            spans.exporter.clear()
            asked = await ask(client, path)
            (span,) = await spans.some(1)
            return asked, span, watch.snapshot().route(path.partition("?")[0])

    spans.exporter.clear()
    asked, span, reading = run(main)
    # A thread that waits for a CPU is blocked, too: so the truth is what was slept, and whatever was not computed.
    assert asked.answer - MARGIN_SECONDS <= states(span)[state] <= asked.not_computed + MARGIN_SECONDS
    agree(span, reading, asked)


@pytest.mark.contended
def test_a_handler_that_raises_has_its_states_told_too(run, make, spans):
    async def main():
        app, watch = make()
        async with client_of(app) as client:
            asked = await ask(client, "/raise")
            (span,) = await spans.some(1)
            return span, asked, watch

    spans.exporter.clear()
    span, asked, watch = run(main)
    assert asked.answer == 500
    agree(span, watch.snapshot().route("/raise"), asked)
    assert states(span)["await"] > 0.025  # uvloop counts in whole milliseconds, and may be early
    assert watch.snapshot().dropped == {}


@pytest.mark.contended
def test_the_states_of_a_websocket_session_are_the_sum_of_its_messages(run, spans):
    """The time in which it waits for messages is in none."""

    async def main():
        app, watch = own()
        incoming: asyncio.Queue = asyncio.Queue()
        incoming.put_nowait({"type": "websocket.connect"})
        sent, waits = [], []

        async def receive():
            waits.append(-time.perf_counter())
            message = await incoming.get()
            waits[-1] += time.perf_counter()
            return message

        async def send(message):
            sent.append(message["type"])

        session = asyncio.create_task(
            app({"type": "websocket", "path": "/chat", "headers": [], "query_string": b""}, receive, send)
        )
        for number in range(2):
            await until(lambda number=number: len(waits) == number + 2 and waits[-1] < 0, "the session to wait")
            await asyncio.sleep(0.1)
            incoming.put_nowait({"type": "websocket.receive", "text": "hello"})
        await session
        assert sent == ["websocket.accept", "websocket.close"]
        return waits, await spans.some(1), watch.snapshot().route("/chat", "WEBSOCKET")

    spans.exporter.clear()
    waits, (span,), reading = run(main)
    told = states(span)
    for state in STATES:
        assert told[state] == pytest.approx(reading.seconds(state), abs=MARGIN_SECONDS), state
    assert sum(waits) > 0.195
    # Both say how long the session waited for the loop after a message had come.
    most = seconds(span) - sum(waits) + told["loop_wait"] + MARGIN_SECONDS
    assert 0.099 < told["await"] <= sum(told.values()) <= most


# --- stalls


@pytest.mark.contended
@pytest.mark.blocks
def test_a_stall_is_told_to_the_request_that_caused_it_and_to_one_that_suffered(run, make, spans):
    async def main():
        app, _ = make()
        async with warm_client_of(app, spans) as client:
            began = time.perf_counter()
            _, blocked = await asyncio.gather(client.get("/wait"), client.get("/block"))
            took, answered = time.perf_counter() - began, time.time_ns()
            return blocked.json(), took, answered, await spans.some(2)

    blocked, took, answered, found = run(main)
    culprit = only(span for span in found if states(span)["loop_blocked"] > 0.1)
    victim = only(span for span in found if span is not culprit)
    caused, suffered = only(stalls(culprit)), only(stalls(victim))
    told = caused.attributes
    assert (told["loopwatch.stall.role"], told["loopwatch.stall.cause"]) == ("caused", "blocking")
    assert told["loopwatch.stall.holder"] == "GET /block"
    assert blocked - 0.02 <= told["loopwatch.stall.duration"] <= took + 0.02
    assert told["code.function.name"] == "tests.exporters.test_traces.make_app.<locals>.block"
    assert told["code.file.path"] == "tests/exporters/test_traces.py"
    assert told["code.line.number"] == block_line()
    assert "make_app.<locals>.block (tests/exporters/test_traces.py" in told["code.stacktrace"]
    assert suffered.attributes["loopwatch.stall.role"] == "suffered"
    assert suffered.attributes["code.function.name"] == told["code.function.name"]
    assert "code.stacktrace" not in suffered.attributes  # it is on the span of who caused it
    # It was due after 50 ms, which began before the other blocked the loop.
    waited = suffered.attributes["loopwatch.stall.waited"]
    assert blocked - 0.05 - MARGIN_SECONDS <= waited <= states(victim)["loop_wait"] + MARGIN_SECONDS
    ended = caused.timestamp / 1e9 + told["loopwatch.stall.duration"]
    assert caused.timestamp / 1e9 <= culprit.end_time / 1e9 - blocked + 0.02
    assert culprit.start_time / 1e9 + blocked - 0.02 <= ended
    assert culprit.end_time <= answered  # not when the stall was told


def block_line():
    lines, first = inspect.getsourcelines(make_app)
    return first + next(number for number, line in enumerate(lines) if "return block_loop(seconds)" in line)


@pytest.mark.contended
@pytest.mark.blocks
def test_a_stall_that_no_request_caused_is_told_to_victims_with_its_stack(run, spans):
    async def main():
        app, _ = own()
        async with warm_client_of(app, spans) as client:
            asyncio.get_running_loop().call_later(0.02, lambda: block_loop(0.2))
            await client.get("/wait")
            return await spans.some(1)

    (span,) = run(main)
    suffered = only(stalls(span))
    assert suffered.attributes["loopwatch.stall.role"] == "suffered"
    assert "loopwatch.stall.holder" not in suffered.attributes
    assert "<lambda> (tests/exporters/test_traces.py" in suffered.attributes["code.stacktrace"]


@pytest.mark.contended
@pytest.mark.blocks
def test_a_request_that_sleeps_while_another_blocks_has_not_suffered(run, spans):
    async def main():
        app, _ = own()
        async with warm_client_of(app, spans) as client:
            await asyncio.gather(client.get("/wait?seconds=0.5"), client.get("/block"))
            return await spans.some(2)

    found = run(main)
    slept = only(span for span in found if states(span)["await"] > 0.4)
    assert [
        event for event in stalls(slept) if event.attributes.get("loopwatch.stall.holder") == "GET /block"
    ] == []


class Stage:
    """A stage on which whoever is put holds the loop."""

    def __init__(self):
        self.running = None

    def who(self):
        return self.running


class Door:
    def observe(self, observer):
        self.observer = observer


class Request:
    """A request with an account of 10 ms on the CPU."""

    def __init__(self):
        self.open = True

    def read(self):
        return (10_000_000, 0, 0, 0, 0, 0, 0)

    read_now = read

    def is_open(self):
        return self.open

    def is_session(self):
        return False

    def is_over(self):
        return not self.open


@pytest.fixture
def exporter(spans):
    failures = []
    exporter = TraceExporter(0.1, spans.provider, failures.append)
    exporter.failures = failures
    exporter.start(Door(), Stage())
    yield exporter
    exporter.stop()


def served(exporter, spans, held=0.0, name="GET /"):
    """Serve a request that holds the loop for a while until now; return its span."""
    request = Request()
    exporter.begin(request)
    exporter._stage.running = request
    span = spans.provider.get_tracer("test").start_span(name, kind=SpanKind.SERVER)
    now = time.perf_counter_ns()
    exporter.held(request, now - round(held * 1e9), now)
    exporter.end(request, 2)
    request.open = False
    exporter._stage.running = None
    return span


def stall_of(seconds, route="/x"):
    started = time.time() - seconds
    hold = Hold(started, seconds, route, "GET", None, "cpu", "app:f", "app.py", 3, "f", ("app:f",), "hurry")
    return Stall.of(started, seconds, [hold])


def test_a_span_ends_at_once_where_no_stall_can_be_told(exporter, spans):
    served(exporter, spans, held=0.02).end()
    assert len(spans.servers()) == 1
    assert states(spans.servers()[0])["loop_cpu"] == 0.01
    assert exporter.kept() == 0


def test_a_span_that_waits_for_a_stall_ends_as_of_the_instant_it_was_ended(exporter, spans):
    span = served(exporter, spans, held=0.2)
    span.end(end_time=(asked := time.time_ns()))
    span.end()  # as instrumentations do that ask whether it still records
    assert spans.servers() == []
    exporter.hear(stall_of(0.2))
    wait_until(spans.servers, "the span")
    span.end()
    (told,) = spans.servers()
    assert told.end_time == asked
    assert [event.attributes["loopwatch.stall.role"] for event in stalls(told)] == ["caused"]
    assert exporter.kept() == 0


def test_several_requests_can_cause_one_stall(exporter, spans):
    request = Request()
    exporter.begin(request)
    exporter._stage.running = request
    first = spans.provider.get_tracer("test").start_span("first", kind=SpanKind.SERVER)
    now = time.perf_counter_ns()
    exporter.held(request, now - 240_000_000, now - 120_000_000)
    second = served(exporter, spans, held=0.11, name="second")
    short = served(exporter, spans, held=0.03, name="short")
    exporter.hear(stall_of(0.3))
    for span in (first, second, short):
        span.end()
    assert {span.name: len(stalls(span)) for span in spans.servers()} == {"first": 1, "second": 1, "short": 0}


def test_a_span_waits_a_second_for_a_stall_that_is_never_told(exporter, spans):
    span = served(exporter, spans, held=0.05)
    span.end()
    asked = time.time_ns()
    wait_until(spans.servers, "the span")
    (told,) = spans.servers()
    assert stalls(told) == []
    assert told.end_time <= asked


def test_a_stall_that_was_told_before_the_end_of_the_span_puts_nothing_off(exporter, spans):
    span = served(exporter, spans, held=0.2)
    exporter.hear(stall_of(0.2))
    span.end()
    assert len(stalls(spans.servers()[0])) == 1


def test_a_stop_ends_what_was_put_off(exporter, spans, monkeypatch):
    monkeypatch.setattr(exporting, "PATIENCE_SECONDS", 3600.0)
    served(exporter, spans, held=0.2).end()
    assert spans.servers() == []
    exporter.stop()
    wait_until(spans.servers, "the span")
    served(exporter, spans, held=0.2).end()
    assert len(spans.servers()) == 2


def test_no_more_than_so_many_ends_are_put_off(exporter, spans, monkeypatch):
    monkeypatch.setattr(exporting, "MOST_KEPT", 5)
    for _ in range(8):
        served(exporter, spans, held=0.2).end()
    assert len(spans.servers()) == 3
    assert exporter.kept() == 5


def test_a_span_that_is_not_a_servers_or_is_started_on_another_thread_is_let_alone(exporter, spans):
    exporter._stage.running = Request()
    tracer = spans.provider.get_tracer("test")
    inner = tracer.start_span("inner")
    elsewhere = threading.Thread(target=tracer.start_span, args=("other",), kwargs={"kind": SpanKind.SERVER})
    elsewhere.start()
    elsewhere.join()
    assert "end" not in vars(inner)
    assert exporter.kept() == 0


def test_a_span_whose_end_cannot_be_replaced_has_its_states_told_when_the_request_ends(spans, exporter):
    class Fixed(trace.NonRecordingSpan):
        __slots__ = ()

        def __setattr__(self, name, value):
            if name == "end":
                raise AttributeError(name)
            super().__setattr__(name, value)

        kind = SpanKind.SERVER

        def is_recording(self):
            return True

        def set_attributes(self, attributes):
            told.update(attributes)

    told = {}
    request = Request()
    with trace.use_span(Fixed(trace.INVALID_SPAN_CONTEXT)):
        exporter.begin(request)
        exporter.end(request, 2)
    assert told["loopwatch.time.loop_cpu"] == 0.01
    assert exporter.failures == []


def test_what_fails_on_a_span_is_reported_and_it_ends_all_the_same(exporter, spans, monkeypatch):
    monkeypatch.setattr(RequestSpan, "tell_states", lambda span: 1 / 0)
    served(exporter, spans, held=0.2).end()
    assert [type(error) for error in exporter.failures] == [ZeroDivisionError]
    assert len(spans.servers()) == 1
    assert exporter.kept() == 0


def test_a_span_that_does_not_let_go_of_its_end_ends_all_the_same(exporter, spans, monkeypatch):
    def refuse(_span, name):
        raise AttributeError(name)

    span = served(exporter, spans, held=0.02)
    monkeypatch.setattr(type(span), "__delattr__", refuse, raising=False)
    span.end()
    assert len(spans.servers()) == 1
    assert exporter.failures == []


# --- harmless


def test_where_nothing_is_recorded_nothing_is_done_or_kept(run, make):
    spans = Spans(sampler=sampling.ALWAYS_OFF)

    async def main():
        app, watch = make()
        async with client_of(app) as client:
            for _ in range(3):
                assert (await client.get("/wait?seconds=0.001")).status_code == 200
            return watch._traces.kept(), watch.snapshot().dropped

    with globally(spans.provider):
        assert run(main) == (0, {})
    assert spans.servers() == []


@pytest.mark.blocks
def test_a_processor_that_fails_or_hangs_when_a_span_was_put_off_harms_no_request(run):
    hangs, goes_on = threading.Event(), threading.Event()

    class Bad(SimpleSpanProcessor):
        def on_end(self, span):
            if span.kind is SpanKind.SERVER and stalls(span):
                hangs.set()
                goes_on.wait(30)
                raise OSError("theirs")

    spans = Spans(Bad(InMemorySpanExporter()))

    async def main():
        app, watch = own()
        async with client_of(app) as client:
            await client.get("/wait")
            await asyncio.sleep(0.15)
            assert (await client.get("/block")).status_code == 200
            await until(hangs.is_set, "the processor")
            for _ in range(3):
                assert (await client.get("/wait?seconds=0.001")).status_code == 200
            assert watch.snapshot().dropped == {}  # so it still hangs
            goes_on.set()
            return await until(lambda: watch.snapshot().dropped, "the failure")

    with globally(spans.provider):
        assert run(main) == {"traces": 1}


@pytest.mark.parametrize("make_late", [own_inside, contrib_inside], ids=["own", "contrib"])
def test_a_provider_that_is_set_after_the_start_is_found(run, make_late):
    spans = Spans()

    async def main():
        app, watch = make_late()
        async with client_of(app) as client:
            await client.get("/wait?seconds=0.001")
            before = watch.snapshot()
            trace.set_tracer_provider(spans.provider)
            asked = await ask(client, "/wait")
            return asked, await spans.some(1), (watch.snapshot() - before).route("/wait")

    with globally(None):
        asked, (span,), reading = run(main)
    agree(span, reading, asked)


@dataclasses.dataclass
class Replaceable(trace.TracerProvider):
    """Leads to a provider of the SDK's that can be replaced, as Logfire's does; a dataclass cannot be hashed."""

    behind: TracerProvider

    def get_tracer(self, *arguments, **options):
        return self.behind.get_tracer(*arguments, **options)

    def add_span_processor(self, processor):
        self.behind.add_span_processor(processor)

    def replace(self, behind):
        self.behind.shutdown()
        self.behind = behind


def test_a_provider_that_cannot_be_hashed_and_is_replaced_within_is_heard(run, monkeypatch):
    monkeypatch.setattr(exporting, "IDLE_SECONDS", 0.05)
    first, second = Spans(), Spans()
    provider = Replaceable(first.provider)

    watch = loopwatch.install(app := make_app(NO_TELEMETRY), ON)

    @app.middleware("http")
    async def make_span(request, call_next):
        with trace.get_tracer("inside").start_as_current_span("request", kind=SpanKind.SERVER):
            return await call_next(request)

    async def main():
        async with client_of(app) as client:
            await client.get("/wait?seconds=0")
            provider.replace(second.provider)
            before = watch._traces._starts
            await until(lambda: watch._traces._starts not in (None, before), "the new provider")
            await client.get("/wait?seconds=0")
        return await first.some(1), await second.some(1), watch.snapshot().dropped

    with globally(provider):
        (old,), (new,), dropped = run(main)
    assert set(states(old)) == set(states(new)) == set(STATES)
    assert dropped == {}


@pytest.mark.parametrize("requests", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_nothing_is_kept_after_many_requests(run, spans, requests):
    async def main():
        app, watch = own_inside()
        async with client_of(app) as client:
            for _ in range(requests):
                await client.get("/wait?seconds=0")
            await spans.some(requests)  # one may have been put off
            return watch._traces.kept()

    assert run(main) == 0
    assert all("end" not in vars(span) for span in spans.servers())


def test_a_provider_is_asked_once_however_many_watches_there_are(run, spans):
    found = len(spans.provider._active_span_processor._span_processors)

    async def main():
        for _ in range(3):
            async with loopwatch.LoopWatch(ON) as watch:
                watch.door, watch._traces._stopping = None, None
            app, watch = own()
            async with client_of(app) as client:
                await client.get("/wait?seconds=0")
            watch.stop()

    run(main)
    assert len(spans.provider._active_span_processor._span_processors) == found + 1
    assert SpanStarts.of(spans.provider)._exporters == ()


def test_a_door_without_an_observer_tells_nobody_and_one_with_it_tells_all(run):
    class Observer:
        def __init__(self):
            self.told = []

        def begin(self, request):
            self.told.append("begin")

        def end(self, request, status_class):
            self.told.append(("end", request.is_open(), sum(request.read()) > 0, status_class))

        def held(self, request, start, end):
            self.told.append(("held", (end - start) / 1e9))

    async def main():
        async with loopwatch.LoopWatch() as watch:
            door, _ = door_on(watch.stage)
            door.observe(observer := Observer())

            async def work():
                burn_cpu(0.05)

            request = door.begin(scope(), None, watch.stage)
            await request.drive(work())
            door.observe(None)
            await door.begin(scope(), None, watch.stage).drive(asyncio.sleep(0))
            return observer.told

    begun, held, ended = run(main)
    assert begun == "begin"
    assert held[0] == "held"
    assert held[1] >= 0.05
    assert ended == ("end", True, True, 5)  # it has answered nothing


@pytest.mark.blocks
def test_what_the_observer_takes_at_the_beginning_is_no_time_of_the_request(run):
    class Slow:
        def begin(self, request):
            block_loop(0.2)

        def end(self, request, status_class):
            self.told = sum(request.read()) / 1e9

    async def main():
        async with loopwatch.LoopWatch() as watch:
            door, _ = door_on(watch.stage)
            door.observe(observer := Slow())
            await door.begin(scope(), None, watch.stage).drive(asyncio.sleep(0))
            return observer.told

    assert run(main) < 0.2  # what it slept at least


def test_where_nobody_makes_spans_requests_are_left_alone_until_somebody_does(monkeypatch):
    class Door:
        def __init__(self):
            self.observers = []

        def observe(self, observer):
            self.observers.append(observer)

    provider = TracerProvider()
    exporter = exporting.TraceExporter(0.1)
    monkeypatch.setattr(exporting, "IDLE_SECONDS", 0.5)
    monkeypatch.setattr(exporting.trace, "get_tracer_provider", lambda: None)
    exporter.start(door := Door(), None)
    try:
        for number in range(exporting._ENOUGH_WITHOUT):
            assert door.observers == [exporter], number
            exporter.begin(Request())
        wait_until(lambda: len(door.observers) > 2, "another look")
        assert door.observers == [exporter, None, exporter]
        with provider.get_tracer("test").start_as_current_span("request", kind=SpanKind.SERVER):
            exporter.begin(Request())
        assert exporter.kept() == 1
    finally:
        exporter.stop()
    assert door.observers[-1] is None
