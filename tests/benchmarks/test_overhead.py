"""What can be wrong with a benchmark is found before it measures, and what it measured is never lost."""

from __future__ import annotations

import os
import re
import signal

import pytest

from benchmarks import children, overhead, paired
from benchmarks.plan import Plan, Progress, cell


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--parts", "nonsense"],
            "--parts takes any of process, paired, wrk, instructions, each once, got 'nonsense'",
        ),
        (["--parts", "process,process"], "--parts takes any of"),
        (["--parts", ""], "--parts takes any of"),
        (["--variants", "bare,nonsense"], "--variants takes any of bare, again,"),
        (["--variants", "bare,bare"], "--variants takes any of bare, again,"),
        (["--variants", "again,bare"], "--variants takes 'bare' and then at least one other, got 'again,bare'"),
        (["--variants", "bare"], "--variants takes 'bare' and then at least one other, got 'bare'"),
        (["--rounds", "0"], "--rounds must be at least 1, got 0"),
        (["--rounds", "many"], "argument --rounds: invalid int value: 'many'"),
        (["--in-flight", "0"], "--in-flight takes numbers of 1 or more, each once, got '0'"),
        (["--in-flight", "4,4"], "--in-flight takes numbers"),
        (["--in-flight", "-1"], "--in-flight"),
        (["--loops", "trio"], "--loops takes any of asyncio, uvloop, each once, got 'trio'"),
        (
            ["--parts", "process,paired", "--variants", "bare,again"],
            "paired measures compiled or pure only: name one",
        ),
        (["--quick", "--write"], "leave out --quick"),
    ],
)
def test_wrong_option_is_refused_before_anything_starts(arguments, sentence, capsys, monkeypatch):
    monkeypatch.setattr(children, "start", lambda *_, **__: pytest.fail("a process was started"))
    with pytest.raises(SystemExit) as refusal:
        overhead.main(arguments)
    assert refusal.value.code == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(("part", "binary"), [("wrk", "wrk"), ("instructions", "valgrind")])
def test_missing_binary_is_named_before_anything_starts(part, binary, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit) as refusal:
        overhead.main(["--parts", f"process,{part}"])
    assert refusal.value.code == 2
    assert (
        f"{part} needs {binary}: apt-get install {binary}, or leave {part} out of --parts"
        in capsys.readouterr().err
    )


def test_table_replaces_only_what_stands_between_the_markers():
    text = f"before\n{overhead.BEGIN}old\n{overhead.END}after\n"
    assert overhead.with_table(text, "new\n") == f"before\n{overhead.BEGIN}new\n{overhead.END}after\n"


@pytest.mark.parametrize(
    "text",
    ["", overhead.BEGIN, overhead.END, overhead.END + overhead.BEGIN],
    ids=["no", "begin", "end", "reversed"],
)
def test_file_without_both_markers_is_refused(text, tmp_path):
    file = tmp_path / "README.md"
    file.write_text(text)
    with pytest.raises(children.BenchmarkError, match="It has no lines <!-- benchmark --> and"):
        overhead.check_file(file)
    assert file.read_text() == text


