"""The folder that workers share may vanish, fill up or hold rubbish: the app serves on, and so do its pages."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.serving import ROOT

APP = """
import asyncio, atexit, logging, os, pathlib, shutil, sys, time
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
atexit.register(time.sleep, 0.1)  # somebody else's, called after what loopwatch registers
import loopwatch
FOLDER = pathlib.Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])

async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})

watched = loopwatch.LoopWatchMiddleware(app)

async def get(path):
    messages = []
    async def send(message):
        messages.append(message)
    scope = {"type": "http", "method": "GET", "path": path, "headers": [], "query_string": b""}
    await watched(scope, None, send)
    return messages[0]["status"], messages[1]["body"].decode()

async def counted():
    await get("/")
    await asyncio.sleep(0.01)
    status, page = await get("/metrics")
    (line,) = [one for one in page.splitlines() if one.startswith("loopwatch_request_duration_seconds_count")]
    return status, float(line.rsplit(" ", 1)[1])

async def main():
"""


def run_app(folder, main, *before):
    """Run the lines of ``main`` in an app; return what it printed, and what loopwatch said of the folder."""
    done = subprocess.run(
        [*before, sys.executable, "-c", APP + main + "\nasyncio.run(main())"],
        cwd=ROOT, env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout, [line for line in done.stderr.splitlines() if "metrics are" in line or "cannot be" in line]


WRITES_ALL_THE_TIME = """
    from loopwatch.exporters.prometheus import workers
    workers.WRITE_SECONDS, workers.Workers.stop = 0.001, lambda self: None
"""
"""The thread goes on until the process ends, in the middle of whatever it does."""

LOST_AND_FOUND = """
    print(*await counted())
    shutil.rmtree(FOLDER)
    {instead}
    print(*await counted())
    print(*await counted())
    {again}
    FOLDER.mkdir()
    print(*await counted())
    print(sorted(one.name.split("_")[0] for one in FOLDER.iterdir()))
"""


@pytest.mark.parametrize(("instead", "again"), [("", ""), ("FOLDER.write_text('')", "FOLDER.unlink()")])
def test_metrics_go_on_without_the_folder_and_come_back_with_it(tmp_path, instead, again):
    folder = tmp_path / "workers"
    folder.mkdir()
    printed, said = run_app(folder, LOST_AND_FOUND.format(instead=instead, again=again))
    *counts, files = printed.splitlines()
    assert counts == ["200 1.0", "200 2.0", "200 3.0", "200 4.0"]
    assert files == "['counter', 'gauge', 'gauge', 'gauge', 'histogram']"
    lost, found = said
    assert f"cannot be written to PROMETHEUS_MULTIPROC_DIR {str(folder)!r}" in lost
    assert found.endswith("again")


def test_files_that_somebody_removes_are_there_again_with_the_next_page(tmp_path):
    printed, said = run_app(tmp_path, """
    print(*await counted())
    for file in FOLDER.iterdir():
        file.unlink()
    print(*await counted())
""")  # fmt: skip
    assert printed.splitlines() == ["200 1.0", "200 2.0"]
    assert said == []


@pytest.mark.parametrize("folder", ["/no/such/folder", __file__])
def test_an_app_starts_though_the_folder_cannot_be_used(folder):
    counted_twice = "    print(*await counted())\n    print(*await counted())"
    printed, said = run_app(folder, WRITES_ALL_THE_TIME + counted_twice)
    assert printed.splitlines() == ["200 1.0", "200 2.0"]
    (line,) = said
    assert repr(folder) in line


def test_pools_that_are_made_for_each_call_are_counted_on_when_nothing_of_them_lives(tmp_path):
    printed, said = run_app(tmp_path, """
    import anyio, gc
    await counted()
    for _ in range(3):
        for _ in range(2):
            await anyio.to_thread.run_sync(len, "", limiter=anyio.CapacityLimiter(1))
        gc.collect()
        _, page = await get("/metrics")
        names = "loopwatch_threadpool_run_duration_seconds_count", "loopwatch_threadpool_limit"
        lines = [line for line in page.splitlines() if "limiter:" in line and line.startswith(names)]
        print(*(f"{line.split('{')[0]} {line.split()[-1]}" for line in lines))
