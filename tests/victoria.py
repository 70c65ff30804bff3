"""A real VictoriaMetrics server, which takes OTLP over HTTP and answers PromQL, in a folder of the tests' own.

Debian ships it since trixie.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess

import httpx

from tests.prometheus import Prometheus
from tests.serving import free_port, stop, wait_until
from tests.trixie import fetched


@contextlib.contextmanager
def victoria_metrics(folder):
    """Run the server; yield what asks it, with ``otlp`` being where metrics are sent to."""
    binary = shutil.which("victoria-metrics") or fetched("victoria-metrics", "victoria-metrics")
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
            stop(process)
