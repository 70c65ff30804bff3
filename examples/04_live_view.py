"""See loopwatch at work: serves 02_mistakes.py on uvicorn, puts a small load on it, shows what /metrics says.

Where a `prometheus` binary is on the PATH it scrapes the app too.
Run: python examples/04_live_view.py --seconds 20
"""

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # before the imports, which take a while: nothing is to be stopped

import argparse
import asyncio
import contextlib
import math
import pathlib
import shutil
import sys
import tempfile
import time
from typing import IO, cast

import httpx
from monitoring import servers
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from loopwatch import HistogramReading
from loopwatch.hot import describe_core

HERE = pathlib.Path(__file__).parent
REFRESH_SECONDS = 1.0
SCRAPE_SECONDS = 5.0
LATEST_SECONDS = 30.0  # after this long the time is counted even if a route has not been answered
NOTICEABLE = 0.01
PREFIX = "loopwatch: "
OTHERS = "(others)"
BURST = 60  # more than the 40 worker threads
LOAD = (  # path, requests at once, seconds between
    ("/awaits", 3, 0.25),
    ("/sleeps", 1, 2.0),
    ("/burns", 1, 3.0),
    ("/queues", BURST, 4.0),
)
PATHS = sorted(path for path, _, _ in LOAD)
QUERIES = (
    "histogram_quantile(0.99, rate(loopwatch_loop_lag_seconds_bucket[30s]))",
    'rate(loopwatch_loop_time_seconds_total{state="busy"}[30s])',
    'sum by (http_route, state) (rate(loopwatch_request_time_seconds_total{phase="request"}[30s]))',
)


@contextlib.contextmanager
def prometheus(target, folder, console):
    """Run Prometheus with the configuration beside this file, if there is one on the PATH."""
    binary = shutil.which("prometheus")
    if binary is None:
        console.print("No `prometheus` on the PATH: only /metrics is shown.")
        yield None
        return
    address = f"{servers.HOST}:{servers.usable_port(0, '')}"
    config = folder / "prometheus.yml"
    config.write_text((HERE / "prometheus.yml").read_text().replace("127.0.0.1:8000", target))
    command = [binary, f"--config.file={config}", f"--storage.tsdb.path={folder}/data"]
    with servers.running("prometheus", [*command, f"--web.listen-address={address}"], folder) as server:
        console.print(f"Prometheus at http://{address}/graph scrapes the app. Ask it for example:")
        for query in QUERIES:
            console.print(f"  {query}", markup=False, highlight=False, soft_wrap=True)
        yield server


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
        if not counts:
            return None
        bounds, worst = tuple(bound for bound, _ in buckets[:-1]), self.value("loopwatch_loop_lag_max_seconds")
        return HistogramReading(bounds, tuple(counts), 0.0, worst)  # what is shown is from the last second

    def answered(self):
        """Return the paths of the load that have been answered."""
        return [path for path in PATHS if self.requests(path)]

    def requests(self, path):
        return self.total("loopwatch_request_duration_seconds_count", http_route=path)

    def mean(self, path, *states):
        """Return the seconds that a mean request spent in these states; in all, if none is named."""
        count = self.requests(path) or 1
        if not states:
            return self.total("loopwatch_request_duration_seconds_sum", http_route=path) / count
        name = "loopwatch_request_time_seconds_total"
        return sum(self.total(name, http_route=path, state=state, phase="request") for state in states) / count


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
        "route", "count", "duration", "= CPU", "+ wait", "of which\nloop blocked", "of which\nthread queue",
        title="Mean request",
    )  # fmt: skip
    for path in page.answered():
        duration, cpu = page.mean(path), page.mean(path, "loop_cpu", "thread_cpu")
        parts = (page.mean(path, state) for state in ("loop_blocked", "thread_queue"))
        table.add_row(
            path,
            f"{page.requests(path):.0f}",
            *map(milliseconds, (duration, cpu, duration - cpu)),
            *(f"[bold red]{milliseconds(part)}" if part > NOTICEABLE else milliseconds(part) for part in parts),
        )
    return table


def newest_stalls(log):
    """Return the newest line of each route, and of all others, that loopwatch wrote into the app's log."""
    newest = {}
    for line in log.read_text(errors="replace").splitlines():
        if line.startswith(PREFIX):
            text = line.removeprefix(PREFIX)
            path = next((path for path in PATHS if text.startswith(f"GET {path} ")), OTHERS)
            newest[path] = text
    return newest


def findings(page, log, advice):
    """Show for each route what loopwatch says about it: a line of its log, its advice, or that all is well."""
    table = Table("route", "finding", title="What loopwatch says")
    stalls = newest_stalls(log)
    for path in page.answered():
        said = [stalls[path]] if path in stalls else []
        if (queued := page.mean(path, "thread_queue")) > NOTICEABLE:
            said += [f"waits {milliseconds(queued)} for a free thread", *advice]
        awaits = f"{milliseconds(page.mean(path, 'await'))} of {milliseconds(page.mean(path))} are spent in await"
        table.add_row(path, Text("\n".join(said) or f"healthy: {awaits}"))
    if OTHERS in stalls:
        table.add_row(OTHERS, Text(stalls[OTHERS]))
    return table


