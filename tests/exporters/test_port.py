"""A port of its own: on which addresses, how it treats its clients, and what happens where it cannot serve."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
import threading
import time
from concurrent.futures import Future
from http import HTTPStatus

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwatch import Config, LoopWatch
from loopwatch.exporters.port import MetricsPort, connection, http, server
from tests.serving import free_port
from tests.waiting import PATIENCE_SECONDS, blocking_until, until


def has_ipv6():
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


async def fetch(url):
    async with httpx.AsyncClient() as client:
        end = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < end:
            with contextlib.suppress(httpx.TransportError):
                return await client.get(url)
            await asyncio.sleep(0.05)
    raise AssertionError(f"nobody answers at {url}")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_it_is_served_on_a_host_of_any_kind(host):
    if host == "::1" and not has_ipv6():
        pytest.skip("this machine has no IPv6")
    port = free_port()

    async def main():
        async with LoopWatch(Config(metrics_host=host, metrics_port=port)):
            return await fetch(f"http://{f'[{host}]' if ':' in host else host}:{port}/metrics")

    page = asyncio.run(main())
    assert page.status_code == 200
    assert "loopwatch_loop_lag_seconds_bucket" in page.text


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
def test_an_address_that_will_never_be_ours_is_a_failure_and_the_loop_is_measured_on(host, caplog):
    async def main():
        async with LoopWatch(Config(metrics_host=host, metrics_port=free_port())) as watch:
            await until(lambda: "metrics are not served there" in caplog.text, "the failure")
            return watch.failures.read(), watch.snapshot().loop

    failures, loop = asyncio.run(main())
    assert failures == {"metrics port": 1}
    assert loop.busy > 0


# --- clients that are slow, many, broken or gone


PAGE = ([(b"content-type", b"text/plain"), (b"content-length", b"5")], b"page\n")
GET = b"GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n"


class Served:
    """A port that serves pages which a test provides, on an address of its own."""

    def __init__(self, request_page=None):
        self.pages, self.failures = [], []
        self.address = ("127.0.0.1", free_port())
        self.port = MetricsPort(*self.address, "/metrics", request_page or self._request_page, self.failures.append)

    def _request_page(self, *asked):
        page = Future()
        self.pages.append((asked, page))
        return page

    def connect(self):
        """Return a client that is connected, as soon as the port is there."""

        def connected():
            with contextlib.suppress(ConnectionRefusedError):
                return socket.create_connection(self.address, PATIENCE_SECONDS)

        return blocking_until(connected, "the port")

    def connections(self):
        return self.port._server._connections

    def answer(self, *sent):
        """Return all that a client receives which sends ``sent``."""
        with self.connect() as client:
            for piece in sent:
                client.sendall(piece)
            return received(client)


def received(client):
    pieces = []
    with contextlib.suppress(ConnectionError):
        while piece := client.recv(65536):
            pieces.append(piece)
    return b"".join(pieces)


def status(answer):
    return int(answer.split()[1])


def rendered(*_):
    page = Future()
    page.set_result(PAGE)
    return page


@contextlib.contextmanager
def served(request_page=None):
    one = Served(request_page)
    one.port.start()
    try:
        yield one
    finally:
        one.port.stop()


def reset(client):
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


@pytest.mark.parametrize(
    ("request_line", "expected"),
    [
        ("GET /metrics HTTP/1.0", 200),
        ("GET /metrics?name[]=one HTTP/1.1", 200),
        ("HEAD /metrics HTTP/1.1", 200),
        ("GET /met%72ics HTTP/1.1", 200),
        ("GET /other HTTP/1.1", 404),
        ("HEAD /other HTTP/1.1", 404),
        ("POST /metrics HTTP/1.1", 405),
        ("GET /metrics HTTP/2.0", 400),
        ("GET /metrics", 400),
        ("nothing", 400),
        ("\x16\x03\x01\x02\x00", 400),
    ],
)
@pytest.mark.parametrize("end_of_line", ["\r\n", "\n"])
def test_each_request_gets_the_status_and_the_length_that_are_due(request_line, expected, end_of_line):
    with served(rendered) as one:
        answer = one.answer(f"{request_line}{end_of_line}accept: text/plain{end_of_line * 2}".encode("latin-1"))
    head, _, body = answer.partition(b"\r\n\r\n")
    headers = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
    assert (status(answer), headers[b"connection"]) == (expected, b"close")
    assert len(body) == (0 if request_line.startswith("HEAD") else int(headers[b"content-length"]))
    assert int(headers[b"content-length"]) > 0
    assert one.failures == []


def test_headers_and_query_reach_the_page_however_they_arrive():
    asked = []

    def request_page(*what):
        asked.append(what)
        return rendered()

    head = (
        b"\r\nGET /metrics?name[]=a HTTP/1.1\r\nAccept: text/plain\r\nACCEPT: application/\r\n openmetrics-text\r\n"
        b"Accept-Encoding: gzip\r\n\r\n"
    )
    with served(request_page) as one:
        assert status(one.answer(*(head[at : at + 1] for at in range(len(head))))) == 200
    assert asked == [("text/plain,application/ openmetrics-text", "gzip", "name[]=a")]


@pytest.mark.parametrize(
    "head", [b"GET /metrics HTTP/1.1\r\nx: " + b"x" * 20_000, GET[:-2] + b"x: y\r\n" * 200 + b"\r\n"]
)
def test_a_head_that_is_too_large_is_refused(head):
    with served(rendered) as one:
        assert status(one.answer(head)) == 431
        assert status(one.answer(GET)) == 200


@given(
    st.lists(st.sampled_from([b"GET", b"/metrics", b" ", b"HTTP/1.1", b"\r\n", b"\n", b"a: b", b":"]) | st.binary())
)
def test_no_bytes_make_the_reading_of_a_request_fail(pieces):
    result = http.parse(b"".join(pieces))
    assert result is None or isinstance(result, http.Request | HTTPStatus)


def test_a_client_may_send_its_body_while_the_answer_is_on_its_way(monkeypatch):
    monkeypatch.setattr(connection, "LINGER_SECONDS", 1000)
    monkeypatch.setattr(connection, "ANSWER_SECONDS", 1000)
    with served(rendered) as one, one.connect() as client:
        client.sendall(b"POST /metrics HTTP/1.1\r\nContent-Length: 100000\r\n\r\n")
        answer = client.recv(1)
        for _ in range(20):
            client.sendall(b"x" * 5_000)  # raises if a piece before was answered with a reset
            time.sleep(0.005)
        assert status(answer + b"".join(iter(lambda: client.recv(65536), b""))) == 405


def test_a_client_that_sends_without_end_is_dropped(monkeypatch):
    monkeypatch.setattr(connection, "LINGER_SECONDS", 1000)
    monkeypatch.setattr(connection, "ANSWER_SECONDS", 1000)
    with served(rendered) as one, one.connect() as client:
        client.sendall(b"POST /metrics HTTP/1.1\r\n\r\n")
        with pytest.raises(ConnectionError):
            client.sendall(bytes(64 * 1024 * 1024))


def test_a_page_that_fails_is_a_500_and_reported():
    def refused(*_):
        raise OverflowError("too many")

    for request_page in (None, refused):
        with served(request_page) as one, one.connect() as client:
            client.sendall(GET)
            if request_page is None:
                blocking_until(lambda: one.pages, "the request")
                one.pages[0][1].set_exception(OSError("no disk"))
            assert status(received(client)) == 500
        assert len(one.failures) == 1


def test_a_trickling_client_is_dropped_when_its_head_is_due(monkeypatch):
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.2)
    with served(rendered) as one, one.connect() as client:
        dropped = threading.Event()

        def trickle():
            with contextlib.suppress(OSError):
                while not dropped.wait(0.02):
                    client.sendall(b"x")

        client.sendall(GET[:10])
        thread = threading.Thread(target=trickle)
        thread.start()
        try:
            blocking_until(one.connections, "the connection")
            blocking_until(lambda: not one.connections(), "its end")
        finally:
            dropped.set()
            thread.join()
        assert received(client) == b""
    assert one.failures == []


def test_a_request_whose_page_does_not_come_in_time_is_dropped_and_not_rendered(monkeypatch):
    monkeypatch.setattr(connection, "ANSWER_SECONDS", 0.2)
    with served() as one:
        assert one.answer(GET) == b""
        ((_, page),) = one.pages
        assert page.cancelled()


def test_a_client_that_does_not_read_its_page_is_dropped(monkeypatch):
    monkeypatch.setattr(connection, "ANSWER_SECONDS", 0.3)
    size = 64 * 1024 * 1024

    def large(*_):
        page = Future()
        page.set_result(([(b"content-length", b"%d" % size)], bytes(size)))
        return page

    with served(large) as one, one.connect() as client:
        client.sendall(GET)
        blocking_until(one.connections, "the connection")
        blocking_until(lambda: not one.connections(), "its end")
        assert len(received(client)) < size


def test_a_client_that_stays_after_its_answer_is_dropped(monkeypatch):
    monkeypatch.setattr(connection, "LINGER_SECONDS", 0.2)
    monkeypatch.setattr(connection, "ANSWER_SECONDS", 1000)
    with served(rendered) as one, one.connect() as client:
        client.sendall(GET)
        assert status(received(client)) == 200  # up to the end of what the port sends
        blocking_until(lambda: not one.connections(), "its end")


STAGES = ("at once", "in its head", "while its page is rendered", "in its answer", "after its answer")
LARGE_PAGE = ([(b"content-length", b"9000000")], bytes(9_000_000))


@pytest.mark.parametrize("stage", STAGES)
def test_clients_that_reset_at_any_stage_leave_nothing_behind(stage):
    with served() as one:
        for number in range(30):
            client = one.connect()
            if stage == "in its head":
                client.sendall(GET[:20])
            elif stage != "at once":
                client.sendall(GET)
                blocking_until(lambda: len(one.pages) > number, "the request")  # noqa: B023
            if stage == "in its answer":
                one.pages[number][1].set_result(LARGE_PAGE)
                client.recv(1)
            elif stage == "after its answer":
                one.pages[number][1].set_result(PAGE)
                received(client)
            reset(client)
            if stage == "while its page is rendered":
                one.pages[number][1].set_result(PAGE)
        blocking_until(lambda: not one.connections(), "all to be gone")
        with one.connect() as last:
            last.sendall(GET)
            blocking_until(lambda: one.pages and not one.pages[-1][1].done(), "the last request")
            one.pages[-1][1].set_result(PAGE)
            assert status(received(last)) == 200
    assert one.failures == []


def test_as_many_as_fit_are_connected_and_the_others_wait_for_their_turn():
    with served() as one, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(one.connect()) for _ in range(server.MOST_CONNECTIONS + server.BACKLOG)]
        for client in clients:
            client.sendall(GET)
        for number in range(len(clients)):
            blocking_until(lambda: len(one.pages) > number, "the next request")  # noqa: B023
            assert len(one.connections()) <= server.MOST_CONNECTIONS
            assert len(one.pages) <= server.MOST_CONNECTIONS + number
            one.pages[number][1].set_result(PAGE)
            assert status(received(clients[number])) == 200
            clients[number].close()


# --- its start and its stop


def test_a_stop_frees_the_port_at_once_and_a_request_in_progress_is_answered(monkeypatch):
    monkeypatch.setattr(server, "LAST_SECONDS", 1000)
    with served() as one, one.connect() as silent, one.connect() as client:
        client.sendall(GET)
        blocking_until(lambda: one.pages, "the request")
        blocking_until(lambda: len(one.connections()) == 2, "the other client")
        one.port.stop()
        assert received(silent) == b""
        one.port.start()
        blocking_until(lambda: one.port._server._listener, "the port to be served again")
        one.pages[0][1].set_result(PAGE)
        assert status(received(client)) == 200


def test_a_stop_does_not_wait_long_for_a_page(monkeypatch):
    monkeypatch.setattr(server, "LAST_SECONDS", 0.1)
    with served() as one, one.connect() as client:
        client.sendall(GET)
        blocking_until(lambda: one.pages, "the request")
        one.port.stop()
        assert received(client) == b""
        assert one.pages[0][1].cancelled()


def test_what_wakes_the_thread_stays_open_for_whoever_may_still_use_it():
    with served() as one:
        waker = blocking_until(lambda: one.port._server._listener and one.port._server._waker, "the port")
        one.port.stop()
        blocking_until(lambda: one.port._server._waker is None, "the end")
        assert waker.fileno() >= 0
        waker.wake()


def test_a_port_that_is_in_use_is_taken_over_when_it_is_free(monkeypatch, caplog):
    monkeypatch.setattr(server, "AGAIN_SECONDS", 0.05)
    one = Served(rendered)
    with socket.socket() as other:
        other.bind(one.address)
        other.listen()
        one.port.start()
        blocking_until(lambda: "it is in use" in caplog.text, "the line in the log")
    try:
        assert status(one.answer(GET)) == 200
    finally:
        one.port.stop()


def test_a_log_that_fails_does_not_end_the_port(caplog):
    caplog.set_level(logging.INFO, "loopwatch")

    class Broken(logging.Handler):
        def emit(self, record):
            raise RuntimeError("no log")

    logger, handler = logging.getLogger("loopwatch"), Broken()
    logger.addHandler(handler)
    try:
        with served(rendered) as one:
            assert status(one.answer(GET)) == 200
    finally:
        logger.removeHandler(handler)
