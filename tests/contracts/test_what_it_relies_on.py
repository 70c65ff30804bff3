"""Private parts of others that loopwatch uses: these tests notice when they change."""

from __future__ import annotations

import _thread
import ast
import asyncio
import concurrent.futures
import copy
import importlib.util
import inspect
import os
import pathlib
import selectors
import shutil
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from importlib.machinery import BuiltinImporter
from importlib.util import module_from_spec

import anyio.from_thread
import anyio.to_thread
import pytest
import uvicorn
import uvloop
from anyio import CapacityLimiter
from anyio._backends import _asyncio as anyio_backend
from fastapi.applications import FastAPI
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.trace import SpanKind
from prometheus_client import values
from prometheus_client.exposition import choose_encoder, gzip_accepted
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.utils import floatToGoString
from starlette.applications import Starlette
from uvicorn.main import main as uvicorn_command

import loopwatch
from loopwatch import system
from loopwatch.exporters.opentelemetry.repeats import adding_works
from loopwatch.exporters.traces.starts import SpanStarts
from loopwatch.probes import threads
from loopwatch.probes.loops import libuv
from loopwatch.probes.loops.selector import SelectorClock
from loopwatch.probes.steps import _forgets_names
from loopwatch.probes.tasks import _references
from loopwatch.probes.users import user_of
from tests.dictionaries import has_dictionary
from tests.serving import ROOT


def test_a_second_instance_of_a_builtin_module_has_functions_of_its_own_that_work():
    for module, name in (
        (_thread, "allocate_lock"),
        (_thread, "get_ident"),
        (time, "sleep"),
    ):
        second = module_from_spec(BuiltinImporter.find_spec(module.__name__))
        BuiltinImporter.exec_module(second)
        assert getattr(second, name) is not getattr(module, name)
    assert sys.modules["_thread"] is _thread
    assert sys.modules["time"] is time


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system is asked for it")
def test_linux_makes_the_number_of_a_threads_cpu_clock_from_that_of_the_thread():
    assert system.own_cpu_clock() == time.pthread_getcpuclockid(threading.get_ident())


def test_sockets_are_derived_from_those_of_the_system():
    assert issubclass(socket.socket, system.SystemSocket)


GEVENT = """
from gevent import monkey; monkey.patch_all(thread=False)
import socket, time
from gevent._hub_local import get_hub_if_exists
from loopwatch import system
assert system.sockets_are_greenlets() and not system.threads_are_greenlets()
assert get_hub_if_exists() is None
time.sleep(0.001)
get_hub_if_exists().destroy(destroy_loop=True)
assert get_hub_if_exists() is None
"""


def test_gevent_makes_a_hub_for_a_thread_that_waits_and_can_close_it():
    if importlib.util.find_spec("gevent") is None:
        pytest.skip("gevent is not installed")
    done = subprocess.run(
        [sys.executable, "-c", GEVENT], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_asyncios_selector_loop_polls_through_an_attribute_that_can_be_replaced():
    loop = asyncio.new_event_loop()
    try:
        assert SelectorClock.supports(loop)
        assert isinstance(loop._selector, selectors.BaseSelector)
        assert list(inspect.signature(loop._selector.select).parameters) == ["timeout"]
        calls = []
        found = loop._selector.select
        loop._selector.select = lambda timeout=None: calls.append(timeout) or found(timeout)
        loop.run_until_complete(asyncio.sleep(0))
        assert calls
    finally:
        loop.close()


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="attributes stay where they are, from Python 3.13 on")
def test_a_measured_loop_keeps_its_attributes_where_the_interpreter_finds_them_at_once():
    """In a process of its own: what other loops of a class were given counts, too."""
    code = f"import asyncio, {__name__} as tests; print(asyncio.run(tests.dictionaries_of_a_loop()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    before, during, asked_for = ast.literal_eval(done.stdout)
    assert before == during == (False, False)
    assert asked_for == (True, True)


async def dictionaries_of_a_loop():
    """Return whether a loop and its selector have a dictionary: before, while measured, and when asked for it."""

    def dictionaries():
        return has_dictionary(loop, "_selector"), has_dictionary(loop._selector, "_map")

    loop = asyncio.get_running_loop()
    before = dictionaries()
    async with loopwatch.LoopWatch():
        during = dictionaries()
    vars(loop), vars(loop._selector)
    return before, during, dictionaries()


