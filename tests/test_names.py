"""A name that the app gave, whatever is in it, becomes one printable line that no other name becomes."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import json
import logging
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.trace import SpanKind
from prometheus_client.openmetrics.parser import text_string_to_metric_families as families_of_openmetrics
from prometheus_client.parser import text_string_to_metric_families as families_of_text
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

import loopwatch
from loopwatch import Config
from loopwatch.exporters.log import StallLog
from loopwatch.exporters.opentelemetry import OpenTelemetryExporter
from loopwatch.failures import Failures
from loopwatch.names import LONGEST, LONGEST_PATH, described, printable
from loopwatch.probes.frames import Line
from loopwatch.probes.pools import LONGEST_NAME, Pools
from loopwatch.readings import PoolStall
from loopwatch.routes import RouteTable
from loopwatch.testing import block_loop
from tests.hostile import NAMES, Speechless, is_a_line, using
from tests.only import only
from tests.serving import LOOPS, ROOT
from tests.spans import Spans, globally
from tests.waiting import until

pytestmark = pytest.mark.quick_on_asyncio

STALL_SECONDS, BLOCKED_SECONDS = 0.03, 0.06
TRIES = 20
PARSERS = {
    "text/plain": families_of_text,
    "application/openmetrics-text; version=1.0.0": families_of_openmetrics,
}
ANY_NAME = st.text(st.characters(codec=None) | st.sampled_from("\\n\n\ud800…"), max_size=300)

# --- what is made of a name


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("/items/{item}", "/items/{item}"),
        ("naïve → Ω 名前 שם", "naïve → Ω 名前 שם"),
        ("'a\"b", "'a\"b"),
        ("a\nb\tc", r"a\nb\tc"),
        (r"a\nb", r"a\\nb"),
        ("\x1b[31m\0", r"\x1b[31m\x00"),
        ("\u202e\u2066\ud800\U000e0001", r"\u202e\u2066\ud800\U000e0001"),
        (None, "None"),
        (404, "404"),
        (Speechless(), "<class 'tests.hostile.Speechless'>"),
    ],
)
def test_what_cannot_be_printed_is_an_escape_and_all_else_stays(name, written):
    assert printable(name) == written


def test_an_ordinary_name_is_the_same_object():
    name = "/items/{item}"
    assert printable(name) is name


class Shouting(str):
    """A string of the app's that is never asked for what it says of itself."""

    __slots__ = ()

    def __str__(self):
        raise RuntimeError

    isprintable = __len__ = __contains__ = __iter__ = encode = __str__


def test_a_string_of_the_apps_own_class_becomes_a_plain_one():
    assert type(printable(Shouting("a\nb"))) is str
    assert printable(Shouting("a\nb")) == r"a\nb"


@given(ANY_NAME, st.sampled_from([40, LONGEST]))
def test_any_name_is_a_line_of_bounded_length(name, longest):
    written = printable(name, longest)
    assert written.isprintable()
    assert len(written) <= longest
    assert written.encode().decode() == written


@given(ANY_NAME, ANY_NAME)
@example("a\nb", r"a\nb")
@example("\ud800", r"\ud800")
def test_two_names_are_not_written_alike(one, other):
    assert (printable(one, 40) == printable(other, 40)) == (one == other)


@pytest.mark.parametrize("unlike", [0, 5000, 9999], ids=["the beginning", "the middle", "the end"])
@pytest.mark.parametrize("filling", ["x", "\n", "\ud800"])
def test_long_names_that_differ_in_one_character_do_so_when_they_are_shortened(unlike, filling):
    one = filling * 10_000
    other = f"{one[:unlike]}y{one[unlike + 1 :]}"
    assert printable(one) != printable(other)


def test_a_shortened_name_shows_both_its_ends_and_no_part_of_an_escape():
    written = printable("/begin" + "\n" * 500 + "/end")
    assert written.startswith("/begin\\n")
    assert written.endswith("\\n/end")
    assert LONGEST - 4 < len(written) <= LONGEST
    begin, checksum, end = written.split("…")
    assert len(checksum) == 8
    assert begin.removeprefix("/begin").replace("\\n", "") == ""
    assert end.removesuffix("/end").replace("\\n", "") == ""


