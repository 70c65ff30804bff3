"""Each of several clients' mistakes is named by its own route, function and cause, whoever else held the loop."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.serving import pause, serve

ROUNDS = 8
LEAST_SECONDS = 0.12
REPORTED_SECONDS = 2
"""How long after its end the last stall is reported, at the latest: it may wait until its requests are routed."""
COMPUTING, WAITING = {"cpu", "starved"}, {"blocking"}
"""The causes that are right: whether who computes gets the CPU is the machine's affair."""


def visited(app, clients):
    """Make each mistake some times, in random order, by so many clients; return what is known and was seen."""
    paths = app.get("/mistakes").json() * ROUNDS
    random.Random(clients).shuffle(paths)
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(app.get, paths))
    pause(REPORTED_SECONDS)
    return app.get("/").json()


def overlap(one, other):
    ends = [each["started_at"] + each["duration"] for each in (one, other)]
    return min(ends) - max(one["started_at"], other["started_at"])


def named(block, holds):
    """Return the hold of a block by its own route and function, ``None`` if there is none."""
    own = [
        hold
        for hold in holds
        if hold["route"] == block["route"]
        and hold["function"].partition(".<locals>")[0] == block["function"]  # a generator in it is its own
        and overlap(block, hold) > block["duration"] / 2
    ]
    return max(own, key=lambda hold: overlap(block, hold), default=None)


def judged(found):
    blocks = [block for block in found["known"] if block["duration"] >= LEAST_SECONDS]
    holds = [hold for stall in found["stalls"] for hold in stall["holds"]]
    pairs = [(block, hold) for block in blocks if (hold := named(block, holds)) is not None]
    right = [
        (block, hold)
        for block, hold in pairs
        if hold["cause"] in (COMPUTING if block["cpu"] > LEAST_SECONDS else WAITING)
    ]
    exact = [
        (block, hold)
        for block, hold in pairs
        if abs(block["duration"] - hold["duration"]) <= max(0.01, 0.08 * block["duration"])
    ]
    stalled = sum(stall["duration"] for stall in found["stalls"])
    unknown = sum(hold["duration"] for hold in holds if hold["cause"] == "unknown" or hold["route"] is None)
    unknown += stalled - sum(hold["duration"] for hold in holds)
    return {
        "blocks": len(blocks),
        "named": len(pairs) / len(blocks),
        "causes": len(right) / len(pairs),
        "exact": len(exact) / len(pairs),
        "unknown": unknown / stalled,
        "innocent": [stall for stall in found["stalls"] if not any(overlap(stall, block) > 0 for block in blocks)],
        "unnamed": [block for block in blocks if named(block, holds) is None],
        "wrong": [(block, hold) for block, hold in pairs if (block, hold) not in right],
    }


@pytest.mark.slow
@pytest.mark.contended
@pytest.mark.parametrize("clients", [1, 6, 20])
def test_each_of_many_mistakes_is_named(loop_kind, clients):
    with serve("tests.apps.mix:app", loop_kind) as app:
        found = judged(visited(app, clients))
    assert found["blocks"] >= 100
    assert found["named"] >= 0.95
    assert found["causes"] >= 0.97
    assert found["exact"] >= 0.95
    assert found["unknown"] <= 0.05
    assert not found["innocent"]
