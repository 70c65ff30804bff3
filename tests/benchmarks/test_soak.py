"""The soak knows how many requests there were, whatever became of them, and names each promise that is not kept."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter

import pytest
import uvicorn

from benchmarks import soak, soak_app
from benchmarks.soak import Soaked, counted, faults
from benchmarks.soak_load import IN_FLIGHT, MIX, Load, Outcome
from loopwatch.hot import COMPILED
from tests.serving import free_port
from tests.waiting import until

OURS = "compiled" if COMPILED else "pure"
REQUESTS = 1000


@contextlib.asynccontextmanager
async def served(app, port):
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", lifespan="on"))
    serving = asyncio.ensure_future(server._serve())
    try:
        await until(lambda: server.started or serving.done(), "the server")
        yield
    finally:
        server.should_exit = True
        await serving


@pytest.mark.blocks  # it makes the app, and reads files
@pytest.mark.parametrize("variant", ["bare", OURS])
def test_each_request_of_the_load_is_counted_whatever_becomes_of_it(variant, tmp_path):
    expected = {kind: REQUESTS * MIX.count(kind) // len(MIX) for kind in soak_app.KINDS}

    async def main():
        app, port = soak_app.build_soaked(variant, tmp_path), free_port()
        (file,) = tmp_path.iterdir()
        load = Load(port)
        async with served(app, port):
            await load.make(REQUESTS // 2)
            await load.make(REQUESTS - REQUESTS // 2)
            await until(lambda: soak_app.ended(file) == expected, "the requests whose clients have gone")
            status, page = await load.get("/metrics")
            load.close()
        return load.outcome, status, counted(page)

    outcome, status, told = asyncio.run(main())
    assert outcome.sent == expected
    assert outcome.answered == {kind: number for kind, number in expected.items() if kind != "left"}
    assert (outcome.cut, outcome.failed) == (0, {})
    assert (status, told) == ((404, {}) if variant == "bare" else (200, expected))


def test_the_mix_has_its_shares():
    assert (len(MIX), Counter(MIX)) == (20, {"async": 15, "cancelled": 2, "def": 2, "left": 1})


def soaked(**changes):
    """Return a soak in which everything was kept."""
    made = Counter(dict.fromkeys(soak_app.KINDS, 100))
    kept = {"ended": made, "counted": made.copy(), "resident_kb": [50_000] * soak.PARTS}
    return Soaked(**{**kept, **changes})


def test_nothing_is_said_where_everything_holds():
    assert faults(soaked(), soaked()) == []


FEWER, MORE = (Counter({**dict.fromkeys(soak_app.KINDS, 100), "left": number}) for number in (97, 102))
GROWING = [50_000] * 12 + [52_000] * (soak.PARTS - 12)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"counted": FEWER}, "Of 100 requests to /left, 3 are not counted. Killed workers may lose 0"),
        ({"counted": FEWER, "may_be_lost": Counter(left=2)}, "Killed workers may lose 2"),
        ({"counted": MORE}, "Of 100 requests to /left, 2 are counted twice."),
        ({"missing_before_kills": Counter(left=1)}, "1 requests to /left were not counted before any worker"),
        ({"outcome": Outcome(failed=Counter(EOFError=2))}, "2 requests failed (EOFError), and 0 of the bare app."),
        ({"outcome": Outcome(cut=IN_FLIGHT * 3 + 1)}, "49 requests had no answer as workers were killed"),
        ({"pages_failed": 1}, "1 of 20 pages of metrics failed."),
        ({"resident_kb": GROWING}, "A worker grew by 2000 KB in the second half, and a bare one by 0 KB."),
    ],
)
def test_each_promise_that_is_not_kept_is_named(changes, sentence):
    (found,) = faults(soaked(), soaked(**changes))
    assert sentence in found


@pytest.mark.parametrize(
    "changes",
    [
        {"counted": FEWER, "may_be_lost": Counter(left=3)},
        {"outcome": Outcome(cut=IN_FLIGHT * 3)},
    ],
)
def test_what_a_kill_may_cost_is_no_fault(changes):
    assert faults(soaked(), soaked(**changes)) == []


def test_what_happens_bare_too_is_no_fault():
    bare = soaked(outcome=Outcome(failed=Counter(EOFError=2)), resident_kb=GROWING)
    measured = soaked(outcome=Outcome(failed=Counter(EOFError=2)), resident_kb=[*GROWING[:-1], 52_500])
    assert faults(bare, measured) == []


def test_fewer_requests_than_the_mix_needs_are_refused(capsys):
    with pytest.raises(SystemExit):
        soak.main(["--requests", "399"])
    assert "--requests must be at least 400, got 399" in capsys.readouterr().err
