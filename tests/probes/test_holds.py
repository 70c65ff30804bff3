"""A stall is divided among those who held the loop, each with what was seen of it alone."""

from __future__ import annotations

import pytest

from loopwatch.probes.frames import Line, Sample
from loopwatch.probes.holds import Seen, holdings, within

MS = 1_000_000


class Request:
    def __init__(self, name):
        self.name = name

    def __repr__(self):
        return self.name


A, B = Request("A"), Request("B")


def seen(at, request, function, task=None, call=""):
    line = Line(function, "app.py", 1)
    return Seen(at * MS, request, task, Sample((line,), line, call, ()))


def step(start, end, request, cpu=0):
    return start * MS, end * MS, cpu * MS, request


def divided(start, end, steps, samples):
    """Return the holds in milliseconds: from, to, whose, and the function that is blamed."""
    return [
        (hold.start // MS, hold.end // MS, hold.request, found.sample.culprit.function if found else "")
        for hold in holdings(start * MS, end * MS, steps, samples)
        for found in [hold.blamed()]
    ]


def test_each_long_step_is_a_hold_with_what_was_seen_in_it():
    samples = [seen(20, A, "a"), seen(90, A, "a"), seen(110, B, "b")]
    assert divided(0, 200, [step(0, 100, A), step(100, 200, B)], samples) == [(0, 100, A, "a"), (100, 200, B, "b")]


def test_a_sample_of_another_request_than_that_of_the_step_is_none_of_its():
    assert divided(0, 100, [step(0, 100, A)], [seen(99, B, "b")]) == [(0, 100, A, "")]


def test_what_no_look_fell_into_has_its_length_and_no_line():
    samples = [seen(150, B, "b")]
    assert divided(0, 200, [step(0, 100, A), step(100, 200, B)], samples) == [(0, 100, A, ""), (100, 200, B, "b")]


def test_time_between_steps_is_divided_among_who_was_seen_in_it():
    samples = [
        seen(110, None, "x", "one"),
        seen(130, None, "x", "one"),
        seen(150, None, "y", "two"),
        seen(160, B, "b"),
    ]
    assert divided(0, 200, [step(0, 100, A), step(170, 200, A)], samples) == [
        (0, 100, A, ""),
        (100, 140, None, "x"),
        (140, 155, None, "y"),
        (155, 170, B, "b"),
        (170, 200, A, ""),
    ]


def test_time_in_which_nobody_was_seen_is_nobodys():
    assert divided(0, 200, [step(50, 100, A)], []) == [(50, 100, A, "")]


def test_callbacks_are_told_apart_by_their_functions():
    assert divided(0, 100, [], [seen(20, None, "x"), seen(60, None, "y")]) == [
        (0, 40, None, "x"),
        (40, 100, None, "y"),
    ]


def test_steps_of_one_request_that_follow_at_once_are_one_hold():
    """As those of a hundred tasks that it begins, each of which takes some milliseconds."""
    steps = [step(number, number + 3, A, cpu=2) for number in range(0, 300, 3)]
    (hold,) = holdings(0, 300 * MS, steps, [seen(20, A, "a"), seen(200, A, "a")])
    assert (hold.start, hold.end, hold.request, hold.cpu) == (0, 300 * MS, A, 200 * MS)


def test_steps_of_one_request_in_different_functions_are_apart():
    samples = [seen(50, A, "a"), seen(150, A, "other")]
    steps = [step(0, 100, A), step(100, 200, A)]
    assert divided(0, 200, steps, samples) == [(0, 100, A, "a"), (100, 200, A, "other")]


def test_the_call_and_the_task_are_those_of_the_function_that_is_blamed():
    samples = [
        seen(10, A, "a", "first", "one.call"),
        seen(20, A, "b", "second", "rare"),
        seen(30, A, "b", "second", "often"),
        seen(40, A, "b", "second", "often"),
    ]
    (hold,) = holdings(0, 100 * MS, [step(0, 100, A)], samples)
    found = hold.blamed()
    assert (found.sample.culprit.function, found.sample.call, found.task) == ("b", "often", "second")


@pytest.mark.parametrize(("start", "end", "found"), [(0, 100, 1), (40, 200, 1), (60, 200, 0), (200, 300, 0)])
def test_a_step_belongs_to_the_stall_in_which_most_of_it_lies(start, end, found):
    assert len(within([step(0, 100, A)], start * MS, end * MS)) == found
