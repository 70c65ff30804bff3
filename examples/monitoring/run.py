"""Show loopwatch's alerts at work: the gallery of mistakes under load, Prometheus, Alertmanager and the alerts.

It needs prometheus and prometheus-alertmanager on the PATH; on Debian:
apt-get install -y --no-install-recommends prometheus prometheus-alertmanager
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import pathlib
import shutil
import sys
import tempfile
import threading
import time
from typing import TYPE_CHECKING

import httpx
from monitoring import servers
from monitoring.webhook import webhook

from dashboards.alerts import Thresholds, rules
from loopwatch.hot import describe_core

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = pathlib.Path(__file__).parent
REFRESH_SECONDS = 1.0
QUICK_FOR = "10s"
QUICK = Thresholds(
    window="20s",
    lag_warning_for=QUICK_FOR,
    lag_critical_for=QUICK_FOR,
    utilization_for=QUICK_FOR,
    route_blocks_for=QUICK_FOR,
    queue_for=QUICK_FOR,
    exhausted_for=QUICK_FOR,
    starved_for=QUICK_FOR,
)
SLOW_PART = "The alerts wait for 5 to 15 minutes before they fire, so that a moment's trouble wakes nobody"


def binary_of(*names: str) -> str:
    """Return where a program is, by any of its names."""
    for name in names:
        if found := shutil.which(name):
            return found
    raise servers.Failed(
        f"No {names[0]} on the PATH. On Debian: apt-get install -y --no-install-recommends {names[0]}"
    )


def replaced(file: pathlib.Path, changes: dict[str, str]) -> str:
    """Return a file's text with these changes, each of which has to apply."""
    text = file.read_text()
    for old, new in changes.items():
        if old not in text:
            raise servers.Failed(f"{file} does not contain {old!r}, which this program wants to change.")
        text = text.replace(old, new)
    return text


