"""A route that blocks wakes somebody: a real Prometheus and Alertmanager, a webhook that hears its name."""

from __future__ import annotations

import contextlib
import http.server
import json
import subprocess
import threading

import httpx
import pytest
import yaml

from dashboards import alerts
from tests.prometheus import installed, prometheus_with
from tests.serving import ROOT, free_port, serve, wait_until

pytestmark = [pytest.mark.once, pytest.mark.slow]

QUICK = alerts.Thresholds(window="5s", route_blocks_for="2s")
NAME, ROUTE = "LoopwatchRouteBlocksLoop", "/mistake/sleep"


@contextlib.contextmanager
def webhook():
    """Yield the port of a server, and the list of alerts that it was told."""
    heard = []

    class Hears(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            heard.extend(body["alerts"])
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hears)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port, heard
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def alertmanager(port, folder):
    """Run it with the configuration of ``examples/``, but in a hurry; yield its address."""
    config = yaml.safe_load((ROOT / "examples/monitoring/alertmanager.yml").read_text())
    config["receivers"][0]["webhook_configs"][0]["url"] = f"http://127.0.0.1:{port}/"
    config["route"] |= {"group_wait": "1s", "group_interval": "1s"}
    file = folder / "alertmanager.yml"
    file.write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    command = [
        installed("prometheus-alertmanager", "prometheus-alertmanager"), f"--config.file={file}",
        f"--storage.path={folder}/alertmanager", f"--web.listen-address={address}", "--cluster.listen-address=",
        "--log.level=error",
    ]  # fmt: skip
    with subprocess.Popen(command) as process:
        try:
            ready = f"http://{address}/-/ready"
            wait_until(lambda: httpx.get(ready).status_code == 200, "alertmanager to be ready")
            yield address
        finally:
            process.terminate()


def test_a_blocking_route_is_told_by_name_and_resolved_when_it_is_over(tmp_path):
    (tmp_path / "alerts.yml").write_text(alerts.text(QUICK))
    with (
        webhook() as (port, heard),
        alertmanager(port, tmp_path) as address,
        serve("05_gallery:app", "uvloop", "--app-dir", "examples") as app,
    ):
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(tmp_path / "alerts.yml")],
            "alerting": {"alertmanagers": [{"static_configs": [{"targets": [address]}]}]},
            "scrape_configs": [
                {"job_name": "gallery", "static_configs": [{"targets": [app.url.removeprefix("http://")]}]}
            ],
        }

        def told(status):
            return [alert for alert in heard if (alert["labels"]["alertname"], alert["status"]) == (NAME, status)]

        with prometheus_with(json.dumps(config), tmp_path):

            def block_until_it_is_told():
                app.get(ROUTE)
                return told("firing")

            alert = wait_until(block_until_it_is_told, "the alert")[0]
            assert alert["labels"]["http_route"] == ROUTE
            assert alert["labels"]["severity"] == "warning"
            assert alert["annotations"]["summary"] == f"{ROUTE} blocks the event loop"
            assert "% of the time" in alert["annotations"]["description"]
            assert "Declare the route with `def`" in alert["annotations"]["remedy"]
            assert told("resolved") == []
            wait_until(lambda: told("resolved"), "its end", 60)
