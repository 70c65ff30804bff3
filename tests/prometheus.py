"""A real Prometheus server for the tests: a port and a data folder of its own, stopped at the end."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import subprocess

import httpx
import pytest

from tests.serving import PATIENCE_SECONDS, ROOT, free_port, stop, wait_until


class Prometheus:
    """A running server that scrapes one app once a second."""

    def __init__(self, url):
        self.url = url

    def query(self, promql):
        """Evaluate PromQL now; return {frozenset of labels: value}, without the labels that every target gets."""
        return {
            frozenset(
                (k, v) for k, v in series["metric"].items() if k not in {"__name__", "job", "instance"}
            ): float(series["value"][1])
            for series in self._evaluate(promql)
        }

    def scalar(self, promql):
        (value,) = self.query(promql).values()
        return value

    def samples(self, selector, seconds):
        """Return (time of its scrape, value) of each sample of one series in the last seconds."""
        (series,) = self._evaluate(f"{selector}[{seconds:.0f}s]")
        return [(at, float(value)) for at, value in series["values"]]

    def scraped_after(self, selector, at):
        """Wait until a series has a sample of a scrape that began after ``at``; return the time of that scrape."""

        def last_scrape():
            return max(self.query(f"timestamp({selector})").values(), default=0.0)

        wait_until(lambda: last_scrape() > at, f"a scrape of {selector}")
        return last_scrape()

    def _evaluate(self, promql):
        answer = httpx.get(self.url + "/api/v1/query", params={"query": promql}, timeout=PATIENCE_SECONDS).json()
        assert answer["status"] == "success", answer
        return answer["data"]["result"]


@contextlib.contextmanager
def prometheus(target, folder):
    """Run the server with the configuration of ``examples/``, pointed at ``target`` (host:port)."""
    config = (ROOT / "examples/prometheus.yml").read_text().replace("127.0.0.1:8000", target)
    with prometheus_with(config, folder) as server:
        yield server


@contextlib.contextmanager
def prometheus_with(config, folder, *options, binary=None):
    """Run the server, the installed one or ``binary``, with a configuration of one's own."""
    binary = binary or installed("prometheus", "prometheus")
    file = pathlib.Path(folder) / "prometheus.yml"
    file.write_text(config)
    address = f"127.0.0.1:{free_port()}"
    command = [
        binary,
        f"--config.file={file}",
        f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address={address}",
        "--log.level=error",
        *options,
    ]
    with subprocess.Popen(command) as process:
        try:
            server = Prometheus(f"http://{address}")
            wait_until(lambda: httpx.get(server.url + "/-/ready").status_code == 200, "prometheus to be ready")
            yield server
        finally:
            stop(process)


def installed(binary, package):
    """Return where a binary is. Fails in CI, else skips, where it is not installed."""
    found = shutil.which(binary)
    if found is None:
        message = f"no `{binary}` on the PATH: apt-get install -y --no-install-recommends {package}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return found
