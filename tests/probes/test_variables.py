"""A variable of a running frame is read, and nothing of the reading is left in the frame."""

from __future__ import annotations

import sys
import threading
import weakref

import pytest

from loopwatch.probes.variables import UNKNOWN, variable


class Thing:
    pass


class Standing:
    """A thread that stands still in a function of the test's, until it is let go on."""

    def __init__(self, function):
        self._steps, self.result = threading.Barrier(2), None
        self._thread = threading.Thread(target=self._run, args=(function,))
        self._thread.start()
        self._steps.wait(30)

    def _run(self, function):
        self.result = function(self.stop)

    def stop(self):
        self._steps.wait(30)
        self._steps.wait(30)

    def frame(self, name):
        frame = sys._current_frames()[self._thread.ident]
        while frame.f_code.co_name != name:
            frame = frame.f_back
        return frame

    def go_on(self, *, to_the_end=True):
        self._steps.wait(30)
        if to_the_end:
            self._thread.join(30)
        else:
            self._steps.wait(30)


def test_a_variable_is_read_whatever_it_is():
    free = Thing()

    def works(stop):
        number, closed = 7, free
        stop()
        return number, closed, lambda: number

    standing = Standing(works)
    frame = standing.frame("works")
    assert variable(frame, "number") == 7  # a cell, as the lambda uses it
    assert variable(frame, "closed") is free
    assert variable(frame, "free") is free
    assert variable(frame, "nothing") is UNKNOWN
    del frame
    standing.go_on()
    assert standing.result[:2] == (7, free)


def test_what_the_app_lets_go_of_is_freed_though_it_was_looked_at():
    freed = []

    def works(stop):
        thing = Thing()
        gone = weakref.ref(thing)
        stop()
        del thing
        freed.append(gone() is None)
        stop()

    standing = Standing(works)
    assert isinstance(variable(standing.frame("works"), "thing"), Thing)
    standing.go_on(to_the_end=False)
    assert freed == [True]
    standing.go_on()


def test_a_dictionary_of_variables_that_the_app_has_stays_as_it_is():
    def works(stop):
        thing = Thing()
        mine = locals()
        del thing
        stop()
        return mine

    standing = Standing(works)
    variable(standing.frame("works"), "stop")
    standing.go_on()
    assert {"thing", "stop"} <= standing.result.keys()


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="no copy is made")
def test_a_copy_that_somebody_else_has_is_left_whole():
    def works(stop):
        thing = Thing()
        stop()
        return thing

    standing = Standing(works)
    frame = standing.frame("works")
    theirs = frame.f_locals
    variable(frame, "thing")
    assert "thing" in theirs
    del frame
    standing.go_on()


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="no copy is made")
def test_nothing_is_read_of_a_function_that_is_traced():
    def works(stop):
        thing = Thing()
        stop()
        return thing

    def trace(frame, event, argument):
        return trace

    def traced(stop):
        sys.settrace(trace)
        try:
            return works(stop)
        finally:
            sys.settrace(None)

    standing = Standing(traced)
    assert variable(standing.frame("works"), "thing") is UNKNOWN
    standing.go_on()
    assert isinstance(standing.result, Thing)
