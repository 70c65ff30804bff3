"""Each command of the repository runs, with as little work as shows that; the examples have tests of their own."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from benchmarks import instructions, overhead
from tests.prometheus import installed
from tests.serving import ROOT, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.once]

PATIENCE_SECONDS = 150
BENCH = [sys.executable, "-m", "benchmarks.overhead"]
ONE_ROUND = ["--rounds", "1", "--in-flight", "1", "--loops", "asyncio"]
SMALL = [*ONE_ROUND, "--quick"]
ENDLESS = ["--rounds", "1000", *SMALL[2:]]
LONG_SOAK = ["--requests", "50000"]  # its first line comes after a twentieth
OURS = "compiled" if importlib.util.find_spec("loopwatch._core") else "pure"
FASTEST = f"bare,{OURS}"


def command(*arguments, env=None, code=0):
    """Run a command to its end; return what it printed. Fail where its exit code is another one."""
    environ = {**os.environ, **(env or {})}
    with subprocess.Popen(
        arguments, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            out, err = process.communicate(timeout=PATIENCE_SECONDS)
        except subprocess.TimeoutExpired as late:
            pytest.fail(f"{' '.join(arguments)} did not end within {PATIENCE_SECONDS} s: {late.stderr}")
        finally:
            stop(process)
    assert process.returncode == code, f"{' '.join(arguments)} ended with {process.returncode}\n{out}{err}"
    return subprocess.CompletedProcess(arguments, code, out, err)


def stop(process):
    """End a process that goes on, and let it end what it started."""
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def figures_of(text):
    """Return the cells of a printed table, by heading and then by what stands before them."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    assert rows, f"no table was printed:\n{text}"
    (_, *headings), _, *lines = rows
    return {heading: {line[0]: line[place] for line in lines} for place, heading in enumerate(headings, 1)}


def check_figures(text, headings, variants):
    """Check that a table has just these columns and rows; return its figures by heading and variant."""
    columns = figures_of(text)
    assert list(columns) == headings
    names = {overhead.VARIANTS[variant]: variant for variant in variants.split(",")}
    assert all(list(cells) == list(names) for cells in columns.values())
    figures = {
        heading: {names[name]: float(re.match(r"\d+(\.\d+)?", cell)[0]) for name, cell in cells.items()}
        for heading, cells in columns.items()
    }
    assert all(figure > 0 for cells in figures.values() for figure in cells.values())
    return figures


def test_bench_process():
    variants = f"bare,again,{OURS}"
    done = command(*BENCH, *SMALL, "--parts", "process", "--variants", variants)
    check_figures(done.stdout, ["asyncio, `async`", "asyncio, `def`"], variants)
    assert "asyncio: round 1 of 1\n" in done.stderr


def test_bench_paired_on_both_loops():
    variants = f"bare,again,{OURS}"
    done = command(*BENCH, *SMALL, "--loops", "asyncio,uvloop", "--parts", "paired", "--variants", variants)
    headings = [f"{loop}, `{route}`, one process" for loop in ("asyncio", "uvloop") for route in ("async", "def")]
    check_figures(done.stdout, headings, variants)


def test_bench_wrk():
    installed("wrk", "wrk")
    done = command(*BENCH, *SMALL, "--parts", "wrk", "--variants", FASTEST)
    check_figures(done.stdout, ["asyncio, wrk"], FASTEST)


def test_bench_instructions_counts_more_of_them_with_loopwatch_than_without():
    installed("valgrind", "valgrind")
    done = command(*BENCH, *SMALL, "--parts", "instructions", "--variants", FASTEST)
    (cells,) = check_figures(done.stdout, ["instructions"], FASTEST).values()
    assert cells[OURS] > cells["bare"] == 1


def test_twice_as_many_requests_are_twice_as_many_instructions():
    installed("valgrind", "valgrind")
    once, twice = (instructions.executed("bare", warm_up=5, count=count) for count in (20, 40))
    assert twice / once == pytest.approx(2, rel=0.05)


def test_bench_writes_the_table_between_the_markers(tmp_path):
    file = tmp_path / "page.md"
    file.write_text(f"before\n{overhead.BEGIN}old\n{overhead.END}after\n")
    done = command(*BENCH, *ONE_ROUND, "--parts", "process", "--variants", FASTEST, "--write", str(file))
    table = done.stdout.removesuffix("\n")
    assert file.read_text() == f"before\n{overhead.BEGIN}{table}{overhead.END}after\n"
    check_figures(file.read_text(), ["asyncio, `async`", "asyncio, `def`"], FASTEST)


