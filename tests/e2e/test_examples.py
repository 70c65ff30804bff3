"""Every example runs, shows what it claims to show, and leaves nothing behind, whatever ends it."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import importlib
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading

import httpx
import pytest
import yaml

from tests.prometheus import installed
from tests.serving import ROOT, free_port, serve, wait_until

LIVE_VIEW = [sys.executable, "examples/04_live_view.py"]
MONITORING = [sys.executable, "-m", "monitoring.run"]
ROUTES = ("/awaits", "/burns", "/queues", "/sleeps")
WAIT_SECONDS = 90
TRIES = 3


def run(*command, **env):
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT_SECONDS,
    )


# --- the apps


def test_the_quickstart_serves_its_metrics():
    with serve("01_quickstart:app", "asyncio", "--app-dir", "examples") as app:
        assert app.get("/hello/you").json() == {"hello": "you"}
        assert 'http_route="/hello/{name}"' in app.get("/metrics").text


@pytest.mark.quick_on_asyncio
def test_each_mistake_is_told_from_the_right_way(loop_kind):
    """The least of three requests each: what the machine does meanwhile only adds."""
    with serve("02_mistakes:app", loop_kind, "--app-dir", "examples") as app:

        def spent():
            return {
                (path, state): metrics.get(
                    (name, frozenset({"http_route": path, "state": state, **rest}.items())), 0.0
                )
                for metrics in (app.metrics(),)
                for path in ROUTES
                for state in ("loop_blocked", "loop_cpu")
            }

        def least(path, state):
            return min(request[path, state] for request in requests)

        name, rest = "loopwatch_request_time_seconds_total", {"http_request_method": "GET", "phase": "request"}
        before, requests = spent(), []
        for _ in range(TRIES):
            for path in ROUTES:
                app.get(path)
            now = spent()
            requests.append({key: now[key] - before[key] for key in now})
            before = now
        slept, burnt = least("/sleeps", "loop_blocked"), least("/burns", "loop_cpu")
        assert slept >= 0.15  # time.sleep sleeps no shorter
        assert burnt >= 0.149  # it burns this much by the thread's own clock
        for path in ("/awaits", "/queues"):
            assert least(path, "loop_blocked") < slept / 3
            assert least(path, "loop_cpu") < burnt / 3
        assert (
            least("/sleeps", "loop_cpu") < burnt / 3
        )  # of /burns: who computes may lose the CPU and be blocked too


def test_advice_is_to_be_had_once_work_has_waited_for_a_thread():
    with serve("02_mistakes:app", "asyncio", "--app-dir", "examples") as app:
        assert app.get("/advice").json() == []
        for _ in range(TRIES):  # a slow machine may spread the requests too far apart
            threads = [threading.Thread(target=app.get, args=("/queues",)) for _ in range(60)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            if said := app.get("/advice").json():
                break
        (advice,) = said
        assert re.match(r"pool anyio: 40 threads, \d+% of their time waiting", advice)


def test_the_worker_shows_its_own_loop_and_no_quantile_above_the_worst():
    seen = []
    for _ in range(TRIES):
        done = run(sys.executable, "examples/03_worker.py")
        busy, p99, worst = map(int, re.findall(r"\d+(?=%| ms)", done.stdout))
        assert p99 <= worst
        assert worst >= 50  # it sleeps that long
        seen.append((busy, p99))
        if 25 <= busy <= 50 and p99 >= 40:
            return
    pytest.fail(f"expected 25 to 50 % and a p99 of at least 40 ms in one of {TRIES} runs, got {seen}")


# --- the live view


def rows_of(output):
    """Return the cells of each row of the tables in an output; a row of several lines is joined."""
    tables, row = {}, None
    for line in output.splitlines():
        if not line.startswith("│"):
            continue
        cells = [cell.strip() for cell in line.strip("│").split("│")]
        if cells[0]:
            row = tables.setdefault((len(cells), cells[0]), cells)
        else:
            row[:] = [f"{a} {b}".strip() for a, b in zip(row, cells, strict=True)]
    return tables


def number(cell):
    return int(re.sub(r"\D", "", cell) or 0)


@pytest.mark.once
@pytest.mark.parametrize("loop_kind", ["asyncio", pytest.param("uvloop", marks=pytest.mark.slow)])
def test_the_live_view_shows_what_is_wrong_with_each_route_and_stops_by_itself(loop_kind):
    done = run(*LIVE_VIEW, "--seconds", "2", "--loop", loop_kind, COLUMNS="160")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.rstrip().endswith("Stopped.")
    assert re.search(r"^loopwatch measures with the (compiled|plain Python) core", done.stdout)
    rows = rows_of(done.stdout)
    ((_, p99, worst, _, _, threads, _),) = (
        row for (width, _), row in rows.items() if width == 7 and "of" in row[5]
    )
    assert threads.endswith("of 40")
    assert number(p99) <= number(worst)
    times = {path: [number(cell) for cell in rows[7, path][1:]] for path in ROUTES}
    for count, duration, _, wait, blocked, queue in times.values():
        assert count >= 1
        assert duration + 1 >= wait >= max(blocked, queue) - 1  # each is rounded to milliseconds
    queue = {path: row[-1] for path, row in times.items()}
    assert queue["/queues"] > 10
    assert sum(queue.values()) == queue["/queues"]
    blocked = {path: row[-2] for path, row in times.items()}
    assert blocked["/sleeps"] >= 150
    assert blocked["/awaits"] < blocked["/sleeps"] / 3
    finding = {path: rows[2, path][1] for path in ROUTES}
    assert re.match(r"GET /sleeps held the event loop for \d+ ms in 02_mistakes:sleeps", finding["/sleeps"])
    assert re.match(r"GET /burns held the event loop for \d+ ms in 02_mistakes:burns", finding["/burns"])
    assert re.search(r"waits \d+ ms for a free thread pool anyio: 40 threads, ", finding["/queues"])
    assert re.search(r"\d+ ms of \d+ ms are spent in await|GET /awaits held", finding["/awaits"])


def processes_of(folder):
    """Return the commands of the processes whose temporary folder this is, but for those that have ended."""
    wanted, found = f"TMPDIR={folder}".encode(), {}
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted in (process / "environ").read_bytes().split(b"\0"):
                found[int(process.name)] = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


def assert_nothing_is_left(folder):
    wait_until(lambda: not processes_of(folder), f"{list(processes_of(folder).values())} to end")
    assert list(folder.iterdir()) == []


@contextlib.contextmanager
def started(folder, *command):
    """Start an example whose processes and files can be recognized by their folder; at last kill what is left."""
    env = {**os.environ, "TMPDIR": str(folder), "PYTHONPATH": f"examples{os.pathsep}."}
    process = subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        for left in processes_of(folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(left, signal.SIGKILL)
        process.wait(WAIT_SECONDS)
        for stream in (process.stdout, process.stderr):
            stream.close()


EXIT_CODES = {signal.SIGINT: 0, signal.SIGTERM: 143, signal.SIGHUP: 129}


@pytest.mark.once
@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGINT, "the first server is started"),
        (signal.SIGTERM, "the first server is started"),
        (signal.SIGTERM, "all is running"),
        pytest.param(signal.SIGINT, "all is running", marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, "all is running", marks=pytest.mark.slow),
    ],
)
def test_a_signal_stops_the_live_view_and_all_it_started(tmp_path, number, moment):
    port = free_port()
    with started(tmp_path, *LIVE_VIEW, "--port", str(port), "--seconds", "inf") as process:
        if moment == "all is running":
            answers = lambda: "/sleeps" in httpx.get(f"http://127.0.0.1:{port}/metrics").text  # noqa: E731
            wait_until(answers, "the app to answer", WAIT_SECONDS)
        else:
            wait_until(lambda: len(processes_of(tmp_path)) > 1, "a server to be started", WAIT_SECONDS)
        process.send_signal(number)
        out, error = process.communicate(timeout=WAIT_SECONDS)
        assert (process.returncode, error) == (EXIT_CODES[number], "")
        assert out.rstrip().endswith("Stopped.")
        assert_nothing_is_left(tmp_path)


@pytest.mark.once
@pytest.mark.slow
def test_a_terminal_that_is_closed_stops_the_live_view_and_all_it_started(tmp_path):
    if shutil.which("setsid") is None:
        pytest.skip("no `setsid` here, which gives a process a terminal of its own")
    port = free_port()
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    command = ["setsid", "--ctty", *LIVE_VIEW, "--port", str(port), "--seconds", "inf"]
    mine, its = os.openpty()
    os.set_blocking(mine, False)
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdin=its, stdout=its, stderr=its)
    os.close(its)

    def shows_the_table():
        with contextlib.suppress(BlockingIOError):
            shown.append(os.read(mine, 65536))  # a terminal that nobody reads is full at some time
        return b"/sleeps" in b"".join(shown)

    shown = []
    try:
        wait_until(shows_the_table, "the tables on the terminal", WAIT_SECONDS)
        os.close(mine)
        assert process.wait(WAIT_SECONDS) == 129
        assert_nothing_is_left(tmp_path)
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.once
def test_the_servers_of_a_live_view_that_is_killed_end_too(tmp_path, servers):
    if not servers._dies_with_its_parent():
        pytest.skip("no `setpriv --pdeathsig` here")
    port = free_port()
    with started(tmp_path, *LIVE_VIEW, "--port", str(port)) as process:
        wait_until(lambda: httpx.get(f"http://127.0.0.1:{port}/metrics"), "the app to answer", WAIT_SECONDS)
        process.kill()
        wait_until(lambda: not processes_of(tmp_path), "its servers to end")


@pytest.mark.once
def test_the_live_view_ends_when_nobody_reads_its_output_any_more(tmp_path):
    with started(tmp_path, *LIVE_VIEW, "--seconds", "inf") as process:
        assert process.stdout.readline().startswith("loopwatch measures with the ")
        process.stdout.close()
        assert process.wait(WAIT_SECONDS) == 128 + signal.SIGPIPE
        assert process.stderr.read() == ""
        assert_nothing_is_left(tmp_path)


class Page(http.server.BaseHTTPRequestHandler):
    """What some other program answers."""

    def do_GET(self):
        body = b"<!DOCTYPE HTML><p>Welcome"
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def other_program(kind):
    """Occupy a port, as a web server or silently; yield it."""
    if kind == "silent":
        with socket.create_server(("127.0.0.1", 0)) as server:
            yield server.getsockname()[1]
        return
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.once
@pytest.mark.parametrize("kind", ["silent", "web"])
def test_a_port_that_is_taken_is_refused_in_one_line(kind):
    with other_program(kind) as port:
        done = run(*LIVE_VIEW, "--port", str(port))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"Port {port} of 127.0.0.1 cannot be used (Address already in use); expected a free port. "
        "Give --port another one, or leave it out: then a free one is picked.\n"
    )


@pytest.fixture
def example(monkeypatch):
    """Return a function that imports an example, which imports from its own folder."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    return importlib.import_module


