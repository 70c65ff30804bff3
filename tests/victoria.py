"""A real VictoriaMetrics server, which takes OTLP over HTTP and answers PromQL, in a folder of the tests' own.

Debian ships it since trixie. Where it is not installed, its package is fetched from there and only unpacked.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import subprocess

import httpx
import pytest

from tests.prometheus import Prometheus
from tests.serving import ROOT, free_port, wait_until

CACHE = ROOT / ".cache" / "victoria-metrics"
KEYRING = pathlib.Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def find_binary():
    """Return the server's binary, fetched if need be; ``None`` where it cannot be had."""
    installed = shutil.which("victoria-metrics")
    if installed:
        return installed
    unpacked = CACHE / "root/usr/bin/victoria-metrics"
    if not unpacked.exists() and shutil.which("apt-get") and KEYRING.exists():
        with contextlib.suppress(subprocess.CalledProcessError, OSError):
            _fetch()
    return str(unpacked) if unpacked.exists() else None


def _fetch():
    """Ask Debian's trixie for the package, with lists and state of our own."""
    for folder in ("lists/partial", "cache/archives/partial", "state", "root"):
        (CACHE / folder).mkdir(parents=True, exist_ok=True)
    sources = CACHE / "sources.list"
    sources.write_text(f"deb [signed-by={KEYRING}] http://deb.debian.org/debian trixie main\n")
    (CACHE / "state/status").touch()
    options = [
        f"Dir::Etc::SourceList={sources}", "Dir::Etc::SourceParts=/dev/null", f"Dir::State={CACHE}/state",
        f"Dir::State::Lists={CACHE}/lists", f"Dir::State::status={CACHE}/state/status", f"Dir::Cache={CACHE}/cache",
        "APT::Sandbox::User=root",
    ]  # fmt: skip
    apt = ["apt-get", "-qq", *(part for option in options for part in ("-o", option))]
    subprocess.run([*apt, "update"], check=True)
    subprocess.run([*apt, "download", "victoria-metrics"], check=True, cwd=CACHE)
    (package,) = CACHE.glob("victoria-metrics_*.deb")
    subprocess.run(["dpkg-deb", "-x", package, CACHE / "root"], check=True)


@contextlib.contextmanager
def victoria_metrics(folder):
    """Run the server; yield what asks it, with ``otlp`` being where metrics are sent to."""
    binary = find_binary()
    if binary is None:
        message = "no `victoria-metrics`: it is a package of Debian trixie, and could not be fetched"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    address = f"127.0.0.1:{free_port()}"
    command = [
        binary, f"-httpListenAddr={address}", "-opentelemetry.usePrometheusNaming", "-search.latencyOffset=0s",
        f"-storageDataPath={folder}/victoria", "-loggerLevel=ERROR", "-search.disableCache",
    ]  # fmt: skip
    with subprocess.Popen(command) as process:
        try:
            server = Prometheus(f"http://{address}")
            server.otlp = f"{server.url}/opentelemetry/v1/metrics"
            wait_until(lambda: httpx.get(server.url + "/health").status_code == 200, "victoria-metrics")
            yield server
        finally:
            process.terminate()