def test_bench_refuses_a_file_without_markers_before_it_starts_anything(tmp_path):
    file = tmp_path / "page.md"
    file.write_text("no markers")
    options = ["--parts", "process", "--variants", FASTEST, "--write", str(file)]
    done = command(*BENCH, *ONE_ROUND, *options, code=1)
    assert done.stdout == ""
    assert done.stderr == (
        f"--write cannot write the table into {file}: It has no lines <!-- benchmark --> and "
        "<!-- end of benchmark --> for the table to stand between.\n"
    )


@pytest.fixture
def without(tmp_path):
    """Return the environment of a Python where a module cannot be imported."""

    def environ(module):
        (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules[{module!r}] = None\n")
        return {"PYTHONPATH": str(tmp_path)}

    return environ


def test_bench_names_each_variant_that_does_not_run_before_it_measures(without):
    done = command(
        *BENCH, *SMALL, "--parts", "process", "--variants", f"{FASTEST},aiocop", env=without("aiocop"), code=1
    )
    assert done.stdout == ""
    assert "Nothing was measured, as these variants do not run:\n  aiocop: ModuleNotFoundError:" in done.stderr
    assert f"  {OURS}:" not in done.stderr
    assert "round" not in done.stderr


@pytest.mark.parametrize("variant", ["compiled", "exporting"])
def test_bench_does_not_measure_the_plain_core_as_the_compiled_one(variant, without):
    env = without("loopwatch._core")
    done = command(*BENCH, *SMALL, "--parts", "process", "--variants", f"bare,pure,{variant}", env=env, code=1)
    assert done.stdout == ""
    assert f"  {variant}: {variant} needs the compiled core, which is not built here." in done.stderr
    assert "  pure:" not in done.stderr


def test_soak():
    done = command(sys.executable, "-m", "benchmarks.soak", "--requests", "1000", "--variant", OURS)
    assert done.stderr == ""
    *_, last, summary, verdict = done.stdout.splitlines()
    assert last.startswith(f"{OURS}:     1000 requests, ")
    assert re.match(rf"{OURS}: 1000 sent, \d+ answered, 50 left, \d+ cut by a kill, 0 failed; ", summary)
    assert verdict == "All holds."
    for event in ("folder lost", "folder back", *["worker killed"] * 3):
        assert event in done.stdout


def test_soak_does_not_serve_the_plain_core_as_the_compiled_one(without):
    soak = [sys.executable, "-m", "benchmarks.soak", "--requests", "1000"]
    done = command(*soak, env=without("loopwatch._core"), code=1)
    assert done.stdout == ""
    assert "  compiled: compiled needs the compiled core, which is not built here." in done.stderr
    command(*soak, "--variant", "pure")  # whatever core this environment chooses


def test_selftest():
    selftest = [sys.executable, "-m", "loopwatch", "selftest"]
    for _ in range(2):  # a machine without a CPU to spare is taken for a loop that was held longer
        with contextlib.suppress(AssertionError):
            command(*selftest)
            return
    command(*selftest)


@pytest.mark.parametrize(
    "arguments", [["-m", "dashboards.build", "--check"], ["scripts/reference.py", "--check"]], ids=lambda a: a[-2]
)
def test_generated_files_are_what_their_command_makes(arguments):
    command(sys.executable, *arguments)


def test_reference_notices_a_page_that_differs(monkeypatch, tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("reference", ROOT / "scripts/reference.py")
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    monkeypatch.setattr(reference, "PAGE", tmp_path / "reference.md")
    monkeypatch.setattr(sys, "argv", ["reference.py"])
    assert reference.main() == 0
    monkeypatch.setattr(sys, "argv", ["reference.py", "--check"])
    assert reference.main() == 0
    reference.PAGE.write_text(reference.PAGE.read_text().replace("stall", "stale", 1))
    assert reference.main() == 1
    assert "run python scripts/reference.py" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (BENCH[1:], ["--rounds", "--variants", "--parts", "--loops", "--in-flight", "--quick", "--write"]),
        (["-m", "benchmarks.soak"], ["--requests", "--loop", "--variant"]),
        (["-m", "loopwatch"], ["selftest", "run"]),
        (["-m", "dashboards.build"], ["--check"]),
        (["scripts/reference.py"], ["--check"]),
    ],
    ids=lambda value: value[-1],
)
def test_help_names_every_option(arguments, options):
    printed = command(sys.executable, *arguments, "--help").stdout
    for option in options:
        assert re.search(rf"^  (-h, )?{option}\b|\{{.*{option}", printed, re.MULTILINE), printed