def test_an_error_is_its_class_and_its_message():
    assert described(ValueError("a\nb")) == r"ValueError: a\nb"
    assert described(ValueError(Speechless())) == "ValueError: <class 'ValueError'>"


# --- all things that have names, called the same


class Evidence(NamedTuple):
    """What all ways out made of one name."""

    name: str
    pages: dict[str, str]
    records: list[logging.LogRecord]
    stalls: tuple[loopwatch.Stall, ...]
    snapshot: loopwatch.Snapshot
    spans: tuple[Any, ...]
    metrics: Any


class _Keeping(logging.Handler):
    def __init__(self):
        super().__init__()
        self.records = []

    def emit(self, record):
        record.traceback_given = record.exc_text  # handlers that format it put theirs there
        self.records.append(record)


@contextlib.contextmanager
def kept_log():
    logger, keeping = logging.getLogger("loopwatch"), _Keeping()
    level = logger.level
    logger.addHandler(keeping)
    logger.setLevel(logging.DEBUG)
    try:
        yield keeping.records
    finally:
        logger.removeHandler(keeping)
        logger.setLevel(level)


class OneSpanEach:
    """A middleware that makes the spans of requests, with nothing of them but their kind."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        with trace.get_tracer("tests").start_as_current_span("request", kind=SpanKind.SERVER):
            await self.app(scope, receive, send)


async def get(app, path, accept="", **further):
    """Have an app answer a path that no client could send; return status and body."""
    messages = []

    async def send(message):
        messages.append(message)

    async def receive():
        await asyncio.sleep(60)

    scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "root_path": ""}
    headers = [(b"accept", accept.encode())] if accept else []
    await app({**scope, "headers": headers, **further}, receive, send)
    return messages[0]["status"], b"".join(message.get("body", b"") for message in messages[1:])


def called(name):
    """Return a function that blocks, of which all that the interpreter knows is called ``name``."""

    def block():
        time.sleep(BLOCKED_SECONDS)

    block.__code__ = block.__code__.replace(co_filename=name, co_name=name, co_qualname=name)
    block.__module__ = block.__qualname__ = block.__name__ = name
    return block


LINE_OF_CALLED = called("any").__code__.co_firstlineno + 1


async def stalled(work, watch, is_it):
    """Stall until the watcher has seen in a stall what it is to see; return how often that took.

    Where the machine withholds the CPU from it, it sees another moment of the stall, or none.
    """
    for times in range(1, TRIES + 1):
        await work()
        await asyncio.sleep(0.05)
        if any(map(is_it, watch.stalls)):
            return times
    raise AssertionError(f"not seen in {TRIES} stalls: {watch.stalls}")


async def evidence_of(name):
    async def blocks(_):
        block_loop(BLOCKED_SECONDS)
        return PlainTextResponse("")

    async def holds():
        block_loop(BLOCKED_SECONDS)

    async def calls():
        called(name)()

    app = Starlette(routes=[Route("/" + name, blocks)])
    app.add_middleware(OneSpanEach)
    watch = loopwatch.install(app, Config(opentelemetry=True, stall_seconds=STALL_SECONDS))
    reader, spans, loop = InMemoryMetricReader(), Spans(), asyncio.get_running_loop()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    telling = OpenTelemetryExporter(watch.snapshot, provider)

    @watch.on_stall
    def broken(_):
        raise ValueError(name)

    with contextlib.ExitStack() as ends:
        records = ends.enter_context(kept_log())
        ends.enter_context(globally(spans.provider))
        ends.callback(provider.shutdown)
        ends.callback(watch.stop)
        await get(app, "/metrics")  # starts the watch
        telling.start()
        ends.callback(telling.stop)
        await asyncio.sleep(0.05)
        requests = await stalled(lambda: get(app, "/" + name), watch, lambda stall: stall.route)
        await stalled(
            lambda: asyncio.create_task(holds(), name=name), watch, lambda stall: "holds" in stall.function
        )
        await stalled(lambda: asyncio.create_task(calls()), watch, lambda stall: stall.lineno == LINE_OF_CALLED)
        executor, other = (ends.enter_context(ThreadPoolExecutor(1)) for _ in range(2))
        executor._thread_name_prefix = name  # of the pool, before it has threads: not each system takes the name
        with_name = loop.run_in_executor(executor, abs, 1)
        executor._thread_name_prefix = "t"
        await with_name
        other._thread_name_prefix = ""
        await using(name)(loop, other)
        await until(lambda: watch.failures.read().get("listener"), "the listener to fail")
        pages = {}
        for accept in PARSERS:
            status, body = await get(app, "/metrics", accept)
            assert status == 200, body
            pages[accept] = body.decode()
        snapshot, metrics = watch.snapshot(), reader.get_metrics_data()
        found = await spans.some(requests)
        await until(lambda: sum(hasattr(record, "stall_cause") for record in records) >= 3, "the log")
    return Evidence(name, pages, records, watch.stalls, snapshot, tuple(found), metrics)


@pytest.fixture(scope="module", params=[(kind, what) for kind in LOOPS for what in NAMES], ids="-".join)
def evidence(request):
    kind, what = request.param
    if kind == "asyncio":
        return asyncio.run(evidence_of(NAMES[what]))
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(evidence_of(NAMES[what]))


@pytest.mark.parametrize("accept", PARSERS)
def test_a_page_has_each_name_once_and_is_whole(evidence, accept):
    page = evidence.pages[accept]
    values: dict[str, set[str]] = {}
    for family in PARSERS[accept](page):
        for sample in family.samples:
            for label, value in sample.labels.items():
                values.setdefault(label, set()).add(value)
    assert values["http_route"] == {printable("/" + evidence.name), "_none"}
    threads = printable(f"threads:{evidence.name}.{evidence.name}", LONGEST_NAME)
    assert values["pool"] >= {printable(evidence.name, LONGEST_NAME), threads}
    assert all(map(str.isprintable, page.splitlines()))
    assert max(map(len, page.splitlines())) < 5 * LONGEST


def test_each_record_of_the_log_is_one_line(evidence):
    assert len(evidence.records) >= 4
    for record in evidence.records:
        assert is_a_line(record.getMessage())
        assert len(record.getMessage()) < 5000
        assert all(map(str.isprintable, logging.Formatter().format(record).split("\n")))
        fields = {field: value for field, value in vars(record).items() if field.startswith("stall_")}
        assert all(is_a_line(value) for value in fields.values() if isinstance(value, str) and value)


def test_stalls_say_who_where_and_what_in_lines(evidence):
    assert printable("/" + evidence.name) in {stall.route for stall in evidence.stalls}
    assert printable(evidence.name) in {stall.task for stall in evidence.stalls}
    place = printable(f"{__name__}:{evidence.name}"), printable(evidence.name, LONGEST_PATH)
    assert place in {(stall.function, stall.filename) for stall in evidence.stalls}
    for stall in evidence.stalls:
        assert is_a_line(str(stall))
        assert all(map(is_a_line, stall.stack))


def test_spans_reach_a_collector_with_each_stall(evidence):
    events = [event for span in evidence.spans for event in span.events]
    assert {event.attributes["loopwatch.stall.holder"] for event in events} == {
        f"GET {printable('/' + evidence.name)}"
    }
    assert encode_spans(evidence.spans).SerializeToString()


def test_metrics_reach_a_collector_with_each_name(evidence):
    attributes = [
        point.attributes
        for resource in evidence.metrics.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.data.data_points
    ]
    assert {one["http.route"] for one in attributes if "http.route" in one} == {
        printable("/" + evidence.name),
        "_none",
    }
    assert printable(evidence.name, LONGEST_NAME) in {one.get("pool") for one in attributes}
    assert encode_metrics(evidence.metrics).SerializeToString()


def test_readings_have_the_names_that_pages_have(evidence):
    route = only(evidence.snapshot.routes)
    assert (route.route, route.method) == (printable("/" + evidence.name), "GET")
    assert evidence.snapshot.pool(printable(evidence.name, LONGEST_NAME)).run_times.count == 1


# --- several workers

WORKER = """
import asyncio, json, sys
from concurrent.futures import ThreadPoolExecutor
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
import loopwatch
from tests.hostile import NAMES, using
from tests.test_names import PARSERS, get