@pytest.fixture
def servers(example):
    return example("monitoring.servers")


@pytest.fixture
def live_view(example):
    return example("04_live_view")


@pytest.mark.once
@pytest.mark.blocks
@pytest.mark.parametrize("kind", ["silent", "web"])
def test_a_port_that_is_taken_at_the_last_moment_ends_the_live_view(
    live_view, servers, monkeypatch, tmp_path, kind
):
    from rich.console import Console

    with other_program(kind) as port, servers.Stopping() as stopping:
        monkeypatch.setattr(servers, "usable_port", lambda *_: port)
        monkeypatch.setattr(live_view, "SCRAPE_SECONDS", 1.0)
        monkeypatch.setattr(shutil, "which", lambda _: None)
        options = live_view.arguments([])
        console = Console(file=servers.Output(stopping))
        with pytest.raises(servers.Failed) as failure:
            live_view.run(options, stopping, tmp_path, console)
    ended = r"app ended \(exit code \d+\); its log says:\n.*address already in use"
    page = r"/metrics answers 200 with '<!DOCTYPE HTML><p>Welcome'; expected metrics in Prometheus's text format"
    assert re.search(ended if kind == "silent" else f"{ended}|{page}", str(failure.value), re.DOTALL)


@pytest.mark.parametrize(
    ("option", "values", "expected"),
    [
        (
            "--seconds",
            ["0", "-1", "nan", "soon", ""],
            "expected a number of seconds above 0, such as 20, or inf, got ",
        ),
        (
            "--port",
            ["99999", "-1", "80.5", "http"],
            "expected a port from 0 to 65535, where 0 picks a free one, got ",
        ),
        ("--loop", ["trio"], "asyncio"),
    ],
)
def test_the_live_view_refuses_bad_options_in_plain_words(live_view, capsys, option, values, expected):
    for value in values:
        with pytest.raises(SystemExit) as ended:
            live_view.arguments([option, value])
        assert ended.value.code == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert f"argument {option}: " in error
        assert expected in error
        assert repr(value) in error


