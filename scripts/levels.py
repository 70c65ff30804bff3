"""Run the tests, level by level and pass by pass; go on after a failed pass, and say at the end what failed where.

Run it as scripts/test. PYTHONS="3.12" scripts/test takes that interpreter only.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

ROOT = pathlib.Path(__file__).parent.parent
NO_TEST_RAN = 5
"""pytest's exit code where no test was chosen."""

ENDS_WITHIN_SECONDS = 60.0
"""How long a pass that was asked to end may take for it."""

SUITES = {"bookworm": "Debian 12, Python 3.11.2", "trixie": "Debian 13, Python 3.13"}
OTHERS = "not once and (not slow or every_interpreter)"
"""The marks of the tests that run on other interpreters than the oldest, and on the plain core."""

LEVELS = """\
quick (scripts/test), at most 5 minutes on 2 cores:
  the oldest interpreter that is here, the compiled core where it can be compiled, else the plain one;
  all tests but those marked `slow`: unit, contract and the quick end-to-end tests.
all (scripts/test --all), at most an hour:
  every interpreter that is here, each with the compiled core: on the oldest all tests, real Prometheus,
  Alertmanager, PostgreSQL and VictoriaMetrics, benchmarks and examples included; on the others those that depend
  on the interpreter and are not marked `slow`, and asyncio's own tests on measured loops;
  bare machines: the demo and the quick level on the plain core in a fresh Debian 12 and 13, which have no
  compiler; the demo with a compiler but no headers, with both, and with a CC that does not exist. They need root
  and debootstrap; where there is neither, the plain core is tested on the oldest and the newest interpreter here.
"""


