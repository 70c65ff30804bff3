"""However the interpreter is started, importing loopwatch raises and warns of nothing, and an app is measured."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.serving import ROOT

MEASURES_A_REQUEST_A_PAGE_AND_A_STALL = """
import sys
ROOT, *ABSENT = sys.argv[1:]
sys.path.insert(0, ROOT)

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
import loopwatch
import asyncio, logging, time, warnings
logging.disable()

async def app(scope, receive, send):
    await asyncio.sleep(0)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})

config = loopwatch.Config(opentelemetry="opentelemetry" not in ABSENT)
if "fastapi" in ABSENT:
    served = loopwatch.LoopWatchMiddleware(app, config)
    watch = served.watch
else:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of others
        import fastapi
    served = fastapi.FastAPI()
    served.get("/")(lambda: "hello")
    watch = loopwatch.install(served, config)

async def main():
    bodies = []
    async def send(message):
        bodies.append(message.get("body", b""))
    for path in ("/", "/metrics"):
        scope = {"type": "http", "method": "GET", "path": path, "headers": [], "query_string": b"", "root_path": ""}
        await served(scope, asyncio.Future, send)
    end = time.thread_time() + 0.15
    while time.thread_time() < end:
        pass
    give_up_at = time.monotonic() + 30
    while not watch.stalls and time.monotonic() < give_up_at:
        await asyncio.sleep(0.01)
    watch.stop()
    return b"".join(bodies), watch.failures.read()

factory = None
if "uvloop" not in ABSENT:
    import uvloop
    factory = uvloop.new_event_loop
with asyncio.Runner(loop_factory=factory) as runner:
    body, failures = runner.run(main())
if b"hello" not in body or b"loopwatch_request_active" not in body:  # `assert` is nothing to `python -O`
    raise SystemExit(body)
import loopwatch.hot
print(failures, len(watch.stalls) > 0, loopwatch.hot.CORE)
"""


def serve(flags, absent=(), before="", **environment):
    """Return what a program that serves an app prints and what it writes to its error stream."""
    done = subprocess.run(
        [sys.executable, *flags, "-c", before + MEASURES_A_REQUEST_A_PAGE_AND_A_STALL, str(ROOT), *absent],
        cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr


@pytest.mark.parametrize(
    "absent",
    [
        (),
        ("uvloop",),
        pytest.param(("uvloop", "fastapi", "starlette", "anyio", "opentelemetry"), id="all"),
        pytest.param(("fastapi", "opentelemetry"), marks=pytest.mark.slow),
    ],
)
def test_nothing_warns_with_or_without_what_is_optional(absent):
    said, errors = serve(["-bb", "-X", "warn_default_encoding", "-W", "error"], absent)
    assert said.startswith("{} True")
    assert errors == ""


FLAGS = [["-I"], ["-O"], ["-OO"], ["-P"], ["-X", "importtime"], ["-X", "dev", "-W", "error"], ["-X", "tracemalloc"]]


@pytest.mark.slow
@pytest.mark.parametrize("flags", FLAGS, ids=" ".join)
def test_it_measures_whatever_the_interpreter_is_asked_for(flags):
    assert serve(flags)[0].startswith("{} True")


WITHOUT_THE_GIL = """
import os, sys
class Compiled:
    def find_spec(self, name, path=None, target=None):
        if name == "loopwatch._core":
            os._exit(3)  # to import it would switch the GIL on
sys.meta_path.insert(0, Compiled())
sys._is_gil_enabled = lambda: False
def refused(): raise AssertionError("the frames of threads that run are read")
sys._current_frames = refused
"""


def test_without_the_gil_the_plain_core_measures_and_no_frame_is_read():
    said, errors = serve(["-W", "error"], before=WITHOUT_THE_GIL)
    assert (said, errors) == ("{} True plain", "")


REFUSED = """
import sys
class Warns:
    def find_spec(self, name, path=None, target=None):
        if name in {"loopwatch._core", "loopwatch._lookout"}:
            raise RuntimeWarning("The GIL has been enabled to load the module")
sys.meta_path.insert(0, Warns())
"""


@pytest.mark.skipif("os.environ.get('LOOPWATCH_PURE')")
def test_a_compiled_core_whose_import_warns_costs_no_app_its_start():
    assert serve(["-W", "error"], before=REFUSED)[0] == "{} True plain"
