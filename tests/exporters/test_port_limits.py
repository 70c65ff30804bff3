"""What a metrics port takes of its process: few descriptors and threads, little CPU time, no delay at the end."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

import pytest

from loopwatch.exporters.port import server
from tests.exporters.test_port import GET, received, status
from tests.serving import ROOT, free_port
from tests.waiting import PATIENCE_SECONDS, blocking_until


@contextlib.contextmanager
def process_with(**options):
    """Run ``tests.apps.scraped`` with ``options``."""
    arguments = [sys.executable, "-m", "tests.apps.scraped", json.dumps({"port": (port := free_port()), **options})]
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(arguments, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=log, text=True) as process,
    ):
        try:
            yield Process(port, process, log)
        finally:
            process.kill()


class Process:
    """A process that does what it is asked for."""

    def __init__(self, port, process, log):
        self.port, self.process, self.log = port, process, log

    def do(self, command):
        print(command, file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def connect(self):
        def connected():
            with contextlib.suppress(ConnectionRefusedError):
                return socket.create_connection(("127.0.0.1", self.port), PATIENCE_SECONDS)

        return blocking_until(connected, "the port")

    def scrape(self):
        with self.connect() as client:
            client.sendall(GET)
            return received(client)


CROWD = 300
FOR_A_MOMENT = 6
"""How many files the process may have open beside: those in /proc that a watcher reads, for example."""


@pytest.mark.slow
def test_many_trickling_clients_take_few_descriptors_and_no_threads_and_a_scraper_is_answered():
    with process_with(head_seconds=0.2, descriptors=256) as process, contextlib.ExitStack() as stack:
        process.scrape()
        before = process.do("report")
        ended, all_there = threading.Event(), threading.Event()

        def trickle():
            clients = []
            while not ended.wait(0.01):
                for _ in range(min(50, CROWD - len(clients))):
                    client = stack.enter_context(socket.socket())
                    client.setblocking(False)
                    client.connect_ex(("127.0.0.1", process.port))
                    clients.append(client)
                for client in clients:
                    with contextlib.suppress(OSError):
                        client.send(b"x")
                if len(clients) == CROWD:
                    all_there.set()

        thread = threading.Thread(target=trickle)
        thread.start()
        try:
            assert all_there.wait(PATIENCE_SECONDS)
            for _ in range(3):
                # One whose first packet is lost in the crowd may be too late, as the others are.
                blocking_until(lambda: process.scrape().startswith(b"HTTP/1.1 200"), "a page")
        finally:
            ended.set()
            thread.join()
        after = process.do("report")
    assert server.MOST_CONNECTIONS <= 14  # with the waker's two, 16
    assert after["threads"] <= before["threads"] + 3  # the one that renders, that of listeners, that of the input
    assert after["descriptors"] <= before["descriptors"] + server.MOST_CONNECTIONS + FOR_A_MOMENT


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before its start", "meanwhile"])
def test_a_port_without_a_descriptor_waits_without_spinning_and_serves_when_there_are_some(when):
    with process_with(descriptors=64, hold=when == "before its start") as process:
        if when == "meanwhile":
            assert status(process.scrape()) == 200
        before = process.do("hold")
        if when == "meanwhile":
            client = process.connect()
            client.sendall(GET)
        time.sleep(2)
        after = process.do("report")
        assert after["cpu"] - before["cpu"] < 0.25 * (after["wall"] - before["wall"])
        process.do("free")
        if when == "meanwhile":
            assert status(received(client)) == 200
            client.close()
        assert status(process.scrape()) == 200
        assert process.do("report")["failures"] == {}
        process.log.seek(0)
        said = [line for line in process.log if "Too many open files" in line]
    assert len(said) == 1


def test_a_collector_that_hangs_keeps_few_connections_and_does_not_delay_the_end_of_the_process():
    with process_with(hang=True, answer_seconds=10_000) as process, contextlib.ExitStack() as stack:
        before = process.do("report")
        for _ in range(server.MOST_CONNECTIONS + server.BACKLOG):
            stack.enter_context(process.connect()).sendall(GET)
        blocking_until(
            lambda: process.do("report")["descriptors"] >= before["descriptors"] + server.MOST_CONNECTIONS, "all"
        )
        after = process.do("report")
        of_the_port = 3  # if it was not there before: what listens, and what wakes its thread
        most = before["descriptors"] + of_the_port + server.MOST_CONNECTIONS + FOR_A_MOMENT
        assert after["descriptors"] <= most
        assert after["threads"] <= before["threads"] + 3
        process.process.send_signal(signal.SIGINT)
        process.process.stdin.close()
        process.process.wait(PATIENCE_SECONDS)


def test_a_forked_child_keeps_neither_the_port_nor_its_clients():
    script = """
import os, socket, sys, time
from concurrent.futures import Future
from loopwatch.exporters.port import MetricsPort
port = MetricsPort("127.0.0.1", int(sys.argv[1]), "/metrics", lambda *_: Future(), print)
os.register_at_fork(after_in_child=port.begin_anew)
port.start()
while port._server._listener is None: time.sleep(0.01)
client = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
client.sendall(b"GET /metrics HTTP/1.1\\r\\n\\r\\n")
while not (port._server._connections and port._server._connections[0].head_is_complete): time.sleep(0.01)
if not os.fork():
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            found.append((int(number), os.readlink(f"/proc/self/fd/{number}")))
        except OSError:
            pass
    print(sum(path.startswith("socket:") and number != client.fileno() for number, path in found), flush=True)
    os._exit(0)
os.wait()
"""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script, str(free_port())]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=60, check=True)
    assert done.stdout == "0\n"