def test_the_live_view_accepts_good_options(live_view):
    options = live_view.arguments(["--seconds", "inf", "--port", "65535"])
    assert (options.seconds, options.port) == (float("inf"), 65535)


def test_the_newest_line_of_each_culprit_is_shown_however_many_others_there_are(live_view, tmp_path):
    log = tmp_path / "app.log"
    lines = [
        "loopwatch: GET /sleeps held the event loop for 310 ms",
        "loopwatch: GET /sleeps held the event loop for 151 ms",
        *(f"loopwatch: GET /burns held the event loop for {number} ms" for number in range(150, 170)),
        "loopwatch: a callback held the event loop for 200 ms",
        "  a line of something else",
    ]
    log.write_text("\n".join(lines))
    assert live_view.newest_stalls(log) == {
        "/sleeps": "GET /sleeps held the event loop for 151 ms",
        "/burns": "GET /burns held the event loop for 169 ms",
        "(others)": "a callback held the event loop for 200 ms",
    }


def test_no_quantile_of_a_page_is_above_the_worst_on_it(live_view):
    page = live_view.Page(
        """# TYPE loopwatch_loop_lag_seconds histogram
loopwatch_loop_lag_seconds_bucket{le="0.25"} 290
loopwatch_loop_lag_seconds_bucket{le="0.5"} 500
loopwatch_loop_lag_seconds_bucket{le="+Inf"} 500
# TYPE loopwatch_loop_lag_max_seconds gauge
loopwatch_loop_lag_max_seconds 0.46
"""
    )
    assert page.lag().quantile(1.0) == 0.46
    assert page.lag().quantile(0.99) == pytest.approx(0.455)


