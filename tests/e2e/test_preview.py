"""The dashboards as Grafana's own components draw them, with the types that Grafana declares: where CI is set."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import time

import pytest

from tests.e2e.test_dashboards import ROUTE, scraped, under_load
from tests.serving import ROOT

pytestmark = [
    pytest.mark.once,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not (os.environ.get("CI") or os.environ.get("PREVIEW")), reason="set PREVIEW=yes: needs npm, chromium"
    ),
]
LOAD_SECONDS = float(os.environ.get("PREVIEW_SECONDS", "30"))
VARIABLES = {"overview": {}, "route": {"route": ROUTE}}


@pytest.mark.blocks  # Playwright has a loop of its own
def test_each_panel_can_be_drawn(tmp_path):
    from dashboards.preview import screenshot

    screenshot.build()
    pictures = pathlib.Path(os.environ.get("PREVIEW_PICTURES", tmp_path))
    with scraped(tmp_path) as (server, apps), under_load(apps):
        began = time.time()
        time.sleep(LOAD_SECONDS)
        for name, variables in VARIABLES.items():
            failed = screenshot.take(
                server.url,
                pictures,
                dashboards=[name],
                start=began,
                end=time.time(),
                scrape="1s",
                variables=variables,
            )
            assert failed == {name: 0}


def test_the_json_has_the_types_that_grafana_declares():
    assert shutil.which("npm"), "no npm on the PATH"
    answer = subprocess.run(
        ["npm", "run", "--silent", "check"],
        cwd=ROOT / "dashboards/preview",
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
