"""A process that forks: before its loop, after it, and in the middle of it. Prints what each process measured."""

import asyncio
import json
import os
import sys
import threading
import time

import httpx
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

import loopwatch

app = FastAPI()
watch = loopwatch.install(app, loopwatch.Config(metrics_port=int(sys.argv[2])))


@app.get("/work")
def work():
    return {}


def on_the_page():
    page = watch.prometheus.render("", "", "").body.decode()
    return sum(
        sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == "loopwatch_request_duration_seconds_count" and sample.labels["http_route"] == "/work"
    )


def report(who):
    snapshot = watch.snapshot()
    route = snapshot.route("/work")
    seen = {
        "who": who,
        "at": time.monotonic(),
        "requests": route.requests if route else 0,
        "work": snapshot.pool("anyio").run_times.count if snapshot.pool("anyio") else 0,
        "active": snapshot.active,
        "busy": snapshot.loop.busy if snapshot.loop else 0.0,
        "page": on_the_page(),
        "dropped": dict(snapshot.dropped),
        "threads": sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("loopwatch")),
    }
    print(json.dumps(seen), flush=True)


async def serve(requests, meanwhile=None):
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        for _ in range(requests):
            assert (await client.get("/work")).status_code == 200
        if meanwhile:
            meanwhile()
        assert (await client.get("/metrics")).status_code == 200


def fork(in_child):
    process = os.fork()
    if not process:
        try:
            in_child()
        finally:
            os._exit(0)
    assert os.waitpid(process, 0)[1] == 0


def child(requests):
    report("child at its begin")
    asyncio.set_event_loop(None)
    asyncio.events._set_running_loop(None)  # it was forked in the middle of the parent's
    asyncio.run(serve(requests))
    report("child at its end")


when = sys.argv[1]
if when == "before":
    fork(lambda: child(3))
asyncio.run(serve(5, (lambda: fork(lambda: child(3))) if when == "during" else None))
if when == "after":
    fork(lambda: child(3))
report("parent")