# --- how the examples stop their servers


def test_ctrl_c_while_a_server_is_made_leaves_none_behind(servers, monkeypatch, tmp_path):
    made = []

    class Interrupted(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            made.append(self)
            signal.raise_signal(signal.SIGINT)

    servers._dies_with_its_parent()  # it starts a process the first time
    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    try:
        with servers.Stopping() as stopping, servers.running("server", command, tmp_path):
            assert made[0].poll() is None
        assert made[0].poll() == -signal.SIGTERM
        assert stopping.number == signal.SIGINT
    finally:
        made[0].kill()
        made[0].wait()


def test_a_signal_that_came_before_the_work_is_not_lost(servers):
    async def works():
        await asyncio.Event().wait()

    with servers.Stopping() as stopping:
        signal.raise_signal(signal.SIGTERM)
        stopping.run(works())
        signal.raise_signal(signal.SIGINT)
    assert (stopping.number, stopping.exit_code) == (signal.SIGTERM, 143)


def test_a_signal_that_was_ignored_stays_ignored(servers):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with servers.Stopping() as stopping:
            signal.raise_signal(signal.SIGHUP)
        assert stopping.number is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_ctrl_c_that_is_lost_in_some_task_ends_the_work_all_the_same(servers):
    lost = []

    async def loses_it():
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            lost.append(True)
        await asyncio.Event().wait()

    async def work():
        task = asyncio.create_task(loses_it())
        await asyncio.sleep(0)
        signal.raise_signal(signal.SIGINT)
        await task

    with servers.Stopping() as stopping:
        stopping.run(work())  # where it is not ended, the test's own timeout ends it
    assert lost


def test_a_failure_of_the_work_is_raised(servers):
    async def fails():
        raise OSError("theirs")

    with servers.Stopping() as stopping, pytest.raises(OSError, match="theirs"):
        stopping.run(fails())


def test_a_server_that_ends_shows_its_log(servers, tmp_path):
    command = [sys.executable, "-c", "print('no room'); raise SystemExit(3)"]
    with servers.running("server", command, tmp_path) as server:
        wait_until(server.has_ended, "the server to end")
        assert server.why_it_ended() == "server ended (exit code 3); its log says:\nno room"


def test_a_server_that_does_not_heed_is_killed_with_what_it_started(servers, monkeypatch, tmp_path):
    monkeypatch.setattr(servers, "STOP_SECONDS", 0.1)
    ignores = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    code = f"{ignores}; print('deaf', flush=True); time.sleep(600)"
    with servers.running("server", [sys.executable, "-c", code], tmp_path) as server:
        wait_until(lambda: "deaf" in server.log.read_text(), "it to ignore the signal")
    assert server._process.returncode == -signal.SIGKILL


# --- the monitoring example


@pytest.mark.once
@pytest.mark.slow
def test_the_monitoring_example_makes_its_alerts_fire_by_itself_and_stops_all_of_it(tmp_path):
    installed("prometheus", "prometheus")
    installed("prometheus-alertmanager", "prometheus-alertmanager")
    with started(tmp_path, *MONITORING, "--quick") as process:
        lines = []
        reader = threading.Thread(target=lambda: lines.extend(iter(process.stdout.readline, "")))
        lines_until = lambda text: any(text in line for line in lines)  # noqa: E731
        reader.start()
        for text in (
            "Gallery http://127.0.0.1:",
            "with the ",
            "--quick",
            "FIRING LoopwatchRouteBlocksLoop (warning)",
        ):
            wait_until(
                lambda text=text: process.poll() is not None or lines_until(text), f"{text!r} in {lines}", 120
            )
        assert process.poll() is None, process.stderr.read()
        wait_until(lambda: lines_until("Declare the route with `def`"), "what to do")
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_SECONDS) == 143
        reader.join(WAIT_SECONDS)
        assert lines[-1] == "Stopped.\n"
        assert process.stderr.read() == ""
        assert_nothing_is_left(tmp_path)


