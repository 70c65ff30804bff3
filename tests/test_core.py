"""The account of a request, against clocks that the test owns."""

from __future__ import annotations

import collections
import enum
import http
import threading
import types

import anyio
import pytest

from loopwatch import LoopWatchMiddleware
from loopwatch.catalogue import LATENCY_BUCKETS
from loopwatch.hot import Child, Stage, TimedSelect, TimerFactory, current
from loopwatch.testing import FakeClock
from tests.requests import door_on, request_on, scope, times


class Machine:
    """A loop thread whose wall and CPU time the test controls."""

    def __init__(self):
        self.wall, self.cpu, self.failures = FakeClock(), FakeClock(), []
        self.stage = Stage(lambda *failure: self.failures.append(failure), None, self.wall, self.cpu)

    def compute(self, seconds):
        self.wall.advance(seconds)
        self.cpu.advance(seconds)

    def wait(self, seconds):
        self.wall.advance(seconds)


@pytest.fixture
def machine():
    machine = Machine()
    yield machine
    current.set(None)
    assert machine.failures == []


@types.coroutine
def suspend():
    yield


def finish(coroutine):
    with pytest.raises(StopIteration):
        coroutine.send(None)


START, BODY = "http.response.start", "http.response.body"


class Kind(enum.StrEnum):
    START, BODY = START, BODY


class Unsure:
    """Something that has no truth value."""

    def __bool__(self):
        raise ValueError("neither")


UNSURE = Unsure()


