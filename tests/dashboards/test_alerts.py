"""Each alert fires beyond its threshold and not below it, as ``promtool`` of two generations sees it."""

from __future__ import annotations

import subprocess

import pytest

from tests.prometheus import installed
from tests.serving import ROOT
from tests.trixie import fetched

pytestmark = pytest.mark.once


@pytest.fixture(params=["installed", pytest.param("trixie", marks=pytest.mark.slow)])
def promtool(request):
    return installed("promtool", "prometheus") if request.param == "installed" else fetched("promtool", "promtool")


def run(*command):
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_rules_are_valid_and_do_what_their_unit_tests_say(promtool, tmp_path):
    for kind, file in (("check", "dashboards/alerts.yml"), ("test", "dashboards/alerts_test.yml")):
        answer = run(promtool, kind, "rules", file)
        assert answer.returncode == 0, answer.stdout + answer.stderr
    answer = run(promtool, "check", "config", "examples/monitoring/prometheus.yml")
    assert answer.returncode == 0, answer.stdout + answer.stderr


MOVED = {
    "for: 0s": "for: 9m",
    "for: 5m": "for: 12m",
    "for: 10m": "for: 25m",
    "for: 15m": "for: 38m",
    "> 0\n": ">= 0\n",
}


@pytest.mark.slow
@pytest.mark.parametrize("threshold", ["> 0.1", "> 0.5", "> 0.9", "> 10.0", "> 0.05", *MOVED])
def test_the_unit_tests_notice_a_threshold_that_moves(promtool, threshold, tmp_path):
    """Twice and a half of each, one at a time."""
    text = (ROOT / "dashboards/alerts.yml").read_text()
    pieces = text.split(threshold)
    assert len(pieces) > 1
    other = MOVED.get(threshold) or f"> {float(threshold[2:]) * 2.5}"
    (tmp_path / "alerts_test.yml").write_text((ROOT / "dashboards/alerts_test.yml").read_text())
    for number in range(1, len(pieces)):
        changed = threshold.join(pieces[:number]) + other + threshold.join(pieces[number:])
        (tmp_path / "alerts.yml").write_text(changed)
        answer = run(promtool, "test", "rules", str(tmp_path / "alerts_test.yml"))
        assert answer.returncode == 1, f"number {number} of {threshold!r} moved, and nothing noticed"


def test_the_alertmanagers_configuration_is_valid():
    answer = run(
        installed("amtool", "prometheus-alertmanager"), "check-config", "examples/monitoring/alertmanager.yml"
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