class Ports:
    """Where the servers are: the ports that were given, or free ones."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.gallery = servers.usable_port(options.port, "--port")
        self.prometheus = servers.usable_port(options.prometheus_port, "--prometheus-port")
        self.alertmanager = servers.usable_port(options.alertmanager_port, "--alertmanager-port")


def write_configuration(folder: pathlib.Path, ports: Ports, webhook_port: int, quick: bool) -> None:
    """Write the configuration beside this file with the ports of this run; if quick, with shorter times."""
    alerts = HERE.parent.parent / "dashboards" / "alerts.yml"
    scraping = {
        "127.0.0.1:8000": f"{servers.HOST}:{ports.gallery}",
        "127.0.0.1:9093": f"{servers.HOST}:{ports.alertmanager}",
        "../../dashboards/alerts.yml": str(alerts),
    }
    notifying = {"127.0.0.1:9099": f"{servers.HOST}:{webhook_port}"}
    if quick:
        (folder / "quick.yml").write_text(json.dumps(rules(QUICK)))  # JSON is YAML too
        scraping["../../dashboards/alerts.yml"] = str(folder / "quick.yml")
        scraping |= {
            "scrape_interval: 5s": "scrape_interval: 1s",
            "evaluation_interval: 5s": "evaluation_interval: 1s",
        }
        notifying |= {"group_wait: 10s": "group_wait: 1s", "group_interval: 1m": "group_interval: 5s"}
    (folder / "prometheus.yml").write_text(replaced(HERE / "prometheus.yml", scraping))
    (folder / "alertmanager.yml").write_text(replaced(HERE / "alertmanager.yml", notifying))


@contextlib.contextmanager
def hearing(output: servers.Output) -> Iterator[int]:
    """Print the alerts that come in; yield the port where they do."""
    server = webhook(0, lambda text: print(text, file=output, flush=True))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def all_servers(folder: pathlib.Path, ports: Ports, programs: tuple[str, str]) -> Iterator[list[servers.Server]]:
    """Run the gallery with two workers, its load, Prometheus and Alertmanager."""
    prometheus, alertmanager = programs
    workers = folder / "workers"
    workers.mkdir()
    gallery = [
        sys.executable, "-m", "uvicorn", "--app-dir", str(HERE.parent), "05_gallery:app", "--host", servers.HOST,
        "--port", str(ports.gallery), "--workers", "2", "--log-level", "warning",
    ]  # fmt: skip
    commands = {
        "prometheus": [
            prometheus, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/prometheus",
            f"--web.listen-address={servers.HOST}:{ports.prometheus}",
        ],
        "alertmanager": [
            alertmanager, f"--config.file={folder}/alertmanager.yml", f"--storage.path={folder}/alertmanager",
            f"--web.listen-address={servers.HOST}:{ports.alertmanager}", "--cluster.listen-address=",
        ],
        "load": [sys.executable, str(HERE / "load.py"), f"http://{servers.HOST}:{ports.gallery}"],
    }  # fmt: skip
    with contextlib.ExitStack() as stack:
        own = {"PROMETHEUS_MULTIPROC_DIR": str(workers), "TMPDIR": str(folder)}
        yield [
            stack.enter_context(servers.running("gallery", gallery, folder, own)),
            *(stack.enter_context(servers.running(name, command, folder)) for name, command in commands.items()),
        ]


async def states(client: httpx.AsyncClient) -> dict[str, list[str]] | None:
    """Ask Prometheus for the alerts that are pending and firing; return nothing while it does not answer."""
    try:
        answer = (await client.get("/api/v1/alerts")).raise_for_status().json()
    except (httpx.HTTPError, ValueError):
        return None
    found: dict[str, set[str]] = {"pending": set(), "firing": set()}
    for alert in answer["data"]["alerts"]:
        found[alert["state"]].add(alert["labels"]["alertname"].removeprefix("Loopwatch"))
    return {state: sorted(names) for state, names in found.items()}


async def follow(running: list[servers.Server], prometheus: str, ends: float, output: servers.Output) -> None:
    """Print what becomes of the alerts, until the time is over."""
    started, before = time.monotonic(), {"pending": [""]}
    async with httpx.AsyncClient(base_url=prometheus, timeout=5, trust_env=False) as client:
        while time.monotonic() < ends:
            for server in running:
                if server.has_ended():
                    raise servers.Failed(server.why_it_ended())
            now = await states(client)
            if now is not None and now != before:
                minutes, seconds = divmod(round(time.monotonic() - started), 60)
                lists = "; ".join(f"{state}: {', '.join(names) or 'none'}" for state, names in now.items())
                print(f"{minutes:3d}:{seconds:02d} {lists}", file=output, flush=True)
                before = now
            output.check()
            await asyncio.sleep(min(REFRESH_SECONDS, max(0.0, ends - time.monotonic())))


def run(
    options: argparse.Namespace, stopping: servers.Stopping, folder: pathlib.Path, output: servers.Output
) -> None:
    """Run everything and follow the alerts."""
    programs = binary_of("prometheus"), binary_of("prometheus-alertmanager", "alertmanager")
    ports = Ports(options)
    with hearing(output) as webhook_port:
        write_configuration(folder, ports, webhook_port, options.quick)
        with all_servers(folder, ports, programs) as running:
            patience = (
                f"The alerts fire after {QUICK_FOR} of trouble (--quick), so the first come within a minute."
                if options.quick
                else f"{SLOW_PART}: the first come after about 10 minutes. With --quick they come within a minute."
            )
            host = f"http://{servers.HOST}"
            print(
                f"Gallery {host}:{ports.gallery}/docs, Prometheus {host}:{ports.prometheus}/alerts, "
                f"Alertmanager {host}:{ports.alertmanager}\n"
                f"loopwatch measures with the {describe_core()}. Its log names the lines: {folder}/gallery.log\n"
                f"{patience} Ctrl-C ends it.",
                file=output,
                flush=True,
            )
            ends = time.monotonic() + options.seconds
            stopping.run(follow(running, f"{host}:{ports.prometheus}", ends, output))


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="examples/monitoring/run.sh",
        description=__doc__.strip(),
        epilog=f"{SLOW_PART}.\n"
        "Exit code: 0 after its time or Ctrl-C, 128 and the number of any other signal, 1 if it fails.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help=f"let the alerts fire after {QUICK_FOR} of trouble")
    parser.add_argument(
        "--seconds", type=servers.seconds, default="inf", help="how long to run (inf: until Ctrl-C)"
    )
    for option, name in (
        ("--port", "the gallery"),
        ("--prometheus-port", "Prometheus"),
        ("--alertmanager-port", "Alertmanager"),
    ):
        parser.add_argument(
            option, type=servers.port_number, default=0, help=f"the port of {name}; 0 picks a free one (0)"
        )
    return parser.parse_args()


def main() -> None:
    """Run the command."""
    options = arguments()
    with servers.Stopping() as stopping:
        output = servers.Output(stopping)
        try:
            with tempfile.TemporaryDirectory(prefix="loopwatch-monitoring-", ignore_cleanup_errors=True) as folder:
                run(options, stopping, pathlib.Path(folder), output)
        except servers.Failed as failure:
            sys.exit(str(failure))
        print("Stopped.", file=output, flush=True)
    sys.exit(stopping.exit_code)


if __name__ == "__main__":
    main()
