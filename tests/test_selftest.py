"""The self-test says whether detection works on this machine, and its exit code says it too."""

from __future__ import annotations

import subprocess
import sys
import types

import pytest

from loopwatch import selftest
from loopwatch.probes.stalls import StallsProbe


@pytest.mark.blocks
def test_it_finds_that_detection_works():
    done = subprocess.run(
        [sys.executable, "-m", "loopwatch", "selftest"], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "asyncio: selector clock" in done.stdout
    assert "uvloop: libuv clock" in done.stdout
    assert done.stdout.endswith("Detection works.\n")
    assert done.stderr == ""  # the stalls that it makes are none to be warned of


@pytest.mark.slow
@pytest.mark.blocks
def test_it_finds_that_detection_does_not_work(monkeypatch, capsys):
    monkeypatch.setattr(StallsProbe, "start", lambda *_: None)
    monkeypatch.setattr(selftest, "SECONDS", 0.12)
    monkeypatch.setattr(selftest, "PAUSE_SECONDS", 0.05)
    assert selftest.main() == 1
    report = capsys.readouterr().out
    assert report.count("not seen  <-- wrong") == 4  # two deeds on each of two loops
    assert report.endswith("Detection does not work as it should: please report this output.\n")


@pytest.mark.blocks
@pytest.mark.parametrize(("wrong_tries", "code"), [(selftest.TRIES - 1, 0), (selftest.TRIES, 1)])
def test_what_a_busy_machine_disturbs_once_is_tried_again(monkeypatch, capsys, wrong_tries, code):
    tries = []

    async def disturbed(watch, deed, expected, do):
        tries.append(deed)
        stall = types.SimpleNamespace(duration=0.3, cause=expected)
        return selftest._Finding(deed, expected, 0.3, None if len(tries) <= wrong_tries else stall)

    monkeypatch.setattr(selftest, "_try", disturbed)
    assert selftest.main() == code
    first = [deed for deed in tries if deed == "sleep on the loop"]
    assert len(first) == selftest.TRIES + 1  # on the first loop so often, and once on the other
    assert capsys.readouterr().out.count("<-- wrong") == code


@pytest.mark.parametrize(
    ("seconds", "cause", "is_right"),
    [
        (0.3, "blocking", True),
        (0.34, "blocking", True),
        (0.36, "blocking", False),
        (0.24, "blocking", False),
        (0.3, "cpu", False),
    ],
)
def test_a_finding_is_right_if_both_length_and_cause_are(seconds, cause, is_right):
    stall = types.SimpleNamespace(duration=seconds, cause=cause)
    assert selftest._Finding("sleep on the loop", "blocking", 0.3, stall).is_right is is_right
