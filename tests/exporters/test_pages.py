"""Pages are rendered by one thread, which outlives what goes wrong and never keeps anybody waiting for ever."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client import CollectorRegistry

from loopwatch.exporters.prometheus import PrometheusExporter, exporter, pages
from loopwatch.exporters.prometheus.pages import Page, Pages, Wish
from tests.waiting import PATIENCE_SECONDS, blocking_until


def wish(name=""):
    return Wish(name, is_zipped=False, names=())


class Renderer:
    """Renders what is wished for, once it may go on."""

    def __init__(self):
        self.rendered, self.threads, self.may_go_on = [], set(), threading.Event()

    def __call__(self, wish):
        self.threads.add(threading.current_thread())
        self.rendered.append(wish.accept)
        assert self.may_go_on.wait(PATIENCE_SECONDS)
        return Page([], wish.accept.encode())


@pytest.fixture
def renderer():
    one = Renderer()
    yield one
    one.may_go_on.set()


def test_those_who_want_the_same_get_the_same_page_and_the_others_theirs(renderer):
    to_do = Pages(renderer)
    first = to_do.request(wish("a"))
    blocking_until(lambda: renderer.rendered, "the first rendering")
    later = [to_do.request(wish(name)) for name in "abab"]
    gone = to_do.request(wish("c"))
    gone.cancel()
    renderer.may_go_on.set()
    bodies = [page.result(PATIENCE_SECONDS).body for page in (first, *later)]
    assert bodies == [b"a", b"a", b"b", b"a", b"b"]
    assert renderer.rendered == ["a", "a", "b"]


@pytest.mark.parametrize("raised", [SystemExit, StopIteration, KeyboardInterrupt, GeneratorExit])
def test_the_thread_goes_on_whatever_a_collector_raises(raised):
    def render(wish):
        if wish.accept:
            raise raised
        return Page([], b"page")

    to_do = Pages(render)
    to_do.keep_thread()
    with pytest.raises(RuntimeError, match=raised.__name__):
        to_do.request(wish("bad")).result(PATIENCE_SECONDS)
    assert to_do.request(wish()).result(PATIENCE_SECONDS).body == b"page"
    to_do.release_thread()


def test_a_thread_that_cannot_be_started_fails_one_request_and_not_the_next(renderer, monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    renderer.may_go_on.set()
    to_do = Pages(renderer)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError):
            to_do.request(wish("a"))
    assert to_do.request(wish("b")).result(PATIENCE_SECONDS).body == b"b"
    assert renderer.rendered == ["b"]


def test_requests_do_not_pile_up_while_a_collector_hangs(renderer, monkeypatch):
    monkeypatch.setattr(pages, "_MOST_WAITING", 10)
    to_do = Pages(renderer)
    first = to_do.request(wish("first"))
    blocking_until(lambda: renderer.rendered, "the first rendering")
    for number in range(9):  # and the one that is rendered
        to_do.request(wish(str(number))).cancel()
    with pytest.raises(OverflowError):
        to_do.request(wish())
    renderer.may_go_on.set()
    first.result(PATIENCE_SECONDS)
    blocking_until(to_do._requests.empty, "the queue to be empty")
    assert to_do.request(wish("last")).result(PATIENCE_SECONDS).body == b"last"


def test_a_thread_that_is_kept_and_released_many_times_leaves_nothing_to_do(renderer, monkeypatch):
    monkeypatch.setattr(pages, "_MOST_WAITING", 10)
    renderer.may_go_on.set()
    to_do = Pages(renderer)
    for _ in range(20):
        to_do.keep_thread()
        to_do.release_thread()
    assert to_do.request(wish("a")).result(PATIENCE_SECONDS).body == b"a"


def test_a_request_that_comes_while_the_thread_ends_is_answered(renderer):
    late = []

    class Ending(Pages):
        def _serve_all(self):
            super()._serve_all()
            if not late:
                late.append(self.request(wish("late")))

    renderer.may_go_on.set()
    assert Ending(renderer).request(wish("first")).result(PATIENCE_SECONDS).body == b"first"
    blocking_until(lambda: late, "the second request")
    assert late[0].result(PATIENCE_SECONDS).body == b"late"
    assert len(renderer.threads) == 1


@pytest.fixture
def hasty_threads():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("hasty_threads")
def test_each_request_of_any_thread_is_answered_while_the_rendering_thread_comes_and_goes():
    running, most = 0, 0

    def render(wish):
        nonlocal running, most
        running += 1
        most = max(most, running)
        running -= 1
        return Page([], wish.accept.encode())

    def ask(number):
        for time in range(100):
            name = str((number * time) % 7)
            assert to_do.request(wish(name)).result(PATIENCE_SECONDS).body == name.encode()
            (to_do.keep_thread if time % 2 else to_do.release_thread)()

    to_do = Pages(render)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(ask, range(1, 5)))
    to_do.release_thread()
    assert most == 1


def test_a_thread_of_the_app_does_not_wait_for_ever_for_a_page(monkeypatch):
    class Hanging:
        def collect(self):
            assert may_go_on.wait(PATIENCE_SECONDS)
            return ()

    may_go_on, registry = threading.Event(), CollectorRegistry()
    registry.register(Hanging())
    monkeypatch.setattr(exporter, "_RENDER_SECONDS", 0.05)
    one = PrometheusExporter(lambda: None, print, registry)
    with pytest.raises(TimeoutError):
        one.render("", "", "")
    may_go_on.set()
