"""Serves some requests and a page where ``threading`` makes greenlets.

``python greenlets.py gevent|gevent-but-threads|eventlet before|after LOOP PORT``: patched before loopwatch is
imported, or after. The last line that it prints is what it saw, as JSON.
"""

from __future__ import annotations

import sys

PATCHER, WHEN, LOOP, PORT = sys.argv[1:5]


def patch():
    if PATCHER == "eventlet":
        import warnings

        warnings.simplefilter("ignore")  # it says that it is deprecated
        import eventlet

        eventlet.monkey_patch()
    else:
        from gevent import monkey

        monkey.patch_all(thread=PATCHER == "gevent")


if WHEN == "before":
    patch()

import asyncio
import faulthandler
import json
import time

import loopwatch
from loopwatch import system
from tests.waiting import until

if WHEN == "after":
    patch()

faulthandler.dump_traceback_later(60, exit=True)


def compute(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


async def app(scope, receive, send):
    if scope["path"] == "/computes":
        compute(0.3)
    if scope["path"] == "/works" and LOOP == "asyncio":  # uvloop polls without a turn for greenlets
        await asyncio.gather(*(asyncio.to_thread(time.sleep, 0.05) for _ in range(3)))
    await asyncio.sleep(0.01)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


async def main():
    watched = loopwatch.LoopWatchMiddleware(app, loopwatch.Config(metrics_port=int(PORT)))
    watch, heard = watched.watch, []

    @watch.on_stall
    def hear(stall):
        time.sleep(0.001)  # of greenlets, maybe: it is the app's
        heard.append(stall.function.rpartition(":")[2])

    async def get(path):
        parts = []

        async def send(message):
            parts.append(message.get("body", b""))

        scope = {"type": "http", "method": "GET", "path": path, "headers": [], "query_string": b""}
        await watched(scope, None, send)
        return b"".join(parts).decode()

    bodies = [await get(path) for path in ("/", "/computes", "/works")]
    pages = await asyncio.gather(get("/metrics"), get("/metrics"))
    seen = {}
    if not system.threads_are_greenlets():
        await until(lambda: "compute" in heard, "the stall to be heard")
        clock = watch._stalls._witness.cpu_clock
        seen["clock"] = time.thread_time_ns() <= time.clock_gettime_ns(clock) <= time.thread_time_ns()
    watch.stop()
    snapshot = watch.snapshot()
    return seen | {
        "bodies": bodies,
        "pages": ["loopwatch_request_duration_seconds_count" in page for page in pages],
        "failures": watch.failures.read(),
        "pools": len(snapshot.pools),
        "waited": sum(route.seconds("await") for route in snapshot.routes) > 0.05,
        "in threads": sum(route.seconds("thread_cpu", "thread_wait", "thread_queue") for route in snapshot.routes),
    }


if __name__ == "__main__":
    if LOOP == "uvloop":
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            result = runner.run(main())
    else:
        result = asyncio.run(main())
    print(json.dumps(result))
