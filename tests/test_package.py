"""The public surface, and what importing it does not do."""

from __future__ import annotations

import subprocess
import sys

import loopwatch

PUBLIC = {
    "Advice", "Config", "HistogramReading", "Hold", "LoopReading", "LoopWatch", "LoopWatchMiddleware",
    "PoolReading", "PoolStall", "RouteReading", "Snapshot", "Stall", "__version__", "install",
}  # fmt: skip

PURITY = """
import asyncio, selectors, sys, threading, _thread
patched = lambda: (asyncio.Task, asyncio.new_event_loop, asyncio.to_thread, selectors.DefaultSelector.select)
before = patched()
import os
class Watched(dict):
    def __getitem__(self, key): reads.append(key); return super().__getitem__(key)
    def get(self, key, default=None): reads.append(key); return super().get(key, default)
    def __iter__(self): reads.append("*"); return super().__iter__()
    def __contains__(self, key): reads.append(key); return super().__contains__(key)
reads = []
os.environ = Watched(os.environ)
import loopwatch
assert threading.active_count() == 1, threading.enumerate()
assert patched() == before
third_party = {"prometheus_client", "opentelemetry", "starlette", "fastapi", "anyio", "uvloop"}
heavy = third_party & set(sys.modules)
assert not heavy, heavy
assert not [key for key in reads if "LOOPWATCH" in str(key) and key != "LOOPWATCH_PURE" or key == "*"], reads
"""


def test_the_public_names_are_pinned():
    assert set(loopwatch.__all__) == PUBLIC
    assert all(hasattr(loopwatch, name) for name in PUBLIC)


def test_import_starts_nothing_patches_nothing_and_loads_no_third_party():
    done = subprocess.run([sys.executable, "-c", PURITY], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_plain_core_leaves_a_cython_that_is_installed_alone(tmp_path):
    (tmp_path / "cython.py").write_text("raise RuntimeError('only the compiler is to know it')")
    code = "import sys; sys.path.insert(0, sys.argv[1]); from loopwatch import core; core.Request.status.__set__"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