async def answer(_):
    return PlainTextResponse("")

async def main():
    app = Starlette(routes=[Route("/" + name, answer) for name in NAMES.values()])
    watch, pools = loopwatch.install(app), []
    for name in NAMES.values():
        await get(app, "/" + name)
        pools.append(ThreadPoolExecutor(1))
        pools[-1]._thread_name_prefix = ""
        await using(name)(asyncio.get_running_loop(), pools[-1])
    pages = {accept: await get(app, "/metrics", accept) for accept in PARSERS}
    print(json.dumps({accept: (status, body.decode()) for accept, (status, body) in pages.items()}))
    for pool in pools:
        pool.shutdown()

asyncio.run(main())
"""


def test_workers_agree_on_each_name_and_their_page_is_whole(tmp_path):
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", WORKER], cwd=ROOT, env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    for accept, (status, page) in json.loads(done.stdout).items():
        assert status == 200, page
        assert all(map(str.isprintable, page.splitlines()))
        samples = [sample for family in PARSERS[accept](page) for sample in family.samples]
        requests = {
            sample.labels["http_route"]: sample.value
            for sample in samples
            if sample.name == "loopwatch_request_duration_seconds_count"
        }
        assert requests == {printable("/" + name): 2.0 for name in NAMES.values()}
        work = {
            sample.labels["pool"]: sample.value
            for sample in samples
            if sample.name == "loopwatch_threadpool_run_duration_seconds_count"
        }
        users = {printable(f"threads:{name}.{name}", LONGEST_NAME): 2.0 for name in NAMES.values()}
        assert work.items() >= users.items()


# --- names that are no strings


def test_a_route_whose_path_is_no_string_has_a_label_and_the_others_keep_theirs():
    routes = [Route(path, lambda _: None) for path in ("/a", "/b", "/c")]
    routes[0].path_format = Speechless()
    routes[1].path_format = 2
    table = RouteTable(SimpleNamespace(routes=routes))
    labels = [table.template({"endpoint": route.endpoint}) for route in routes]
    assert labels == [printable(Speechless()), "2", "/c"]


def test_a_mount_is_part_of_the_label():
    inner = Route("/leaf\x1b", lambda _: None)
    table = RouteTable(SimpleNamespace(routes=[Mount("/mount\n", routes=[inner])]))
    assert table.template({"endpoint": inner.endpoint}) == r"/mount\n/leaf\x1b"


class NoName:
    """A function of which nothing can be asked."""

    def __getattribute__(self, name):
        if name in {"__qualname__", "__module__"}:
            raise RuntimeError
        return super().__getattribute__(name)

    def __call__(self): ...


class OddName:
    def __init__(self):
        self.__module__, self.__qualname__ = Speechless(), 5

    def __call__(self): ...


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (NoName(), "threads:<class 'tests.test_names.NoName'>"),
        (OddName(), "threads:<class 'tests.hostile.Speechless'>.5"),
    ],
)
def test_a_pool_is_named_after_a_function_that_has_an_odd_name_or_none(function, name):
    pools, executor = Pools(5), ThreadPoolExecutor(1)

    async def used_by_the_loop_alone():
        asyncio.get_running_loop().call_soon(pools.of_executor, executor, function)

    asyncio.run(used_by_the_loop_alone())
    assert only(pools.read()).pool == name


def test_pools_of_any_name_stay_apart_from_the_one_for_the_others():
    pools = Pools(2)
    executors = [ThreadPoolExecutor(1, thread_name_prefix=prefix) for prefix in ("first", "_other", "third")]
    pools.name(executors[0], "a\nb")
    for executor in executors:
        pools.of_executor(executor, abs)
    assert [pool.pool for pool in pools.read()] == [r"a\nb", "_other 2", "_other"]


class Untold(asyncio.Task):
    """A task that cannot say what it is called."""

    def get_name(self):
        raise LookupError


@pytest.mark.blocks
def test_what_the_app_calls_oddly_does_not_end_the_watch_over_the_loop(run):
    space = {"__name__": Speechless(), "block_loop": block_loop, "seconds": BLOCKED_SECONDS}
    exec(compile("def odd():\n    block_loop(seconds)\n", "odd.py", "exec"), space)

    async def calls(function):
        function()

    async def main():
        async with loopwatch.LoopWatch(Config(stall_seconds=STALL_SECONDS)) as watch:
            await asyncio.sleep(0.05)
            await stalled(
                lambda: asyncio.create_task(calls(space["odd"])),
                watch,
                lambda stall: (stall.function, stall.filename) == ("?:odd", "odd.py"),
            )
            loop = asyncio.get_running_loop()
            await stalled(
                lambda: Untold(calls(lambda: block_loop(BLOCKED_SECONDS)), loop=loop),
                watch,
                lambda stall: "<lambda>" in stall.function,
            )
            return watch.stalls, watch.failures.read()

    stalls, failures = run(main)
    assert {stall.task for stall in stalls if "<lambda>" in stall.function} == {None}
    assert failures == {}


# --- what the client says


class Method(enum.StrEnum):
    """One of a middleware's own, which equals a method and reads otherwise."""

    GET = "GET"

    def __str__(self):
        return "own"