@pytest.mark.parametrize(
    ("messages", "status", "ends"),
    [
        ([{"type": START, "status": 204}, {"type": BODY}], 204, True),
        ([{"type": START, "status": http.HTTPStatus.CREATED}, {"type": BODY, "more_body": 0}], 201, True),
        ([{"type": "".join(START), "status": 301}, {"type": BODY, "body": b"", "more_body": False}], 301, True),
        ([{"type": START, "status": 200}, {"type": "http.response.pathsend", "path": "/"}], 200, True),
        ([{"type": Kind.START, "status": 200}, collections.OrderedDict(type=Kind.BODY)], 200, True),
        ([{"type": START, "status": 200}, {"type": BODY, "more_body": True}], 200, False),
        ([{"type": START, "status": 200}, {"type": BODY, "more_body": "yes"}], 200, False),
        ([{"type": START, "status": 200}, {"type": BODY, "more_body": UNSURE}], 200, False),
        ([{"type": START, "status": 200}, {"type": "http.response.trailers"}, {"type": "?"}], 200, False),
        ([{"type": START}, {"type": START, "status": None}, {"type": START, "status": -1}], 0, False),
        ([{"type": START, "status": "200"}, {"status": 200}, {"type": None}, {"type": b"?"}], 0, False),
        ([None, [], "http.response.body", {}], 0, False),
    ],
)  # fmt: skip
def test_a_response_is_followed_by_its_messages_whatever_they_are(machine, messages, status, ends):
    passed, ended = [], []

    async def send(message):
        passed.append(message)

    async def respond(request):
        for message in messages:
            await request(message)

    door, _ = door_on(machine.stage)
    door.observe(
        types.SimpleNamespace(begin=lambda _: None, end=lambda _, status_class: ended.append(status_class))
    )
    request = door.begin(scope(), send, machine.stage)
    finish(respond(request))
    assert passed == messages
    assert request.is_open() is not ends
    request.end()
    assert ended == [max(1, status // 100)]


@types.coroutine
def ask(question):
    return (yield question)


def test_what_is_asked_given_and_returned_passes_through_a_request(machine):
    async def send(message):
        return await ask(message["type"])

    async def app(own_send):
        given = await ask("what?")
        return given, await own_send({"type": "http.response.body"})

    async def serve():
        door, _ = door_on(machine.stage)
        request = door.begin(scope(), send, machine.stage)
        return await request.drive(app(request))

    steps = serve()
    assert steps.send(None) == "what?"
    assert steps.send("this") == "http.response.body"
    with pytest.raises(StopIteration) as ended:
        steps.send("sent")
    assert ended.value.value == ("this", "sent")


def test_a_request_that_another_thread_closes_takes_no_step_there(machine):
    """Garbage collection may close one in any thread, while the loop's own takes a step of another."""
    door, _ = door_on(machine.stage)
    dropped, request = door.begin(scope(), None, machine.stage), door.begin(scope(), None, machine.stage)
    steps = dropped.drive(suspend()).__await__()
    next(steps)

    async def work():
        machine.wait(0.5)
        closes = threading.Thread(target=steps.close)
        closes.start()
        closes.join()
        assert sum(times(request).values()) == 0  # its step goes on

    finish(request.drive(work()))
    assert not dropped.is_open()


def test_cpu_blocked_and_awaited_time_are_told_apart(machine):
    async def work():
        machine.compute(0.003)
        machine.wait(0.005)
        await suspend()
        machine.compute(0.001)
        await suspend()

    request = request_on(machine.stage)
    request.drive(work())
    machine.wait(0.002)
    request.send(None)
    machine.wait(0.040)
    request.send(None)
    booked = times(request)
    assert booked["loop_cpu"] == pytest.approx(0.004)
    assert booked["loop_blocked"] == pytest.approx(0.005)
    assert booked["await"] == pytest.approx(0.042)
    assert sum(booked.values()) == pytest.approx(0.051)


def test_the_inner_of_two_nested_requests_owns_its_time(machine):
    outer, inner = request_on(machine.stage, "/outer"), request_on(machine.stage, "/inner")

    async def called():
        machine.compute(0.007)
        await suspend()

    async def caller():
        machine.compute(0.001)
        inner.drive(called()).send(None)
        machine.compute(0.002)
        await suspend()

    outer.drive(caller()).send(None)
    assert times(outer)["loop_cpu"] == pytest.approx(0.003)
    assert times(outer)["await"] == pytest.approx(0.007)
    assert times(inner)["loop_cpu"] == pytest.approx(0.007)


def test_a_step_within_a_step_of_the_same_request_counts_once(machine):
    request = request_on(machine.stage)

    async def child():
        machine.compute(0.004)

    async def parent():
        finish(Child(child(), request))  # as an eager task does
        machine.compute(0.001)
        await suspend()

    request.drive(parent()).send(None)
    assert times(request)["loop_cpu"] == pytest.approx(0.005)


def test_time_in_which_nobody_works_for_the_request_is_not_booked(machine):
    async def brief():
        machine.compute(0.001)

    request = request_on(machine.stage)
    for _ in range(2):
        finish(Child(brief(), request))
        machine.wait(600)
    assert sum(times(request).values()) == pytest.approx(0.002)


def test_a_request_ends_once_and_what_comes_later_is_background(machine):
    door, recorder = door_on(machine.stage)
    request = door.begin(scope(), None, machine.stage)

    async def work():
        machine.compute(0.002)
        request.end(200)
        request.end(500)
        machine.compute(0.010)
        await suspend()
        machine.wait(0.005)

    request.drive(work())
    assert door.count_active() == 1
    request.send(None)
    assert door.count_active() == 0
    machine.wait(0.100)
    finish(request)
    (reading,) = recorder.read()
    assert {status: h.count for status, h in reading.durations.items()} == {"2xx": 1}
    assert reading.durations["2xx"].sum == pytest.approx(0.002)
    assert reading.seconds() == pytest.approx(0.002)
    assert reading.seconds("loop_cpu", phase="background") == pytest.approx(0.010)
    assert reading.seconds("loop_blocked", phase="background") == pytest.approx(0.005)
    assert reading.seconds("await", phase="background") == pytest.approx(0.100)


def test_cpu_and_wait_have_a_histogram_each(machine):
    door, recorder = door_on(machine.stage)
    request = door.begin(scope(), None, machine.stage)

    async def work():
        machine.compute(0.002)
        machine.wait(0.030)
        request.end(200)

    finish(request.drive(work()))
    (reading,) = recorder.read()
    assert reading.cpu_times.quantile(1.0) == 0.0025
    assert reading.wait_times.quantile(1.0) == 0.05
    assert (reading.cpu_times.count, reading.wait_times.count) == (1, 1)
    assert reading.cpu_times.bounds == LATENCY_BUCKETS


def test_steps_shorter_than_a_quarter_of_a_millisecond_are_taken_to_be_cpu(machine):
    async def work():
        machine.wait(0.0002)
        await suspend()
        machine.wait(0.0003)
        await suspend()

    request = request_on(machine.stage).drive(work())
    request.send(None)
    request.send(None)
    assert times(request)["loop_cpu"] == pytest.approx(0.0002)
    assert times(request)["loop_blocked"] == pytest.approx(0.0003)


def test_an_observation_on_a_bound_belongs_to_the_bucket_below_it(machine):
    door, recorder = door_on(machine.stage)
    for seconds in (0.001, 0.0010001, 20.0):
        request = door.begin(scope(), None, machine.stage)
        machine.wait(seconds)
        request.end(200)
    (reading,) = recorder.read()
    assert reading.durations["2xx"].counts == (1, 1, *[0] * 11, 1)


def test_a_stage_that_is_used_twice_is_let_go_of_by_switching_it_off_once(machine):
    door, _ = door_on(machine.stage)
    measured = scope()
    machine.stage.use()
    machine.stage.use()
    seen = []

    async def app():
        seen.append(door.is_measured(measured))
        machine.stage.switch_off()
        seen.append(door.is_measured(measured))

    with pytest.raises(StopIteration):
        door.begin(measured, None, machine.stage).drive(app()).send(None)
    assert seen == [True, False]


def test_an_interrupt_that_arrives_while_a_long_step_is_told_is_not_lost():
    def interrupted(_length):
        raise KeyboardInterrupt

    wall = FakeClock()
    stage = Stage(lambda *_: None, interrupted, wall, FakeClock())

    async def app():
        wall.advance(1)

    with pytest.raises(KeyboardInterrupt):
        request_on(stage).drive(app()).send(None)


def test_an_interrupt_in_the_midst_of_a_poll_makes_no_time_up():
    interrupts = [KeyboardInterrupt]

    def worst(_busy, now):
        if interrupts:
            raise interrupts.pop()
        return now

    wall = FakeClock()
    stage = Stage(lambda *_: None, None, wall, FakeClock())
    timed = TimedSelect(lambda _timeout: [], stage, lambda _busy: None, worst, lambda _error: None, wall)
    wall.advance(5)
    with pytest.raises(KeyboardInterrupt):
        timed.select(0)
    wall.advance(1)
    timed.select(0)
    wall.advance(2)
    timed.select(0)
    _, busy, idle, _, _ = timed.read()
    assert (busy, idle) == (7_000_000_000, 0)


def test_a_timer_that_never_fires_costs_no_request_its_states(run):
    """FastAPI's own streaming sleeps for ever, and anyio's timer for that is infinite."""

    async def app(scope, receive, send):
        with anyio.move_on_after(0.01):
            await anyio.sleep_forever()

    async def main():
        watched = LoopWatchMiddleware(app)
        for _ in range(2):
            await watched({**scope("/"), "headers": []}, None, None)
        snapshot = watched.watch.snapshot()
        watched.watch.stop()
        return snapshot

    snapshot = run(main)
    assert snapshot.dropped == {}
    reading = snapshot.route("_unmatched")
    took = sum(histogram.sum for histogram in reading.durations.values())
    assert reading.seconds() == pytest.approx(took, rel=0.01)
    assert reading.seconds("await") > took / 4


def test_what_fails_in_the_accounting_of_one_request_leaves_all_others_alone():
    class OddTimer:
        def when(self):
            return 0

        def cancelled(self):
            raise OSError("no timer")

    machine = Machine()
    machine.stage.use()
    factory = TimerFactory(machine.stage, lambda *_, **__: OddTimer())

    async def sets_an_odd_timer():
        factory.call_at(1, print)
        await suspend()
        machine.compute(0.25)
        await suspend()

    async def computes():
        await suspend()
        machine.compute(0.5)
        await suspend()

    booked = []
    odd, other = request_on(machine.stage), request_on(machine.stage)
    for request, coroutine in ((odd, sets_an_odd_timer()), (other, computes())):
        driven = request.drive(coroutine)
        driven.send(None)
        machine.wait(1.0)
        driven.send(None)
        booked.append(times(request)["loop_cpu"])
        finish(driven)
    assert [str(error) for _, error, _ in machine.failures] == ["no timer"]
    assert not machine.stage.is_off()
    assert booked == [0.25, 0.5]
    machine.stage.switch_off()
