"""A thread that stands still in a known line is found there, and so is what it calls."""

from __future__ import annotations

import asyncio
import contextlib
import json
import pathlib
import queue
import sqlite3
import sys
import threading
import time
from time import sleep as alias

import pytest

from loopwatch.probes.frames import Sampler, call_in, is_app
from tests.dictionaries import has_dictionary

SECONDS = 0.3
lock = threading.Lock()


def direct():
    time.sleep(SECONDS)


def renamed():
    alias(SECONDS)


def over_several_lines():
    time.sleep(
        SECONDS,
    )


class Holder:
    shared = threading.Event()

    def __init__(self):
        self.waiting = queue.Queue()
        self.looked_at = 0

    def through_an_attribute(self):
        with contextlib.suppress(queue.Empty):
            self.waiting.get(timeout=SECONDS)

    def through_a_class(self):
        Holder.shared.wait(SECONDS)


class Watchful(Holder):
    """Notices whoever looks at it."""

    def __getattr__(self, name):
        self.looked_at += 1
        return self.waiting

    @property
    def waits(self):
        self.looked_at += 1
        return self.waiting

    def through_a_property(self):
        with contextlib.suppress(queue.Empty):
            self.waits.get(timeout=SECONDS)

    def through_what_is_made_up(self):
        with contextlib.suppress(queue.Empty):
            self.nowhere.get(timeout=SECONDS)


def through_a_variable():
    event = threading.Event()
    event.wait(SECONDS)


def with_a_lock():
    with lock:
        pass


def in_a_comprehension():
    return [time.sleep(SECONDS) for _ in range(1)]


def at(work):
    """Return what is seen of a thread that is in the middle of ``work``."""
    begins = threading.Event()

    def begin():
        begins.set()
        work()

    thread = threading.Thread(target=begin)
    thread.start()
    assert begins.wait(30)
    time.sleep(SECONDS / 2)
    sample = Sampler().sample(thread.ident)
    if lock.locked():
        lock.release()
    thread.join()
    return sample


@pytest.mark.contended
@pytest.mark.parametrize(
    ("work", "call"),
    [
        (direct, "time.sleep"),
        (renamed, "time.sleep"),
        (over_several_lines, "time.sleep"),
        (Holder().through_an_attribute, "queue.Queue.get"),
        (Holder().through_a_class, "threading.Event.wait"),
        (through_a_variable, "threading.Event.wait"),
        (with_a_lock, "_thread.lock"),
        (in_a_comprehension, "time.sleep"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_line_and_its_call_are_named(work, call):
    if work is with_a_lock:
        lock.acquire()
    sample = at(work)
    assert sample.culprit.function.startswith(f"{__name__}:{work.__qualname__}")
    assert sample.culprit.filename == "tests/probes/test_frames.py"
    first = work.__code__.co_firstlineno
    assert first < sample.culprit.lineno <= first + 6
    assert sample.call == call


@pytest.mark.contended
@pytest.mark.parametrize(
    ("work", "call"),
    [(Watchful.through_a_property, "self.waits.get"), (Watchful.through_what_is_made_up, "self.nowhere.get")],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_no_code_of_the_apps_is_run_to_name_a_call(work, call):
    watchful = Watchful()
    assert at(lambda: work(watchful)).call == call
    assert watchful.looked_at == 1  # by itself


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="attributes stay where they are, from Python 3.13 on")
def test_an_object_that_was_looked_at_keeps_its_attributes_where_the_interpreter_finds_them_at_once():
    holder = Holder()
    assert at(holder.through_an_attribute).call == "queue.Queue.get"
    assert not has_dictionary(holder, "waiting")
    vars(holder)
    assert has_dictionary(holder, "waiting")


@pytest.mark.contended
def test_what_a_library_does_is_blamed_on_the_line_that_called_it():
    sample = at(through_a_variable)
    assert "threading.Event.wait" in sample.inner
    assert any(line.filename.endswith("threading.py") for line in sample.stack)


@pytest.mark.contended
def test_lines_are_named_where_the_working_directory_is_gone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tmp_path.rmdir()
    culprit = at(direct).culprit
    assert (culprit.function, culprit.filename) == (f"{__name__}:direct", __file__)


@pytest.mark.contended
@pytest.mark.blocks
def test_what_a_loop_does_for_a_coroutine_is_blamed_on_its_line():
    """Such work is done in a file that runs the loop, too."""

    def slow_protocol():
        direct()
        return asyncio.DatagramProtocol()

    async def connect():
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(slow_protocol, ("127.0.0.1", 0))
        transport.close()
        await asyncio.sleep(0)

    sample = at(lambda: asyncio.run(connect()))
    names = [line.function.rpartition(":")[2].rpartition(".")[2] for line in sample.stack]
    assert names == ["connect", "create_datagram_endpoint", "slow_protocol", "direct"]


def test_a_thread_that_has_ended_shows_nothing():
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()
    assert Sampler().sample(thread.ident) is None


def test_code_of_the_user_and_of_libraries_are_told_apart():
    assert is_app(direct.__code__)
    assert not is_app(json.dumps.__code__)
    assert not is_app(pathlib.Path.exists.__code__)
    assert not is_app(pytest.importorskip.__code__)
    assert not is_app(Sampler.sample.__code__)
    assert not is_app(compile("1", "<string>", "eval"))


@pytest.mark.contended
def test_a_statement_of_a_local_connection_is_known_by_its_type():
    def query():
        with contextlib.closing(sqlite3.connect(":memory:", check_same_thread=False)) as connection:
            connection.create_function("wait", 0, lambda: time.sleep(SECONDS))
            connection.execute("select wait()").fetchone()

    sample = at(query)
    assert sample.culprit.function.endswith("<lambda>")  # it is the app's own code that sleeps
    assert any(line.function.endswith("query") for line in sample.stack)


async def slow():
    time.sleep(SECONDS)


async def awaits_a_call():
    await slow()


def method_of_a_result():
    with contextlib.suppress(queue.Empty):
        (Holder() or None).waiting.get(timeout=SECONDS)


class Enters:
    def __enter__(self):
        time.sleep(SECONDS)

    def __exit__(self, *_):
        pass


def calls_in_a_with():
    with Enters():
        pass


def places_of(function):
    """Return the frames of a function that stands still, by name: outer ones that call are among them."""
    thread = threading.Thread(target=function)
    thread.start()
    time.sleep(SECONDS / 2)
    frame, found = sys._current_frames()[thread.ident], {}
    while frame is not None:
        found[frame.f_code.co_name] = call_in(frame, frame.f_lasti)
        frame = frame.f_back
    thread.join()
    return found


def test_outer_lines_call_what_they_call():
    def runs():
        with contextlib.suppress(StopIteration):
            awaits_a_call().send(None)

    here = __name__
    assert places_of(runs)["awaits_a_call"] == f"{here}.slow"
    assert places_of(method_of_a_result)["method_of_a_result"] == "get"
    assert places_of(calls_in_a_with)["calls_in_a_with"] == f"{here}.Enters"


def test_no_source_is_parsed():
    """In CPython 3.11 up to 3.11.7 that raises an error in a thread of the app's that parses at the same time."""
    parsed = []
    sys.addaudithook(lambda event, _: parsed.append(event) if event == "compile" else None)
    assert at(over_several_lines).call == "time.sleep"
    assert parsed == []