async def keep_requesting(client, path, at_once, pause):
    async def once():
        with contextlib.suppress(httpx.HTTPError):
            await client.get(path)

    while True:
        await asyncio.gather(*(once() for _ in range(at_once)), asyncio.sleep(pause))


async def scrape(client):
    """Return a page of metrics, or nothing if none comes."""
    try:
        answer = await client.get("/metrics", timeout=SCRAPE_SECONDS)
        return Page(answer.raise_for_status().text)
    except httpx.TransportError:
        return None
    except (ValueError, httpx.HTTPStatusError):
        raise servers.Failed(
            f"{client.base_url}/metrics answers {answer.status_code} with {answer.text[:60]!r}; expected metrics "
            "in Prometheus's text format. Another program may have this port: give --port another one."
        ) from None


async def ask_for_advice(client):
    try:
        return (await client.get("/advice", timeout=SCRAPE_SECONDS)).json()
    except (httpx.TransportError, ValueError):
        return []


async def first_page(client, app):
    while True:
        if app.has_ended():
            raise servers.Failed(app.why_it_ended())
        if (page := await scrape(client)) is not None:
            return page
        await asyncio.sleep(0.1)


async def show(client, app, others, seconds, console):
    """Show the app's metrics once a second, for so many seconds after each route has been answered."""
    page, started, ends = await first_page(client, app), time.monotonic(), math.inf
    load = [asyncio.create_task(keep_requesting(client, *item)) for item in LOAD]
    with Live(console=console, auto_refresh=False) as live:
        while (now := time.monotonic()) < ends:
            await asyncio.sleep(min(REFRESH_SECONDS, ends - now))
            console.file.check()
            for other in [other for other in others if other.has_ended()]:
                others.remove(other)
                console.print(other.why_it_ended(), markup=False, highlight=False)
            if app.has_ended():
                raise servers.Failed(app.why_it_ended())
            newer = await scrape(client) or page
            said = findings(newer, app.log, await ask_for_advice(client))
            live.update(Group(loop_line(page, newer), routes_table(newer), said), refresh=True)
            page = newer
            late = time.monotonic() - started > LATEST_SECONDS
            if ends == math.inf and (late or len(page.answered()) == len(PATHS)):
                ends = time.monotonic() + seconds
    for task in load:
        task.cancel()


async def watch_app(app, others, url, seconds, console):
    """Put the load on the app and show its metrics until the time is over."""
    limits = httpx.Limits(max_connections=2 * BURST)
    async with httpx.AsyncClient(base_url=url, timeout=30, limits=limits, trust_env=False) as client:
        await show(client, app, others, seconds, console)


def arguments(texts=None):
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="Exit code: 0 after its time or Ctrl-C, 128 and the number of any other signal, 1 if it fails.",
    )
    parser.add_argument(
        "--seconds", type=servers.seconds, default=60.0,
        help="how long to run once each route has been answered; inf: until Ctrl-C, which always ends it (60)",
    )  # fmt: skip
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio", help="the app's event loop")
    parser.add_argument(
        "--port", type=servers.port_number, default=0, help="the app's port on 127.0.0.1; 0 picks a free one (0)"
    )
    return parser.parse_args(texts)


def run(options, stopping, folder, console):
    """Run the servers and show what they do."""
    port = servers.usable_port(options.port, "--port")
    target = f"{servers.HOST}:{port}"
    console.print(f"loopwatch measures with the {describe_core()}.", markup=False, highlight=False, soft_wrap=True)
    console.print(f"The app: http://{target}/docs, its metrics: http://{target}/metrics", soft_wrap=True)
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(HERE), "02_mistakes:app", "--log-level", "warning"]
    where = ["--host", servers.HOST, "--port", str(port), "--loop", options.loop]
    with (
        servers.running("app", [*command, *where], folder) as app,
        prometheus(target, folder, console) as other,
    ):
        others = [other] if other else []
        stopping.run(watch_app(app, others, f"http://{target}", options.seconds, console))


def main():
    options = arguments()
    with servers.Stopping() as stopping:
        console = Console(file=cast("IO[str]", servers.Output(stopping)))
        try:
            with tempfile.TemporaryDirectory(prefix="loopwatch-demo-", ignore_cleanup_errors=True) as folder:
                run(options, stopping, pathlib.Path(folder), console)
        except servers.Failed as failure:
            sys.exit(str(failure))
        console.print("\nStopped.")
    sys.exit(stopping.exit_code)


if __name__ == "__main__":
    main()
