"""An environment is made whole or not at all: one that failed or was interrupted is made anew by the next call."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig

import pytest

from tests.serving import ROOT
from tests.waiting import blocking_until

BACKEND = '''
"""Builds nothing. Fails while there is a file "fail", and does not end while there is a file "hang"."""
import os, pathlib, time, zipfile
NAME = "project-1-py3-none-any.whl"

def build_editable(folder, config_settings=None, metadata_directory=None):
    pathlib.Path("building").touch()
    while os.path.exists("hang"):
        time.sleep(0.05)
    if os.path.exists("fail"):
        raise SystemExit("the backend was asked to fail")
    with zipfile.ZipFile(os.path.join(folder, NAME), "w") as wheel:
        wheel.writestr("project.py", "")
        wheel.writestr("project-1.dist-info/METADATA", "Metadata-Version: 2.1\\nName: project\\nVersion: 1\\n")
        tags = "Root-Is-Purelib: true\\nTag: py3-none-any\\n"
        wheel.writestr("project-1.dist-info/WHEEL", "Wheel-Version: 1.0\\n" + tags)
        wheel.writestr("project-1.dist-info/RECORD", "")
    return NAME
'''
PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "project"
version = "1"
optional-dependencies = { dev = [] }
"""


pytestmark = pytest.mark.once


@pytest.fixture
def project(tmp_path):
    """A project that installs at once, with the scripts of this one."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "backend.py").write_text(BACKEND)
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    (tmp_path / "loopwatch").mkdir()
    for source in ("setup.py", "loopwatch/core.py", "loopwatch/_core.pxd", "loopwatch/_lookout.pyx"):
        (tmp_path / source).touch()
    return tmp_path


def make_env(project):
    """Start making the environment, in a process group of its own."""
    command = f'source scripts/_env.sh; folder=$(make_env dev "{sys.executable}"); echo "$folder"'
    return subprocess.Popen(
        ["bash", "-c", command],
        cwd=project, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def made(project):
    """Make the environment; return (exit code, what was printed, what was said)."""
    with make_env(project) as process:
        out, said = process.communicate(timeout=120)
        return process.returncode, out.strip(), said


def is_whole(project, folder):
    done = subprocess.run([project / folder / "bin/python", "-c", "import project"], check=False, cwd="/")
    return done.returncode == 0


@pytest.mark.slow
def test_it_is_made_once_and_anew_when_what_it_depends_on_changes(project):
    code, folder, said = made(project)
    assert code == 0, said
    assert "Making" in said
    assert is_whole(project, folder)
    assert made(project) == (0, folder, "")
    (project / "loopwatch/core.py").write_text("# changed\n")
    code, _, said = made(project)
    assert (code, "Making" in said) == (0, True)


@pytest.mark.slow
def test_one_that_failed_says_why_and_is_made_anew(project):
    (project / "fail").touch()
    code, out, said = made(project)
    assert (code, out) == (1, "")
    assert "the backend was asked to fail" in said
    assert "Try again" in said
    (project / "fail").unlink()
    code, folder, said = made(project)
    assert code == 0, said
    assert is_whole(project, folder)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_one_that_was_interrupted_is_made_anew(project, how):
    (project / "hang").touch()
    with make_env(project) as process:
        blocking_until((project / "building").exists, "the installation to begin", 100)
        os.killpg(process.pid, how)
        process.communicate(timeout=60)
    (project / "hang").unlink()
    code, folder, said = made(project)
    assert code == 0, said
    assert "Making" in said
    assert is_whole(project, folder)


@pytest.mark.slow
def test_a_second_call_waits_for_the_first_and_uses_what_it_made(project):
    (project / "hang").touch()
    with make_env(project) as first:
        blocking_until((project / "building").exists, "the installation to begin", 100)
        with make_env(project) as second:
            assert "Another process makes an environment" in second.stderr.readline()
            (project / "hang").unlink()
            folder, said = (part.strip() for part in second.communicate(timeout=120))
        assert first.wait(120) == 0
    assert (second.returncode, said) == (0, "")
    assert is_whole(project, folder)


@pytest.mark.slow
def test_a_core_of_other_sources_is_not_left_behind(project):
    old = project / f"loopwatch/_core{sysconfig.get_config_var('EXT_SUFFIX')}"
    old.touch()
    made(project)
    assert not old.exists()