def test_uvloop_exports_libuvs_symbols_and_the_pointer_to_its_loop():
    loop = uvloop.new_event_loop()
    try:
        assert libuv.LibuvClock.supports(loop)
        assert libuv._address_of(loop)
        library = libuv._libuv()
        library.uv_version_string.restype = libuv.ctypes.c_char_p
        assert library.uv_version_string().startswith(b"1.")
    finally:
        loop.close()


def test_without_the_symbols_uvloop_gets_a_heartbeat(monkeypatch):
    monkeypatch.setattr(libuv, "_libuv", lambda: None)
    loop = uvloop.new_event_loop()
    try:
        assert not libuv.LibuvClock.supports(loop)
    finally:
        loop.close()


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks are new in Python 3.12")
def test_the_eager_factory_keeps_its_constructor_in_its_closure_and_anyio_looks_there():
    factory = asyncio.create_eager_task_factory(asyncio.Task)
    assert factory.__code__ is asyncio.eager_task_factory.__code__
    assert factory.__closure__[0].cell_contents is asyncio.Task
    assert anyio_backend._eager_task_factory_code is factory.__code__


def test_asyncio_keeps_weak_references_to_all_tasks_in_a_set():
    async def main():
        task = asyncio.ensure_future(asyncio.sleep(0))
        references = _references()
        found = None if references is None else {reference() for reference in references}
        return found is None or found >= {task, asyncio.current_task()}, references is None

    assert asyncio.run(main()) == (True, sys.version_info >= (3, 14))


def test_anyios_limiter_tells_its_statistics():
    async def main():
        limiter = anyio.to_thread.current_default_thread_limiter()
        now = limiter.statistics()
        return now.total_tokens, now.borrowed_tokens, now.tasks_waiting

    assert asyncio.run(main()) == (40, 0, 0)


def test_anyios_limiter_keeps_its_limit_in_a_property():
    async def main():
        return vars(type(anyio.to_thread.current_default_thread_limiter()))["total_tokens"]

    limit = asyncio.run(main())
    assert isinstance(limit, property)
    assert limit.fset is not None


