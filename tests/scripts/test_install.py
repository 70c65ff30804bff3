"""loopwatch installs on any machine: the compiled core where it can be built, the plain one elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib

import pytest

from tests.serving import ROOT

PACKAGED = ("loopwatch", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
NO_COMPILER = {"CC": "/nonexistent"}


@pytest.fixture
def project(tmp_path):
    """A copy of what is packaged, without anything that was built here."""
    leave_out = shutil.ignore_patterns("*.so", "__pycache__")
    for name in PACKAGED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name, ignore=leave_out)
        else:
            shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def install(project, **environment):
    """Install the project into a folder of its own with pip; return the finished process, and that folder."""
    into = project / "installed"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(into), str(project)]
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=170
    )
    return done, into


def core_of(folder):
    """Return how the core in a folder is described, by an interpreter that knows no other loopwatch."""
    code = "from loopwatch.hot import CORE, describe_core; print(CORE, describe_core())"
    return subprocess.run(
        [sys._base_executable, "-c", code],
        cwd=folder, env={"LOOPWATCH_PURE": ""}, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip


@pytest.mark.once
@pytest.mark.slow
def test_without_a_compiler_the_plain_core_is_installed_and_says_how_to_get_the_other(project):
    done, folder = install(project, **NO_COMPILER)
    assert done.returncode == 0, done.stderr
    described = core_of(folder)
    assert described.startswith("plain plain Python core (it was not compiled at installation")
    assert "install a C compiler and Python's headers" in described


@pytest.mark.once
@pytest.mark.slow
def test_a_build_that_must_have_the_compiled_core_fails_with_the_compilers_message(project):
    done, folder = install(project, LOOPWATCH_REQUIRE_COMPILED="1", **NO_COMPILER)
    assert done.returncode != 0
    assert "/nonexistent" in done.stderr
    assert not (folder / "loopwatch").exists()


@pytest.mark.once
@pytest.mark.slow
def test_the_core_cannot_be_left_out_and_required_at_once(project):
    done, _ = install(project, LOOPWATCH_PURE="1", LOOPWATCH_REQUIRE_COMPILED="1")
    assert done.returncode != 0
    assert "unset one of the two" in done.stderr


def test_the_compiler_of_the_core_is_one_that_was_tried():
    """A new release of Cython may translate the core in another way, or fail: try it before widening the range."""
    (cython,) = (
        requirement
        for requirement in tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
        if requirement.startswith("cython")
    )
    assert "<" in cython


def test_the_plain_core_says_so_why_and_what_it_costs():
    environment = {**os.environ, "LOOPWATCH_PURE": "1"}
    code = "from loopwatch.hot import describe_core; print(describe_core())"
    described = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert "LOOPWATCH_PURE is set" in described
    assert "1.2 to 1.4 times" in described
