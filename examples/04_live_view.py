"""See loopwatch at work: serves 02_mistakes.py on uvicorn, puts a small load on it, shows what /metrics says.

Where a `prometheus` binary is on the PATH it scrapes the app too.
Run: python examples/04_live_view.py --seconds 20
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import httpx
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from loopwatch import HistogramReading

HERE = pathlib.Path(__file__).parent
REFRESH_SECONDS = 1.0
CANCEL_SECONDS = 0.5  # a cancellation may get lost while a connection is made: then it is repeated
LOG_LINES = 3
BURST = 60  # more than the 40 worker threads
LOAD = (  # path, requests at once, seconds between
    ("/awaits", 3, 0.25),
    ("/sleeps", 1, 2.0),
    ("/burns", 1, 3.0),
    ("/queues", BURST, 4.0),
)
QUERIES = (
    "histogram_quantile(0.99, rate(loopwatch_loop_lag_seconds_bucket[30s]))",
    'rate(loopwatch_loop_time_seconds_total{state="busy"}[30s])',
    'sum by (http_route, state) (rate(loopwatch_request_time_seconds_total{phase="request"}[30s]))',
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def ctrl_c_later():
    """Let Ctrl-C wait: a process that is just being made could not be stopped."""
    pressed = []
    before = signal.signal(signal.SIGINT, lambda *_: pressed.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt


@contextlib.contextmanager
def running(command, log=None):
    """Run a server, which writes to ``log``; stop it at the end, politely first."""
    process = None
    try:
        with ctrl_c_later():
            process = subprocess.Popen(command, start_new_session=True, stderr=log)  # Ctrl-C is for us to handle
        yield process
    finally:
        if process is not None:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def prometheus(target, console):
    """Run Prometheus with the configuration beside this file, if there is one on the PATH."""
    binary = shutil.which("prometheus")
    if binary is None:
        console.print("No `prometheus` on the PATH: showing /metrics only.")
        yield
        return
    address = f"127.0.0.1:{free_port()}"
    with tempfile.TemporaryDirectory() as folder:
        config = pathlib.Path(folder) / "prometheus.yml"
        config.write_text((HERE / "prometheus.yml").read_text().replace("127.0.0.1:8000", target))
        command = [binary, f"--config.file={config}", f"--storage.tsdb.path={folder}/data"]
        with running([*command, f"--web.listen-address={address}", "--log.level=error"]):
            console.print(f"Prometheus at http://{address}/graph scrapes the app. Ask it for example:")
            for query in QUERIES:
                console.print(f"  {query}", markup=False, highlight=False, soft_wrap=True)
            yield


class Page:
    """One scrape of /metrics; what is needed of it, by name and labels."""

    def __init__(self, text=""):
        self.at = time.monotonic()
        self.samples = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                self.samples[sample.name, frozenset(sample.labels.items())] = sample.value

    def value(self, name, **labels):
        return self.samples.get((name, frozenset(labels.items())), 0.0)

    def total(self, name, **wanted):
        """Sum over all series of a metric that have the wanted labels."""
        return sum(
            value
            for (found, labels), value in self.samples.items()
            if found == name and set(wanted.items()) <= labels
        )

    def lag(self):
        buckets = sorted(
            (float(dict(labels)["le"]), value)
            for (name, labels), value in self.samples.items()
            if name == "loopwatch_loop_lag_seconds_bucket"
        )
        counts, below = [], 0.0
        for _, cumulative in buckets:
            counts.append(int(cumulative - below))
            below = cumulative
        return HistogramReading(tuple(bound for bound, _ in buckets[:-1]), tuple(counts), 0.0) if counts else None

    def routes(self):
        name = "loopwatch_request_duration_seconds_count"
        return sorted({dict(labels)["http_route"] for found, labels in self.samples if found == name})


def milliseconds(seconds):
    return f"{seconds * 1000:,.0f} ms" if seconds >= 0.0005 else "·"


def loop_line(old, new):
    table = Table("lag p50", "p99", "worst in 60 s", "busy", "tasks", "threads", "queued", title="The event loop")
    lag, before = new.lag(), old.lag()
    if lag is None:
        return table
    lag = lag - before if before else lag
    busy, idle = (
        new.value("loopwatch_loop_time_seconds_total", state=state)
        - old.value("loopwatch_loop_time_seconds_total", state=state)
        for state in ("busy", "idle")
    )
    table.add_row(
        milliseconds(lag.quantile(0.5)),
        milliseconds(lag.quantile(0.99)),
        milliseconds(new.value("loopwatch_loop_lag_max_seconds")),
        f"{busy / (busy + idle or 1):.0%}",
        f"{new.value('loopwatch_loop_tasks'):.0f}",
        f"{new.total('loopwatch_threadpool_in_use'):.0f} of {new.total('loopwatch_threadpool_limit'):.0f}",
        f"{new.total('loopwatch_threadpool_queued'):.0f}",
    )
    return table


def routes_table(page):
    table = Table(
        "route", "requests", "duration", "= CPU", "+ wait", "of which blocked the loop", title="Mean request"
    )
    for route in page.routes():
        count = page.total("loopwatch_request_duration_seconds_count", http_route=route) or 1
        duration = page.total("loopwatch_request_duration_seconds_sum", http_route=route) / count

        def mean(*states, route=route, count=count):
            name = "loopwatch_request_time_seconds_total"
            return sum(page.total(name, http_route=route, state=s, phase="request") for s in states) / count

        cpu, blocked = mean("loop_cpu", "thread_cpu"), mean("loop_blocked")
        table.add_row(
            route,
            f"{count:.0f}",
            milliseconds(duration),
            milliseconds(cpu),
            milliseconds(duration - cpu),
            f"[bold red]{milliseconds(blocked)}" if blocked > 0.01 else milliseconds(blocked),
        )
    return table


def stalls_named(log):
    """Show what loopwatch wrote into the app's log."""
    lines = [line for line in log.read_text().splitlines() if line.startswith("loopwatch: ")]
    text = "\n".join(line.removeprefix("loopwatch: ") for line in lines[-LOG_LINES:])
    return Panel(Text(text or "no stall yet"), title="The log")


