"""The runner of the tests goes on after a failed pass, says what failed where, and can be interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from scripts import levels
from scripts.levels import NO_TEST_RAN, Pass, run
from tests.serving import ROOT
from tests.waiting import blocking_until

PRINTS_FAILURES = "print('FAILED tests/test_a.py::test_b[c] - assert 1'); raise SystemExit(1)"


def python(code):
    return [sys.executable, "-c", code]


def test_it_goes_on_after_a_failed_pass_and_names_what_failed_where(capfd):
    passes = [Pass("first", python(PRINTS_FAILURES)), Pass("second", python("print('fine')"))]
    assert run(iter(passes)) == 1
    assert [one.is_good for one in passes] == [False, True]
    summary = capfd.readouterr().out.partition("== Summary")[2]
    assert "FAILED (exit code 1): first" in summary
    assert "tests/test_a.py::test_b[c]" in summary
    assert "passed: second" in summary


def test_a_pass_that_does_not_print_what_it_must_has_failed():
    one = Pass("core", python("print('Core: plain')"), must_print="Core: compiled")
    assert run(iter([one])) == 1
    assert "Core: compiled" in one.status


@pytest.mark.parametrize(
    ("codes", "expected"), [((0, 0), 0), ((NO_TEST_RAN, 0), 0), ((NO_TEST_RAN,) * 2, NO_TEST_RAN)]
)
def test_a_pass_in_which_no_test_was_chosen_is_no_failure_unless_all_are(codes, expected):
    assert run(Pass("some", python(f"raise SystemExit({code})")) for code in codes) == expected


def test_what_each_level_covers_is_listed_and_nothing_is_run(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["scripts/test", "--list"])
    assert levels.main() == 0
    listed = capsys.readouterr().out
    assert listed.startswith("quick (scripts/test)")
    assert "bare machines" in listed


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_what_was_started_and_says_so(how, tmp_path):
    pid = tmp_path / "pid"
    child = f"import os, pathlib, time; pathlib.Path({str(pid)!r}).write_text(str(os.getpid())); time.sleep(60)"
    code = (
        "import sys; from scripts import levels; "
        f"levels.quick = lambda _: [levels.Pass('waits', [sys.executable, '-c', {child!r}])]; "
        "sys.argv = ['scripts/test']; sys.exit(levels.main())"
    )
    with subprocess.Popen(python(code), cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        blocking_until(lambda: pid.exists() and pid.read_text(), "the pass to begin")
        process.send_signal(how)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Interrupted" in out
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_in_ci_bare_machines_that_cannot_be_made_are_a_failure(monkeypatch):
    monkeypatch.setattr(levels.shutil, "which", lambda _: None)
    monkeypatch.setenv("CI", "true")
    assert run(levels.bare_machines()) == 1
    monkeypatch.delenv("CI")
    assert list(levels.bare_machines()) == []
