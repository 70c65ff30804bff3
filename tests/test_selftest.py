"""The self-test says whether detection works on this machine, and its exit code says it too."""

from __future__ import annotations

import subprocess
import sys

import pytest

from loopwatch import selftest
from loopwatch.probes.stalls import StallsProbe


@pytest.mark.blocks
def test_it_finds_that_detection_works():
    done = subprocess.run(
        [sys.executable, "-m", "loopwatch", "selftest"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "asyncio: selector clock" in done.stdout
    assert "uvloop: libuv clock" in done.stdout
    assert done.stdout.endswith("Detection works.\n")
    assert done.stderr == ""  # the stalls that it makes are none to be warned of


@pytest.mark.blocks
def test_it_finds_that_detection_does_not_work(monkeypatch, capsys):
    monkeypatch.setattr(StallsProbe, "start", lambda *_: None)
    assert selftest.main() == 1
    report = capsys.readouterr().out
    assert "not seen  <-- wrong" in report
    assert "Detection does not work as it should" in report