""")  # fmt: skip
    expected = [f"loopwatch_threadpool_run_duration_seconds_count {count}.0" for count in (2, 4, 6)]
    lines = printed.splitlines()
    assert [next(each for each in expected if each in line) for line in lines] == expected
    assert all(line.count("loopwatch_threadpool_limit 0.0") == 1 for line in lines)
    assert said == []


def test_a_folder_without_a_name_is_none(tmp_path):
    printed, said = run_app("", "    print(*await counted())")
    assert (printed, said) == ("200 1.0\n", [])


def test_a_full_disk_kills_nobody(tmp_path):
    """Where files are mapped into memory, SIGBUS ends who writes to a page for which the disk has no room."""
    mount = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs -o size=256k tmpfs {tmp_path} && exec "$@"', "sh"]
    if not shutil.which("unshare") or subprocess.run([*mount, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no filesystem can be mounted here: that needs root")
    printed, said = run_app(tmp_path, """
    print(*await counted())
    for file in FOLDER.iterdir():
        file.unlink()
    filler = FOLDER / "filler"
    try:
        with filler.open("wb") as file:
            while True:
                file.write(bytes(4096)), file.flush()
    except OSError:
        pass
    print(*await counted())
    filler.unlink()
    print(*await counted())
""", *mount)  # fmt: skip
    assert printed.splitlines() == ["200 1.0", "200 2.0", "200 3.0"]
    assert len(said) == 2


@pytest.mark.parametrize(
    "rubbish", [b"\xff" * 64, b"\x40" + bytes(7) + b"\xff" * 60, bytes(3)], ids=["all", "entries", "short"]
)
@pytest.mark.parametrize("name", ["counter_1.db", "gauge_livesum_1.db", "rubbish.db"])
def test_a_file_that_cannot_be_read_is_named_once_and_left_out(tmp_path, name, rubbish):
    (tmp_path / name).write_bytes(rubbish)
    printed, said = run_app(tmp_path, "    print(*await counted())\n    print(*await counted())")
    assert printed.splitlines() == ["200 1.0", "200 2.0"]
    assert len(said) <= 1
    assert all(str(tmp_path / name) in line for line in said)


def test_a_worker_that_has_the_number_of_one_that_ended_adds_to_its_counters(tmp_path):
    for _ in range(2):
        run_app(tmp_path, "    print(*await counted())\n    watched.watch.stop()")
    for file in tmp_path.iterdir():  # as if both had had it
        kind, token, _ = file.stem.rsplit("_", 2)
        file.rename(tmp_path / f"{kind}_{token}_{os.getpid()}.db")
    printed, _ = run_app(tmp_path, "    print(*await counted())")
    assert printed == "200 3.0\n"


@pytest.mark.parametrize(
    "lose", ["os.rmdir(FOLDER)", "os.symlink('workers', FOLDER / 'workers')"], ids=["removed", "in circles"]
)
def test_a_folder_that_leads_nowhere_is_no_failure_of_the_app(tmp_path, lose):
    folder = tmp_path / "folder"
    folder.mkdir()
    printed, said = run_app(folder, f"""
    global watched
    os.chdir(FOLDER)
    {lose}
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = "workers"
    watched.watch.stop()
    watched = loopwatch.LoopWatchMiddleware(app)
    print(*await counted())
""")  # fmt: skip
    assert printed == "200 1.0\n"
    assert "metrics cannot be written to" in said[-1]


def test_no_file_is_left_half_done(tmp_path):
    """Neither by the thread that ends with the process, nor by a worker that is killed."""
    (tmp_path / f"loopwatch-00000000_{ended_process()}.partial").touch()
    run_app(tmp_path, WRITES_ALL_THE_TIME + """
    replace = pathlib.Path.replace
    def replace_slowly(*its):
        time.sleep(0.05)
        replace(*its)
    pathlib.Path.replace = replace_slowly
    print(*await counted())
""")  # fmt: skip
    assert list(tmp_path.iterdir())
    assert not list(tmp_path.glob("*.partial"))


def ended_process():
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_prometheus_client_reads_what_is_written(tmp_path):
    printed, _ = run_app(tmp_path, """
    await get("/")
    await asyncio.sleep(0.01)
    watched.watch.prometheus._workers._write_or_say_why()
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.multiprocess import MultiProcessCollector
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    print(generate_latest(registry).decode())
""")  # fmt: skip
    families = {family.name: family for family in text_string_to_metric_families(printed)}
    assert families["loopwatch_loop_lag_max_seconds"].type == "gauge"
    assert families["loopwatch_loop_iterations"].samples[0].value > 0
    duration = families["loopwatch_request_duration_seconds"]
    infinite = [one.value for one in duration.samples if one.labels.get("le") == "+Inf"]
    assert infinite == [1.0]
