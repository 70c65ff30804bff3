"""Each who held the loop for long in a stall has a record in the log, once, and a share of the stall time."""

from __future__ import annotations

import logging

import pytest

from loopwatch import Hold, Stall
from loopwatch.exporters.log import StallLog
from loopwatch.recorder import Recorder

LEAST_SECONDS = 0.05


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.WARNING, "loopwatch")
    return StallLog(LEAST_SECONDS)


def hold(route, seconds, function="app:f", cause="blocking"):
    return Hold(1000.0, seconds, route, route and "GET", None, cause, function, "app.py", 3, "f", (), "hurry")


def stall(seconds, *holds):
    return Stall.of(1000.0, seconds, holds)


def logged(caplog):
    return [(record.stall_route, record.stall_function) for record in caplog.records]


def test_each_that_held_the_loop_for_long_is_logged(log, caplog):
    log.hear(stall(0.5, hold("/a", 0.3), hold("/b", 0.06), hold("/c", 0.04)))
    assert logged(caplog) == [("/a", "app:f"), ("/b", "app:f")]
    assert "GET /b held the event loop for 60 ms" in caplog.records[1].message


def test_the_longest_is_logged_however_short(log, caplog):
    log.hear(stall(0.2, hold("/a", 0.02), hold("/b", 0.01)))
    assert logged(caplog) == [("/a", "app:f")]


def test_who_was_logged_while_it_lasted_is_not_logged_again_in_another_line(log, caplog):
    log.hear_early(stall(0.6, hold("/a", 0.6, "app:early")))
    log.hear(stall(1.5, hold("/a", 1.2, "app:late"), hold("/b", 0.3)))
    assert logged(caplog) == [("/a", "app:early"), ("/b", "app:f")]


def test_stall_time_is_that_of_the_holds_and_the_rest_is_nobodys():
    recorder = Recorder(max_routes=10)
    recorder.note_stall(stall(0.5, hold("/a", 0.3, cause="cpu"), hold("/b", 0.1), hold(None, 0.05)))
    _, times = recorder.read_stalls()
    assert times == {
        ("/a", "GET", "cpu"): 0.3,
        ("/b", "GET", "blocking"): 0.1,
        ("_none", "_none", "blocking"): 0.05,
        ("_none", "_none", "unknown"): pytest.approx(0.05),
    }