@pytest.mark.once
@pytest.mark.parametrize("option", ["--port", "--prometheus-port", "--alertmanager-port"])
def test_a_port_of_the_monitoring_example_that_is_taken_is_refused_in_one_line(option, tmp_path):
    installed("prometheus", "prometheus")
    installed("prometheus-alertmanager", "prometheus-alertmanager")
    with other_program("silent") as port, started(tmp_path, *MONITORING, option, str(port)) as process:
        out, error = process.communicate(timeout=WAIT_SECONDS)
        assert (process.returncode, out) == (1, "")
        assert f"Port {port} of 127.0.0.1 cannot be used" in error
        assert f"Give {option} another one" in error
        assert error.count("\n") == 1
        assert_nothing_is_left(tmp_path)


@pytest.mark.once
def test_the_monitoring_example_says_what_is_missing_and_how_long_it_takes():
    environment = {"PYTHONPATH": f"examples{os.pathsep}."}
    done = run(*MONITORING, PATH="/nowhere", **environment)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("No prometheus on the PATH. On Debian: apt-get install ")
    done = run(*MONITORING, "--help", **environment)
    assert done.returncode == 0
    assert "5 to 15 minutes" in " ".join(done.stdout.split())
    assert "--quick" in done.stdout


def test_the_composed_example_makes_a_load_too():
    services = yaml.safe_load((ROOT / "examples/monitoring/compose.yml").read_text())["services"]
    assert services["load"]["image"] == services["gallery"]["image"]
    assert services["load"]["command"] == [
        "python",
        "/loopwatch/examples/monitoring/load.py",
        "http://127.0.0.1:8000",
    ]


# --- what belongs to the examples


def test_the_script_of_the_monitoring_example_can_be_read_by_bash():
    assert run("bash", "-n", "examples/monitoring/run.sh").returncode == 0


def test_an_image_gets_nothing_that_git_ignores():
    taken = (ROOT / ".dockerignore").read_text().splitlines()
    ignored = [*(ROOT / ".gitignore").read_text().splitlines(), "node_modules/"]
    assert {f"**/{pattern.rstrip('/')}" for pattern in ignored} <= set(taken)
    assert ".git" in taken


def test_the_readme_installs_what_there_is():
    """Nothing has been released: only a clone can be installed."""
    readme = (ROOT / "README.md").read_text()
    assert not re.search(r"pip install '?loopwatch", readme)
    assert "pip install ./loopwatch" in readme


def test_examples_are_numbered():
    assert all(re.match(r"\d\d_", path.name) for path in (ROOT / "examples").glob("*.py"))