@pytest.mark.parametrize("make_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_run_in_executor_submits_to_whatever_it_is_given(make_loop):
    class Inline:
        def submit(self, function, *arguments):
            future = concurrent.futures.Future()
            future.set_result(function(*arguments))
            return future

    async def main():
        return await asyncio.get_running_loop().run_in_executor(Inline(), len, "abc")

    with asyncio.Runner(loop_factory=make_loop) as runner:
        assert runner.run(main()) == 3


@pytest.mark.parametrize("make_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_threads_reach_a_loop_through_an_attribute_that_can_be_replaced(make_loop):
    called = []

    async def main():
        loop = asyncio.get_running_loop()
        found = loop.call_soon_threadsafe

        def call_soon_threadsafe(callback, *arguments, **options):
            called.append(threading.get_ident())
            return found(callback, *arguments, **options)

        loop.call_soon_threadsafe = call_soon_threadsafe
        counts = []
        for way in (anyio.from_thread.run, anyio.from_thread.run_sync, in_loop):
            before = len(called)
            await anyio.to_thread.run_sync(way, asyncio.sleep if way is anyio.from_thread.run else int, 0)
            counts.append(len(called) - before)
        assert threading.get_ident() not in called
        return counts

    def in_loop(_function, seconds):
        asyncio.run_coroutine_threadsafe(asyncio.sleep(seconds), runner.get_loop()).result()

    with asyncio.Runner(loop_factory=make_loop) as runner:
        assert runner.run(main()) == [2, 2, 2]  # and each time that the work is over


@pytest.mark.parametrize("make_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_frames_lead_from_what_runs_to_who_awaits_it_and_code_knows_what_it_names(make_loop):
    anyios = {"__name__": "anyio.somewhere", "user_of": user_of}
    exec("async def look(limiter): return user_of(type(limiter), None)", anyios)
    look = anyios["look"]

    async def makes_one():
        limiter = CapacityLimiter(1)
        first = await look(limiter)
        await asyncio.sleep(0)  # the next is called in a step that a loop begins
        return first, await look(limiter)

    async def makes_two():
        first, second = CapacityLimiter(1), CapacityLimiter(2)
        return await look(first), await look(second)

    with asyncio.Runner(loop_factory=make_loop) as runner:
        ones, twos = runner.run(makes_one()), runner.run(makes_two())
    assert [user.function.rpartition(".")[2] for user in (*ones, *twos)] == ["makes_one"] * 2 + ["makes_two"] * 2
    assert {user.place for user in ones} == {0}
    assert len({user.place for user in twos} - {0}) == 2


def test_executors_keep_their_limit_and_the_prefix_of_their_threads_and_asyncio_its_own():
    executor = concurrent.futures.ThreadPoolExecutor(3, thread_name_prefix="mine")
    assert (executor._max_workers, executor._thread_name_prefix) == (3, "mine")
    assert concurrent.futures.ProcessPoolExecutor(2)._max_workers == 2

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_default_executor(executor)
        return loop._default_executor

    assert asyncio.run(main()) is executor


def test_starlette_builds_its_stack_through_a_method_that_can_be_wrapped():
    app = Starlette()
    assert app.middleware_stack is None
    app.build_middleware_stack = lambda: "ours"
    with pytest.raises(TypeError, match="'str' object is not callable"):
        asyncio.run(app({"type": "http"}, None, None))
    assert app.middleware_stack == "ours"


def test_prometheus_client_chooses_encoder_and_gzip_by_header():
    assert choose_encoder("")[1].startswith("text/plain")
    assert gzip_accepted("gzip, br")
    assert not gzip_accepted("br")


def test_prometheus_client_keeps_the_values_of_a_process_in_files_by_kind(tmp_path):
    script = """
from prometheus_client import values
gauges = (("gauge", mode) for mode in ("livemax", "livemin", "livesum"))
for kind, mode in (("counter", ""), ("histogram", ""), *gauges):
    about = f"a_{kind}_{mode}", f"a_{kind}_{mode}_total", ("label",), ("here",), "Help."
    value = values.ValueClass(kind, *about, multiprocess_mode=mode)
    value.set(1.0)
    value.inc(1.5)
import os
print(os.getpid())
"""
    environ = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=True)
    prefixes = ("counter", "histogram", "gauge_livemax", "gauge_livemin", "gauge_livesum")
    assert {file.name for file in tmp_path.iterdir()} == {f"{one}_{done.stdout.strip()}.db" for one in prefixes}
    (counter,) = [one for one in MultiProcessCollector(None, str(tmp_path)).collect() if one.type == "counter"]
    (sample,) = counter.samples
    assert (sample.name, sample.labels, sample.value) == ("a_counter__total", {"label": "here"}, 2.5)
    assert values.ValueClass is values.MutexValue  # here, where nothing is set
    assert [floatToGoString(bound) for bound in (0.001, 1.0, float("inf"))] == ["0.001", "1.0", "+Inf"]


def test_a_socket_can_be_bound_to_an_address_of_the_systems_choice():
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
        one.bind("")
        assert one.getsockname().startswith(b"\0")


def test_where_there_is_a_compiler_with_headers_the_compiled_core_is_in_use():
    if not (shutil.which("cc") or shutil.which("gcc")):
        pytest.skip("no C compiler: the plain core is all there is")
    if not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists():
        pytest.skip("no headers of Python: the plain core is all there is")
    told = {
        pure: subprocess.run(
            [sys.executable, "-c", "from loopwatch import hot; print(hot.COMPILED, hot.Lookout is not None)"],
            env={**os.environ, "LOOPWATCH_PURE": pure}, capture_output=True, text=True, check=True,
        ).stdout.strip()
        for pure in ("", "yes")
    }  # fmt: skip
    assert told == {"": "True True", "yes": "False False"}


def test_anyios_worker_threads_go_through_one_function_of_its_backend():
    parameters = inspect.signature(anyio_backend.AsyncIOBackend.run_sync_in_worker_thread).parameters
    assert tuple(parameters) == threads._PARAMETERS
    assert isinstance(vars(anyio_backend.AsyncIOBackend)["run_sync_in_worker_thread"], classmethod)


def test_uvloops_call_at_goes_through_its_call_later_and_asyncios_the_other_way():
    for loop, outer, inner in (
        (uvloop.new_event_loop(), "call_at", "call_later"),
        (asyncio.new_event_loop(), "call_later", "call_at"),
    ):
        calls, found = [], getattr(loop, inner)
        setattr(loop, inner, lambda *a, calls=calls, found=found, **o: calls.append(1) or found(*a, **o))
        getattr(loop, outer)(loop.time() + 100, print).cancel()
        loop.close()
        assert len(calls) == 1


def test_opentelemetrys_spans_have_a_kind_and_an_end_that_can_be_replaced_and_put_back():
    span = TracerProvider(shutdown_on_exit=False).get_tracer("test").start_span("x", kind=SpanKind.SERVER)
    assert span.kind is SpanKind.SERVER
    assert list(inspect.signature(span.end).parameters) == ["end_time"]
    calls, found = [], span.end
    span.end = lambda end_time=None: calls.append(end_time)
    with span:
        pass
    assert calls == [None]
    assert span.is_recording()
    assert vars(span).pop("end")
    found(end_time=span.start_time + 5)
    assert span.end_time == span.start_time + 5


def test_opentelemetrys_span_processors_have_the_methods_that_ours_has():
    theirs = {name for name, value in vars(SpanProcessor).items() if callable(value)}
    assert theirs <= set(vars(SpanStarts))
    for name in theirs:
        ours = inspect.signature(getattr(SpanStarts, name)).parameters
        assert list(inspect.signature(getattr(SpanProcessor, name)).parameters) == list(ours)


def test_a_provider_of_opentelemetrys_sdk_that_is_shut_down_says_so_to_its_processors():
    provider = TracerProvider(shutdown_on_exit=False)
    starts = SpanStarts.of(provider)
    assert not starts.is_shut_down
    provider.shutdown()
    assert starts.is_shut_down
    assert SpanStarts.of(provider) is not starts


def test_starlettes_stack_is_built_by_a_method_of_the_class():
    for app in (Starlette(), FastAPI()):
        assert callable(type(app).build_middleware_stack)
        assert "build_middleware_stack" not in vars(app)


def test_values_can_be_added_to_the_aggregations_of_opentelemetrys_sdk():
    assert adding_works()


def test_starlettes_apps_are_called_through_their_class_with_the_stack_still_to_be_built():
    assert inspect.iscoroutinefunction(vars(Starlette)["__call__"])
    assert inspect.iscoroutinefunction(vars(FastAPI)["__call__"])
    assert FastAPI().middleware_stack is None
    assert FastAPI().user_middleware == []


def test_a_mark_makes_a_callable_object_a_coroutine_function():
    class Marked:
        _is_coroutine = asyncio.coroutines._is_coroutine

        def __call__(self):
            pass

    assert asyncio.iscoroutinefunction(Marked())
    if hasattr(inspect, "markcoroutinefunction"):
        function = inspect.markcoroutinefunction(lambda: None)
        Marked._is_coroutine_marker = function._is_coroutine_marker
        assert inspect.iscoroutinefunction(Marked())


def test_asyncio_names_tasks_none_after_a_factory_on_one_release_and_keeps_stacks_in_debug_mode():
    async def child():
        pass

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_task_factory(lambda loop, coroutine, **options: asyncio.Task(coroutine, loop=loop))
        loop.set_debug(True)
        task, timer = loop.create_task(child()), loop.call_later(0, int)
        loop.set_debug(False)
        await task
        return task.get_name(), task._source_traceback[-1].name, timer._source_traceback[-1].name

    name, *makers = asyncio.run(main())
    assert (name == "None") is _forgets_names()
    assert makers == ["<lambda>", "main"]


def test_uvicorns_command_can_be_copied_and_call_another_callback():
    command = copy.copy(uvicorn_command)
    given = {}
    command.callback = given.update
    assert command(["main:app", "--factory"], standalone_mode=False, auto_envvar_prefix="NONE") is None
    told = {name: given[name] for name in ("app", "factory", "interface", "ws")}
    assert told == {"app": "main:app", "factory": True, "interface": "auto", "ws": "auto"}
    assert set(inspect.signature(uvicorn_command.callback).parameters) == set(given)
    assert uvicorn_command.callback is not command.callback


def test_uvicorn_loads_an_app_and_makes_one_of_asgi_3_of_it():
    loading = uvicorn.Config("tests.apps.plain:asgi2_app", proxy_headers=False, log_config=None)
    loading.load()
    assert inspect.iscoroutinefunction(loading.loaded_app.__call__)