async def keep_requesting(client, path, at_once, pause):
    async def once():
        with contextlib.suppress(httpx.HTTPError):
            await client.get(path)

    while True:
        await asyncio.gather(*(once() for _ in range(at_once)), asyncio.sleep(pause))


async def scrape(client):
    try:
        return Page((await client.get("/metrics")).text)
    except httpx.TransportError:
        return None


async def until_ctrl_c(work):
    """Await it, or Ctrl-C, and then end all tasks that it has left behind."""
    pressed = asyncio.Event()
    with contextlib.suppress(NotImplementedError):  # on Windows Ctrl-C cancels this task
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, pressed.set)
    task = asyncio.create_task(work)
    await asyncio.wait({task, asyncio.create_task(pressed.wait())}, return_when=asyncio.FIRST_COMPLETED)
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        for other in others:
            other.cancel()
        ended, _ = await asyncio.wait(others, timeout=CANCEL_SECONDS)
        for other in ended:
            other.cancelled() or other.exception()  # that its client was closed, say
    if not task.cancelled():
        task.result()


async def watch_app(process, log, url, seconds, console):
    """Put the load on the app and show its metrics until the time is over."""
    limits = httpx.Limits(max_connections=2 * BURST)
    async with httpx.AsyncClient(base_url=url, timeout=30, limits=limits) as client:
        while (page := await scrape(client)) is None:
            if process.poll() is not None:
                sys.exit(f"{log.read_text()}The app did not start (exit code {process.returncode}).")
            await asyncio.sleep(0.1)
        load = [asyncio.create_task(keep_requesting(client, *item)) for item in LOAD]
        ends = time.monotonic() + seconds
        with Live(console=console, auto_refresh=False) as live:
            while time.monotonic() < ends:
                await asyncio.sleep(min(REFRESH_SECONDS, max(0.0, ends - time.monotonic())))
                newer = await scrape(client) or page
                live.update(Group(loop_line(page, newer), routes_table(newer), stalls_named(log)), refresh=True)
                page = newer
        for task in load:
            task.cancel()


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to run; Ctrl-C ends it too (60)")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio", help="the app's event loop")
    parser.add_argument("--port", type=int, default=0, help="the app's port on 127.0.0.1; 0 picks a free one (0)")
    options = parser.parse_args()
    if options.seconds <= 0:
        parser.error(f"--seconds must be above 0, got {options.seconds:g}")
    return options


def main():
    options = arguments()
    console = Console()
    target = f"127.0.0.1:{options.port or free_port()}"
    app = [sys.executable, "-m", "uvicorn", "--app-dir", str(HERE), "02_mistakes:app", "--log-level", "warning"]
    where = ["--host", "127.0.0.1", "--port", target.rpartition(":")[2], "--loop", options.loop]
    with (
        contextlib.suppress(KeyboardInterrupt),
        tempfile.NamedTemporaryFile() as log,
        running([*app, *where], log) as process,
        prometheus(target, console),
    ):
        console.print(f"The app: http://{target}/docs, its metrics: http://{target}/metrics")
        watching = watch_app(process, pathlib.Path(log.name), f"http://{target}", options.seconds, console)
        asyncio.run(until_ctrl_c(watching))
    console.print("\nStopped.")


if __name__ == "__main__":
    main()
