"""What is shipped is what would be built, names nothing that does not exist, and explains itself."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
import yaml

from dashboards import build
from dashboards.alerts import Thresholds, rules
from loopwatch import catalogue
from tests.serving import ROOT

pytestmark = pytest.mark.once

FOLDER = ROOT / "dashboards"
DASHBOARDS = ("loopwatch-overview", "loopwatch-route")
SERVED = {
    metric.prometheus_name + suffix
    for metric in catalogue.METRICS
    for suffix in (("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",))
}


def run_build(*arguments):
    command = [sys.executable, "-m", "dashboards.build", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def dashboard(name):
    return json.loads((FOLDER / f"{name}.json").read_text())


def panels(name):
    return [panel for panel in dashboard(name)["panels"] if panel["type"] != "row"]


def unknown_names(text):
    """Return the names of loopwatch in a text that no app serves; those with a colon are rules."""
    names = set(re.findall(r"(?<![:\w])loopwatch_\w+(?!\w*:)", text))
    return names - SERVED


def test_the_files_are_what_would_be_built():
    for name, text in build.files(Thresholds()).items():
        assert (FOLDER / name).read_text() == text, f"{name}: run python -m dashboards.build"


def test_check_fails_where_a_file_differs_and_writes_nothing(tmp_path):
    assert run_build("--check").returncode == 0
    assert run_build("--to", str(tmp_path), "--lag-warning", "0.25").returncode == 0
    edited = (tmp_path / "alerts.yml").read_text()
    assert "instance:loopwatch_loop_lag_seconds:p99 > 0.25" in edited
    answer = run_build("--check", "--to", str(tmp_path))
    assert answer.returncode == 1
    assert "loopwatch-overview.json, alerts.yml: not what would be built" in answer.stderr
    assert (tmp_path / "alerts.yml").read_text() == edited


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--lag-warning", "-1"], "not above 0"),
        (["--lag-warning", "much"], "invalid"),
        (["--window", "5 minutes"], "is no duration"),
        (["--colour", "red"], "unrecognized"),
        (["--runbook", "dashboards/runbook.md"], "is no address"),
    ],
)
def test_a_bad_threshold_is_refused_in_plain_words(arguments, part, tmp_path):
    answer = run_build("--to", str(tmp_path), *arguments)
    assert answer.returncode == 2
    assert part in answer.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("file", [*(f"{name}.json" for name in DASHBOARDS), "alerts.yml", "alerts_test.yml"])
def test_no_metric_is_named_that_is_not_served(file):
    text = (FOLDER / file).read_text()
    assert unknown_names(text) == set()
    assert unknown_names(text.replace("loopwatch_loop_", "loopwatch_lop_"))


@pytest.mark.parametrize("name", DASHBOARDS)
def test_each_panel_explains_itself(name):
    ids, places = set(), []
    for panel in dashboard(name)["panels"]:
        ids.add(panel["id"])
        box = panel["gridPos"]
        assert box["x"] + box["w"] <= 24
        for other in places:
            apart = (
                box["x"] >= other["x"] + other["w"]
                or other["x"] >= box["x"] + box["w"]
                or box["y"] >= other["y"] + other["h"]
                or other["y"] >= box["y"] + box["h"]
            )
            assert apart, f"{panel['title']} covers another panel"
        places.append(box)
    assert len(ids) == len(places)
    for panel in panels(name):
        assert panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        defaults = panel["fieldConfig"]["defaults"]
        assert defaults["unit"], panel["title"]
        assert defaults["thresholds"]["steps"], panel["title"]
        for target in panel["targets"]:
            assert set(re.findall(r"\[(.*?)\]", target["expr"])) <= {"$__rate_interval", "$__range"}
            assert '$job"' in target["expr"]


@pytest.mark.parametrize("name", DASHBOARDS)
def test_the_variables_and_links_are_there(name):
    found = dashboard(name)
    names = [variable["name"] for variable in found["templating"]["list"]]
    assert names[:4] == ["datasource", "job", "instance", "route"]
    assert found["links"][0]["tags"] == found["tags"] == ["loopwatch"]
    assert [note["name"] for note in found["annotations"]["list"]] == ["Restarts", "Firing alerts"]


def chapters():
    return re.findall(r"^## (\w+)$", (FOLDER / "runbook.md").read_text(), re.MULTILINE)


def alert_rules(thresholds):
    return [rule for rule in rules(thresholds)["groups"][0]["rules"] if "alert" in rule]


def test_each_alert_has_its_chapter_in_the_runbook():
    assert set(chapters()) == {rule["alert"] for rule in alert_rules(Thresholds())}
    for rule in alert_rules(Thresholds()):
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert "$value" in rule["annotations"]["description"]


def test_each_alert_says_what_to_do_and_has_no_link_that_leads_nowhere():
    for rule in alert_rules(Thresholds()):
        assert rule["annotations"]["remedy"].endswith("."), rule["alert"]
        assert "runbook_url" not in rule["annotations"]
    assert "runbook" not in (FOLDER / "alerts.yml").read_text()


def test_alerts_link_to_the_chapter_of_a_runbook_whose_address_is_given(tmp_path):
    address = "https://wiki.example.com/loopwatch"
    assert run_build("--to", str(tmp_path), "--runbook", address).returncode == 0
    rules_of_file = yaml.safe_load((tmp_path / "alerts.yml").read_text())["groups"][0]["rules"]
    links = {rule["alert"]: rule["annotations"]["runbook_url"] for rule in rules_of_file if "alert" in rule}
    assert links == {alert: f"{address}#{alert.lower()}" for alert in chapters()}


def test_each_threshold_on_time_is_a_bound_of_the_histograms():
    thresholds = Thresholds()
    for seconds in (thresholds.lag_warning, thresholds.lag_critical, thresholds.queue):
        assert seconds in catalogue.LATENCY_BUCKETS


def test_the_compose_file_mounts_what_is_there():
    compose = yaml.safe_load((ROOT / "examples/monitoring/compose.yml").read_text())
    for service in compose["services"].values():
        for volume in service.get("volumes", []):
            assert (ROOT / "examples/monitoring" / volume.partition(":")[0]).exists(), volume