def test_what_clients_send_gets_one_label_and_nothing_of_it_is_kept(run):
    app = Starlette(routes=[Route("/known", lambda _: PlainTextResponse(""), methods=["GET", "SECRET"])])
    watch = loopwatch.install(app)
    further = {"query_string": b"secret=1", "headers": [(b"secret", b"secret")]}

    async def main():
        for method in ("SECRET", "WEBSOCKET", "_OTHER", "get", "G\nET", "\ud800", "x" * 10_000):
            for path in ("/known", "/secret", "/known/secret", "/\ud800secret", "//secret\n", "/secret" * 2000):
                await get(app, path, method=method, **further)
        await get(app, "/known", method=Method.GET, **further)
        _, page = await get(app, "/metrics")
        watch.stop()
        return watch.snapshot(), page.decode()

    snapshot, page = run(main)
    assert {(route.route, route.method) for route in snapshot.routes} == {
        ("/known", "_OTHER"),
        ("/known", "GET"),
        ("_unmatched", "_OTHER"),
    }
    assert all(type(route.method) is str for route in snapshot.routes)
    assert snapshot.route("/known", "_OTHER").requests == 7
    assert "secret" not in page.lower()


# --- the log


def test_a_stuck_pool_is_one_line_of_the_log_with_the_innermost_lines_of_each_stack():
    stacks = [tuple(str(Line(f"app:f{number}", "app.py", number)) for number in range(depth)) for depth in (3, 100)]
    with kept_log() as records:
        StallLog(0.05).hear_pool_stall(PoolStall("a", 1.0, 10.0, 2, 5, 2, 0, (("app:f", 2),), tuple(stacks)))
    text = only(records).getMessage()
    assert is_a_line(text)
    assert "; thread 1: app:f0 (app.py:0) > app:f1 (app.py:1) > app:f2 (app.py:2); thread 2: … > app:f70" in text
    assert text.endswith("app:f99 (app.py:99)")


@pytest.mark.parametrize("what", NAMES)
def test_a_failure_is_logged_in_lines_with_its_traceback(what):
    with kept_log() as records:
        try:
            try:
                raise KeyError(NAMES[what])
            except KeyError:
                raise ValueError(NAMES[what]) from None
        except ValueError as error:
            Failures().report("part", error, "nothing more")
            raised = error
    record = only(records)
    assert record.getMessage() == (
        f"loopwatch: part failed ({described(raised)}); nothing more. The app is not affected."
    )
    assert is_a_line(record.getMessage())
    assert record.exc_info[1] is raised
    assert record.filename == "failures.py"
    lines = logging.Formatter().format(record).split("\n")
    assert all(map(str.isprintable, lines))
    assert "Traceback (most recent call last):" in lines


def test_an_ordinary_failure_is_formatted_by_the_handler():
    with kept_log() as records:
        Failures().report("part", ValueError("ordinary"), "nothing more")
        Failures().report("part", ValueError(Speechless()), "nothing more")
    assert [record.traceback_given for record in records] == [None, None]
