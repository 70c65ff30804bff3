"""Every panel and rule has something to say about a real app under load, scraped or over OTLP."""

from __future__ import annotations

import contextlib
import json
import math
import threading
import time

import httpx
import pytest

from dashboards import alerts, build
from tests.prometheus import prometheus_with
from tests.serving import ROOT, serve, wait_until
from tests.victoria import victoria_metrics

pytestmark = pytest.mark.once
slow = pytest.mark.slow

ROUTE = "/mistake/background"
"""It stalls, works on after its response, holds others up and is held up by them."""

WINDOW_SECONDS, PATIENCE = 10, 120
VARIABLES = {
    "$__rate_interval": f"{WINDOW_SECONDS}s",
    "$__range": f"{PATIENCE}s",
    "$job": "gallery",
    "$instance": ".*",
    "$pool": ".*",
}
ROUTES = {"loopwatch-overview": ".*", "loopwatch-route": ROUTE}
QUICK = alerts.Thresholds(
    window=f"{WINDOW_SECONDS}s", route_blocks_for="1s", lag_warning_for="1s", lag_critical_for="1h", queue_for="1s"
)
FIRE = {"LoopwatchLagHigh", "LoopwatchRouteBlocksLoop", "LoopwatchThreadsQueueing"}
"""What has to be noticed of that load."""

LOAD = {  # how many clients ask for each route without a pause
    "/mistake/sleep": 1,
    ROUTE: 2,
    "/mistake/compute": 1,
    "/mistake/threads": 50,
    "/cure/sleep": 2,
}


def substituted(expression, name):
    """Put values where Grafana would."""
    for variable, value in {**VARIABLES, "$route": ROUTES[name]}.items():
        expression = expression.replace(variable, value)
    assert "$" not in expression, expression
    return expression


def targets(name):
    """Yield (panel's title, target) of each query of a dashboard."""
    for panel in json.loads((ROOT / f"dashboards/{name}.json").read_text())["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target


def has_values(server, target, name):
    """Tell whether a query returns a number, the way its panel asks."""
    asked = {"query": substituted(target["expr"], name)}
    if target.get("instant"):
        answer = httpx.get(server.url + "/api/v1/query", params=asked, timeout=PATIENCE).json()
    else:
        now = time.time()
        asked |= {"start": now - WINDOW_SECONDS, "end": now, "step": 1}
        answer = httpx.get(server.url + "/api/v1/query_range", params=asked, timeout=PATIENCE).json()
    assert answer["status"] == "success", answer
    values = [
        float(value)
        for series in answer["data"]["result"]
        for _, value in series.get("values", [series.get("value")])
    ]
    return any(math.isfinite(value) for value in values)


@contextlib.contextmanager
def under_load(apps):
    """Ask each app for the routes of LOAD all the time."""
    stop = threading.Event()

    def ask(app, path):
        with contextlib.suppress(httpx.TransportError):
            while not stop.is_set():
                app.get(path)

    threads = [
        threading.Thread(target=ask, args=(app, path))
        for app in apps
        for path, clients in LOAD.items()
        for _ in range(clients)
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@contextlib.contextmanager
def scraped(folder):
    """One app by itself and one with two workers, scraped by the installed Prometheus."""
    workers = folder / "workers"
    workers.mkdir()
    where = ["--app-dir", "examples"]
    with (
        serve("05_gallery:app", "uvloop", *where) as alone,
        serve(
            "05_gallery:app", "asyncio", *where, "--workers", "2", env={"PROMETHEUS_MULTIPROC_DIR": str(workers)}
        ) as two,
    ):
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [rule_file(folder)],
            "scrape_configs": [
                {
                    "job_name": "gallery",
                    "static_configs": [{"targets": [app.url.removeprefix("http://") for app in (alone, two)]}],
                }
            ],
        }
        with prometheus_with(json.dumps(config), folder) as server:
            yield server, [alone, two]


@contextlib.contextmanager
def sent(folder):
    """Two apps that send OTLP to a VictoriaMetrics, whose latest samples a Prometheus takes over each second.

    Debian builds its Prometheus without the OTLP receiver, which names job and instance as is done here.
    """
    with victoria_metrics(folder) as victoria:
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [rule_file(folder)],
            "scrape_configs": [
                {
                    "job_name": "federate",
                    "honor_labels": True,
                    "metrics_path": "/federate",
                    "params": {"match[]": ['{__name__=~"loopwatch_.*"}']},
                    "static_configs": [{"targets": [victoria.url.removeprefix("http://")]}],
                    "metric_relabel_configs": [
                        {"source_labels": [attribute], "target_label": label}
                        for attribute, label in (("service_name", "job"), ("service_instance_id", "instance"))
                    ],
                }
            ],
        }
        environ = {"LOOPWATCH_OPENTELEMETRY": "yes", "OTLP_ENDPOINT": victoria.otlp}
        with (
            serve("tests.apps.gallery_otlp:app", "uvloop", env=environ) as one,
            serve("tests.apps.gallery_otlp:app", "asyncio", env=environ) as other,
            prometheus_with(json.dumps(config), folder) as server,
        ):
            yield server, [one, other]


def rule_file(folder):
    file = folder / "alerts.yml"
    file.write_text(alerts.text(QUICK))
    return str(file)


@slow
@pytest.mark.timeout(180 + 2 * PATIENCE)
@pytest.mark.parametrize("path", [scraped, sent])
def test_every_query_and_rule_returns_data(path, tmp_path):
    with path(tmp_path) as (server, apps), under_load(apps):
        missing = [(name, title, target) for name in ROUTES for title, target in targets(name)]
        assert len(missing) > 40

        def none_is_missing():
            missing[:] = [one for one in missing if not has_values(server, one[2], one[0])]
            return not missing

        try:
            wait_until(none_is_missing, "every query", PATIENCE)
        except AssertionError:
            pytest.fail(f"no data for {[(name, title, target['expr']) for name, title, target in missing]}")
        wait_until(lambda: firing(server) >= FIRE, "the alerts", PATIENCE)
        for rule in rules_of(server):
            assert rule["health"] == "ok", rule
            if rule["type"] == "recording":
                wait_until(lambda name=rule["name"]: server.query(name), f"the rule {rule['name']}", PATIENCE)


def rules_of(server):
    (group,) = httpx.get(server.url + "/api/v1/rules").json()["data"]["groups"]
    return group["rules"]


def firing(server):
    return {rule["name"] for rule in rules_of(server) if rule.get("state") == "firing"}


@slow
def test_a_query_for_what_is_not_served_has_no_values(tmp_path):
    """The check above would fail: a dashboard that names a metric which nobody serves."""
    with prometheus_with("{}", tmp_path) as server:
        assert not has_values(server, {"expr": "loopwatch_lop_lag_seconds"}, "loopwatch-route")
        assert has_values(server, {"expr": "vector(1)", "instant": True}, "loopwatch-route")


def test_what_is_built_is_what_is_tried():
    for name in ROUTES:
        assert f"{name}.json" in build.files(alerts.Thresholds())
