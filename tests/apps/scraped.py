"""A process that has a metrics port and little else, and does what it reads from its input, line by line.

It prints a line of JSON for each: ``report`` how much it holds, ``hold`` all descriptors, ``free`` them again.
Its argument is JSON: constants to set, ``hang`` for a collector that does, ``descriptors`` for their limit.
"""

import asyncio
import errno
import json
import os
import pathlib
import resource
import sys
import threading
import time

import prometheus_client

from loopwatch import Config, LoopWatch
from loopwatch.exporters.port import connection, server

options = json.loads(sys.argv[1])
connection.HEAD_SECONDS = options.get("head_seconds", connection.HEAD_SECONDS)
connection.ANSWER_SECONDS = options.get("answer_seconds", connection.ANSWER_SECONDS)
server.AGAIN_SECONDS = options.get("again_seconds", server.AGAIN_SECONDS)
resource.setrlimit(resource.RLIMIT_NOFILE, (options.get("descriptors", 1024),) * 2)
held = []


class Hanging:
    def describe(self):
        return []

    def collect(self):
        threading.Event().wait()


def hold():
    try:
        while True:
            held.append(os.dup(0))
    except OSError as error:
        assert error.errno == errno.EMFILE


def free():
    while held:
        os.close(held.pop())


def descriptors():
    """Return how many there are; that of the folder itself is counted too."""
    return sum(1 for _ in pathlib.Path("/proc/self/fd").iterdir())


async def main():
    if options.get("hang"):
        prometheus_client.REGISTRY.register(Hanging())
    if options.get("hold"):
        async with LoopWatch():
            pass  # all is imported that needs descriptors
        hold()
    most = {"threads": 0, "descriptors": 0}
    async with LoopWatch(Config(metrics_port=options["port"])) as watch:

        async def watch_over():
            while True:
                if not held:
                    found = {"threads": threading.active_count(), "descriptors": descriptors()}
                    most.update({key: max(most[key], found[key]) for key in most})
                await asyncio.sleep(0.01)

        watching = asyncio.create_task(watch_over())
        while command := (await asyncio.to_thread(sys.stdin.readline)).strip():
            if command == "hold":
                while watch._port._server._connections:  # or else one that ends frees a descriptor afterwards
                    await asyncio.sleep(0.01)
                hold()
            elif command == "free":
                free()
            clocks = {"cpu": time.process_time(), "wall": time.monotonic()}
            print(json.dumps({**most, **clocks, "failures": watch.failures.read()}), flush=True)
        watching.cancel()


asyncio.run(main())