class Running:
    """A benchmark that would go on for hours, and what it printed so far."""

    def __init__(self, process, out, err):
        self.process, self._out, self._err = process, out, err

    @property
    def printed(self):
        return self._err.read_text()

    @property
    def table(self):
        return self._out.read_text()

    def children(self):
        tasks = pathlib.Path(f"/proc/{self.process.pid}/task").iterdir()
        return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]

    def wait_for_children(self, count):
        return wait_until(
            lambda: (found := self.children()) and len(found) >= count and found,
            f"{count} processes of the benchmark; it printed {self.printed}",
        )

    def wait_for_round(self):
        wait_until(lambda: "round 1 of 1000" in self.printed, f"the first round; it printed {self.printed}", 60)

    def wait_for_end(self):
        try:
            return self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the benchmark went on; it printed {self.printed}")


@pytest.fixture
def endless(tmp_path):
    """Start a benchmark that would go on for hours; end it after the test."""
    with contextlib.ExitStack() as stack:

        def start(part):
            out, err = tmp_path / "out", tmp_path / "err"
            # A shell that runs the tests in the background has them ignore Ctrl-C, and all that they start.
            arguments = ["env", "--default-signal=INT,TERM,HUP", *BENCH, *ENDLESS, "--parts", part, "--variants"]
            if part == "soak":
                arguments = [*arguments[:2], sys.executable, "-m", "benchmarks.soak", *LONG_SOAK, "--variant"]
            with out.open("w") as stdout, err.open("w") as stderr:
                process = subprocess.Popen(
                    [*arguments, OURS if part == "soak" else FASTEST], cwd=ROOT, stdout=stdout, stderr=stderr
                )
            stack.callback(stop, process)
            return Running(process, out, err)

        yield start


def is_there(pid):
    with contextlib.suppress(OSError):
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.parametrize(
    ("part", "number", "processes", "headings"),
    [
        ("process", signal.SIGINT, 2, ["asyncio, `async`", "asyncio, `def`"]),
        ("paired", signal.SIGHUP, 1, ["asyncio, `async`, one process", "asyncio, `def`, one process"]),
        ("wrk", signal.SIGTERM, 3, ["asyncio, wrk"]),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_interrupted_bench_prints_what_it_has_and_leaves_no_process(part, number, processes, headings, endless):
    if part == "wrk":
        installed("wrk", "wrk")
    bench = endless(part)
    bench.wait_for_round()
    children = bench.wait_for_children(processes)
    bench.process.send_signal(number)
    assert bench.wait_for_end() == 128 + number
    assert [pid for pid in children if is_there(pid)] == []
    columns = figures_of(bench.table)
    assert list(columns) == headings
    assert all(float(cells[overhead.VARIANTS[OURS]].split()[0]) > 0 for cells in columns.values())
    assert bench.printed.endswith(f"Interrupted by {number.name}. The table holds the rounds that were finished.\n")


def descendants(pid):
    """Return the processes that a process has started, and those that these have."""
    found = []
    with contextlib.suppress(OSError):  # it has ended meanwhile
        for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += [int(child), *descendants(child)]
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_soak_leaves_no_process(number, endless):
    soak = endless("soak")
    wait_until(lambda: " requests, " in soak.table, f"the first line; it printed {soak.printed}", 60)
    started = descendants(soak.process.pid)
    assert len(started) > 2  # a supervisor and its workers
    soak.process.send_signal(number)
    assert soak.wait_for_end() == 128 + number
    assert [pid for pid in started if is_there(pid)] == []
    assert soak.printed == f"Interrupted by {number.name}. The lines above hold what was measured.\n"


def test_bench_that_is_interrupted_before_the_first_round_says_that_it_has_nothing(endless):
    bench = endless("process")
    children = bench.wait_for_children(2)
    for _ in range(3):  # somebody in a hurry
        bench.process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    assert bench.wait_for_end() == 128 + signal.SIGINT
    assert [pid for pid in children if is_there(pid)] == []
    assert (bench.table, bench.printed) == ("", "Interrupted by SIGINT. No round was finished.\n")


def test_bench_whose_worker_dies_prints_what_it_has(endless):
    bench = endless("process")
    bench.wait_for_round()
    first, second = bench.wait_for_children(2)[:2]
    os.kill(second, signal.SIGKILL)
    assert bench.wait_for_end() == 1
    assert not is_there(first)
    assert figures_of(bench.table)
    assert re.search(r"The process of the variant '\w+' ended\. Its output stands above\.\n$", bench.printed)