def test_file_that_cannot_be_written_is_refused(tmp_path):
    for file, reason in ((tmp_path / "missing.md", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(children.BenchmarkError, match=reason):
            overhead.check_file(file)


def test_the_projects_own_readme_takes_the_table():
    overhead.check_file(overhead.README)


@pytest.fixture
def small(monkeypatch):
    """A benchmark whose only part is the test's, with the signals of before at its end."""
    before = {number: signal.getsignal(number) for number in children.SIGNALS}
    monkeypatch.setattr(overhead, "check_variants", lambda _plan: None)

    def with_part(part):
        monkeypatch.setitem(overhead.PARTS, "process", part)
        return lambda *further: overhead.main(["--parts", "process", "--variants", "bare,pure", *further])

    yield with_part
    for number, handler in before.items():
        signal.signal(number, handler)


ROUND = Progress("round 1 of 2", {"column": {"bare": "1.00", "pure": "1.23"}})


@pytest.mark.parametrize("number", children.SIGNALS)
def test_interrupted_benchmark_prints_the_table_of_finished_rounds(number, small, capsys):
    for one in children.SIGNALS:
        signal.signal(one, signal.SIG_DFL)

    def part(_plan):
        yield ROUND
        os.kill(os.getpid(), number)
        pytest.fail("the benchmark went on")

    assert small(part)() == 128 + number
    out, err = capsys.readouterr()
    assert "| loopwatch, pure Python | 1.23 |" in out
    assert f"Interrupted by {number.name}. The table holds the rounds that were finished." in err


def test_failure_of_a_variant_prints_the_table_of_finished_rounds(small, capsys):
    def part(_plan):
        yield ROUND
        raise children.BenchmarkError("It ended.")

    assert small(part)() == 1
    out, err = capsys.readouterr()
    assert "| loopwatch, pure Python | 1.23 |" in out
    assert err.endswith("It ended.\n")


def test_mistake_in_the_benchmark_itself_prints_the_table_of_finished_rounds(small, capsys):
    def part(_plan):
        yield ROUND
        raise TypeError("'str' object is not callable")

    with pytest.raises(TypeError):
        small(part)()
    assert "| loopwatch, pure Python | 1.23 |" in capsys.readouterr().out


def test_each_round_is_printed_as_it_ends(small, capsys):
    printed = []

    def part(_plan):
        yield ROUND
        printed.append(capsys.readouterr().err)

    assert small(part)() == 0
    assert printed == ["round 1 of 2\n    column: pure 1.23\n"]


def test_markers_that_vanish_while_it_measures_do_not_lose_the_table(small, capsys, tmp_path):
    file = tmp_path / "README.md"
    file.write_text(overhead.BEGIN + overhead.END)

    def part(_plan):
        yield ROUND
        file.write_text("rewritten meanwhile")

    assert small(part)("--write", str(file)) == 1
    assert "| loopwatch, pure Python | 1.23 |" in capsys.readouterr().out
    assert file.read_text() == "rewritten meanwhile"


def test_signal_while_a_process_starts_waits_until_that_is_recorded(small):
    for one in children.SIGNALS:
        signal.signal(one, signal.SIG_DFL)
    children.raise_on_signals()
    reached = []

    def start():
        with children._signals_held():
            os.kill(os.getpid(), signal.SIGTERM)
            reached.append("recorded")
        reached.append("the signal was lost")

    with pytest.raises(children.Interrupted):
        start()
    assert reached == ["recorded"]


def test_ignored_signal_stays_ignored(small):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    children.raise_on_signals()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_table_of_pairs_has_a_cell_for_each_variant_that_was_paired(monkeypatch):
    found = {f"{route} {at_once}": (1.5, 1.0) for route in paired.REQUESTS for at_once in (1, 4)}
    monkeypatch.setattr(paired, "pairs_in_new_process", lambda *_: found)
    plan = Plan(("bare", "again", "pure", "aiocop"), rounds=2, loops=("asyncio",), in_flight=(1, 4))
    *_, last = paired.measure(plan)
    assert last.done == "asyncio: pairs of pure, round 2 of 2"
    assert last.columns == {
        f"asyncio, `{route}`, one process": {"again": cell([1.0]), "pure": cell([1.5])} for route in paired.REQUESTS
    }
    assert re.findall(r"\| aiocop \|.*", overhead.table(plan.variants, last.columns)) == ["| aiocop |  |  |"]


def test_command_that_takes_too_long_is_ended():
    with pytest.raises(children.BenchmarkError, match=r"'bare': sleep did not end within 0 s"):
        children.output_of(["sleep", "60"], "bare", 0.1)
    assert not children._alive


def test_command_that_fails_is_reported():
    with pytest.raises(children.BenchmarkError, match=r"'bare': false failed with 1"):
        children.output_of(["false"], "bare", 30)