@dataclass
class Pass:
    """One run of a command. ``failed`` names the tests that failed, as far as the command names them."""

    name: str
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    must_print: str = ""
    """A regular expression that the output must match."""
    status: str = "not run"
    seconds: float = 0.0
    failed: list[str] = field(default_factory=list)

    def run(self) -> None:
        """Run the command, show its output and note how it ended."""
        print(f"== {self.name}: {shlex.join(self.command)}", flush=True)
        started, output = time.monotonic(), bytearray()
        with subprocess.Popen(
            self.command,
            cwd=ROOT,
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process:
            try:
                assert process.stdout is not None  # noqa: S101 # for the type checker
                while chunk := os.read(process.stdout.fileno(), 65536):
                    sys.stdout.buffer.write(chunk)
                    sys.stdout.buffer.flush()
                    output += chunk
            except BaseException:
                self.status = "interrupted"
                _end(process)
                raise
            finally:
                self.seconds = time.monotonic() - started
        text = output.decode(errors="replace")
        self.failed = re.findall(r"^(?:FAILED|ERROR) (tests/\S+)", text, re.MULTILINE)
        if process.returncode == NO_TEST_RAN:
            self.status = "no test chosen"
        elif process.returncode != 0:
            self.status = f"FAILED (exit code {process.returncode})"
        elif not re.search(self.must_print, text):
            self.status = f"FAILED (its output has no {self.must_print!r})"
        else:
            self.status = "passed"

    @property
    def is_good(self) -> bool:
        """Whether nothing is wrong with it."""
        return self.status in ("passed", "no test chosen")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to end and to stop what it started; insist if it does not."""
    process.terminate()
    try:
        process.wait(ENDS_WITHIN_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()


def shell(command: str) -> str:
    """Return what a command of ``scripts/_env.sh`` prints; end with its exit code if it fails."""
    done = subprocess.run(
        ["bash", "-c", f"source scripts/_env.sh; {command}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        sys.exit(done.returncode)
    return done.stdout.strip()


def interpreters() -> dict[str, str]:
    """Return the path of each wanted interpreter that is here, by version, oldest first."""
    wanted = (os.environ.get("PYTHONS") or shell('echo "$SUPPORTED"')).split()
    found = {version: shell(f"find_python {shlex.quote(version)}") for version in wanted}
    for version, path in found.items():
        if not path:
            print(f"== Python {version} is not here: left out.")
    here = {version: path for version, path in found.items() if path}
    if not here:
        sys.exit(f"None of Python {', '.join(wanted)} is here. Install one and try again.")
    return here


def pytest(version: str, python: str, marks: str, arguments: list[str], *, plain: bool = False) -> Pass:
    """Return a pass of pytest in the environment of an interpreter, which is made if need be."""
    folder = shell(f"make_env dev {shlex.quote(python)}")
    core = shell(f"{'LOOPWATCH_PURE=yes ' if plain else ''}say_core {folder} {shlex.quote(python)}")
    command = [f"{folder}/bin/python", "-m", "pytest", "-m", marks, *arguments]
    if plain:
        command += ["--ignore", "tests/e2e"]
    return Pass(f"Python {version}. {core}", command, {"LOOPWATCH_PURE": "yes"} if plain else {})


def quick(arguments: list[str]) -> Iterator[Pass]:
    """Yield the only pass of the quick level."""
    version, python = next(iter(interpreters().items()))
    yield pytest(version, python, "not slow", arguments)


def everything(arguments: list[str]) -> Iterator[Pass]:
    """Yield the passes of all levels."""
    here = interpreters()
    oldest, newest = next(iter(here)), list(here)[-1]
    for version, python in here.items():
        yield pytest(version, python, "" if version == oldest else OTHERS, arguments)
    bare = [] if arguments else list(bare_machines())
    yield from bare
    if not bare:
        for version in dict.fromkeys((oldest, newest)):
            yield pytest(version, here[version], OTHERS, arguments, plain=True)


def bare_machines() -> Iterator[Pass]:
    """Yield passes in fresh machines; none, with the reason, where they cannot be made. In CI that is a failure."""
    if os.geteuid() != 0 or not shutil.which("debootstrap"):
        print("== Bare machines are left out: they need root and debootstrap (apt-get install debootstrap).")
        if os.environ.get("CI"):
            yield Pass("bare machines", [], status="FAILED (in CI they must be tested)")
        return
    demo, no_compiler = ["scripts/demo", "--seconds", "5"], "Core: plain, since there is no C compiler"
    for suite, what in SUITES.items():
        for command in (demo, ["scripts/test"]):
            yield Pass(f"bare {what}", ["scripts/bare", suite, *command], {"CC": ""}, no_compiler)
    headers, no_headers = {"CC": "", "PACKAGES": "gcc libc6-dev"}, "since Python's headers are missing"
    yield Pass("a compiler without headers", ["scripts/bare", "bookworm", *demo], headers, no_headers)
    yield Pass("CC=/nonexistent", ["scripts/bare", "trixie", *demo], {"CC": "/nonexistent"}, no_compiler)
    compiler = {"CC": "", "PACKAGES": "gcc libc6-dev python3-dev"}
    yield Pass("a compiler and headers", ["scripts/bare", "trixie", *demo], compiler, "with the compiled core")


def summarize(passes: list[Pass]) -> None:
    """Say how each pass ended, and which tests failed in it."""
    print("\n== Summary")
    for one in passes:
        print(f"{one.status}: {one.name}, {one.seconds:.0f} s: {shlex.join(one.command)}")
        for test in one.failed:
            print(f"    {test}")


def run(passes: Iterator[Pass]) -> int:
    """Run all passes, whatever becomes of each; return the exit code."""
    done: list[Pass] = []
    try:
        for one in passes:
            done.append(one)
            if one.status == "not run":
                one.run()
    finally:
        if len(done) > 1:
            summarize(done)
    good = [one.is_good for one in done]
    if all(one.status == "no test chosen" for one in done):
        return NO_TEST_RAN
    return 0 if all(good) else 1


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def main() -> int:
    """Run the level that the arguments name."""
    parser = argparse.ArgumentParser(
        prog="scripts/test",
        description="Run the tests. Any other argument goes to pytest: scripts/test -k lag",
        epilog=LEVELS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--all", action="store_true", help="run every level, on every interpreter that is here")
    parser.add_argument("--list", action="store_true", help="say what each level covers, and run nothing")
    options, arguments = parser.parse_known_args()
    if options.list:
        print(LEVELS, end="")
        return 0
    signal.signal(signal.SIGTERM, _interrupt)
    with contextlib.suppress(KeyboardInterrupt):
        return run(everything(arguments) if options.all else quick(arguments))
    print("\nInterrupted; all that was started has been stopped.")
    return 130


if __name__ == "__main__":
    sys.exit(main())
