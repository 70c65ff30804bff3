"""The watcher thread: is the loop stuck now, who holds it, in which line and why?

It looks at the loop's clock every few milliseconds, which never wakes the loop. While a busy period lasts it takes
samples of the loop thread's stack and, at both ends, evidence for the cause. When the period is over and was long
enough to be a stall, what was found is put together. All runs on the watcher thread but for ``start`` and ``stop``.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from loopwatch.catalogue import CAUSE_UNKNOWN
from loopwatch.histogram import NANOSECONDS
from loopwatch.names import printable
from loopwatch.probes.causes import Evidence, Witness, cause_between, cause_by_cpu
from loopwatch.probes.frames import Line, Sample, Sampler, glance
from loopwatch.probes.holds import Holding, Seen, holdings, within
from loopwatch.probes.remedies import remedy_for
from loopwatch.probes.stops import Stops, own_switches
from loopwatch.readings import Hold, Stall
from loopwatch.system import Thread, allocate_lock, get_ident

if TYPE_CHECKING:
    from collections.abc import Callable

    from loopwatch.failures import Failures
    from loopwatch.hot import Request, Stage
    from loopwatch.probes.holds import Step

_NOTICED = 0.1
"""The share of the threshold from which on a busy period is sampled."""

_PATIENCE, _SOON = 7, 0.7
"""How many intervals pass between two looks at a loop that sleeps, but no more than that share of the threshold.

So a stall that begins in a loop that sleeps is still seen during it. Waking up is most of what a look costs.
"""

_CALM = 2.5
"""So many intervals pass while a loop is busy in short periods, if its clock needs no looks: each takes the GIL."""

_ASLEEP_NS = 1_000_000
_SAME_NS = 15_000_000
"""Two estimates of when a busy period began that differ by less are of the same one: libuv tells milliseconds."""

_CLOSE_LOOKS, _EACH = 20, 5
"""After so many looks at one period, only one in so many takes a sample and evidence: they cost 0.3 ms."""

_TELL_NS = NANOSECONDS // 2
"""A stall that lasts this long is told before it ends."""

_APART_NS = 1_000_000
"""By how much the clock of a look and that of the loop's own thread may seem to differ."""

_LEAST_NS, _COVERED = 20_000_000, 0.4
"""How much of a stall evidence must span to tell its cause: time, and share."""

_MOST_SEEN = 4

_ROUTING_NS = NANOSECONDS
"""How long to wait for a request that stalled to be routed: what blocks in a middleware has no route yet."""

_MOST_FAILED, _REST_SECONDS = 10, 60.0
"""After so many looks in a row that failed, the next is a minute later."""

_MOST_KEPT = 500
"""How many looks at one period are remembered."""

_MOST_HOLDS = 50
"""How many holds of a stall are reported; shorter ones are time of which nothing is known."""

_NEARLY_ALL = 0.8
"""The cause of a stall is that of a hold which is so much of it."""

_LATE_ENOUGH = 1 << 62
"""A time at which nothing is waited for."""


class LoopClock(Protocol):
    """What the watcher needs of a loop's clock."""

    stalls: deque[tuple[int, int]]
    lives_by_looks: bool

    def look(self) -> int:
        """Return for how many nanoseconds the loop has been busy."""

    def lookout(self) -> Any:
        """Return what watches it without the GIL, ``None`` where nothing does."""

    def look_back(self, seen: list[tuple[int, ...]]) -> None:
        """Take in what that has seen."""


_NOTHING = Sample((), Line("", "", 0), "", ())


class _Look(NamedTuple):
    """What was found out at a look at a loop that is busy."""

    evidence: Evidence
    kept_out: bool


class _Period:
    """One busy period of the loop: what was seen while it lasted, and at the looks before and after it."""

    def __init__(self, began: int, before: Evidence) -> None:
        self.began = self.seen_at = began
        self.before = self.after = before
        self.looks: list[_Look] = []
        self.seen: list[Seen] = []
        self.count = 0
        self.kept_out = False
        self.told = False
        self.ended = False

    def note(self, look: _Look, seen: Seen | None) -> None:
        """Remember a look. Of very many every other is forgotten."""
        self.looks.append(look)
        if seen is not None:
            self.seen.append(seen)
        for kept in (self.looks, self.seen):
            if len(kept) >= _MOST_KEPT:
                del kept[1:-1:2]

    def cause(self, start: int, end: int) -> str:
        """Return why it was long: by what was seen between these instants, or else by its ends."""
        cause = self._cause_within(start, end)
        if cause is None:
            # Around it the loop was idle, more or less: only its own time counts.
            before, after = self.before._replace(at=start), self.after._replace(at=end)
            cause = cause_between(before, after, kept_out=self.kept_out)
        return cause

    def cause_of(self, hold: Holding, otherwise: str) -> str:
        """Return why one of its holds was long: by what was seen during it, or else by the CPU time of its steps.

        ``otherwise`` is the cause of the whole.
        """
        cause = self._cause_within(hold.start, hold.end)
        if (cause is not None and cause != CAUSE_UNKNOWN) or hold.cpu is None:
            return cause or CAUSE_UNKNOWN
        return cause_by_cpu(hold.cpu, hold.length, cause or otherwise)

    def _cause_within(self, start: int, end: int) -> str | None:
        looks = [look for look in self.looks if start <= look.evidence.at <= end]
        if not looks:
            return None
        first, last = looks[0].evidence, looks[-1].evidence
        if last.at - first.at < max(_LEAST_NS, (end - start) * _COVERED):
            return None
        return cause_between(first, last, kept_out=any(look.kept_out for look in looks))


class _Ended(NamedTuple):
    """A stall that has ended, the long steps in it, and when it ended. It waits until its requests are routed."""

    period: _Period
    start: int
    end: int
    steps: list[Step]

    def requests(self) -> set[Request]:
        """Return the requests that held the loop."""
        seen = {one.request for one in self.period.seen if one.request is not None}
        return seen | {request for *_, request in self.steps}


class StallsProbe:
    """Watches one loop. ``on_stall`` is called on the watcher thread for each stall that has ended.

    ``on_long`` is called once for a stall that still lasts, and ``each_second`` about that often. ``on_closed`` is
    called where the loop was closed without :meth:`stop`; nothing that runs afterwards is a stall.
    """

    def __init__(
        self,
        clock: LoopClock,
        stage: Stage,
        failures: Failures,
        *,
        stall_seconds: float,
        interval_seconds: float,
        on_stall: Callable[[Stall], None],
        on_long: Callable[[Stall], None],
        each_second: Callable[[], None],
        on_closed: Callable[[], None],
    ) -> None:
        self._clock, self._stage, self._failures = clock, stage, failures
        self._stall_ns = round(stall_seconds * NANOSECONDS)
        self._noticed_ns = round(self._stall_ns * _NOTICED)
        self._interval = min(interval_seconds, stall_seconds / 4)
        self._idle_interval = min(self._interval * _PATIENCE, stall_seconds * _SOON)
        self._calm_interval = (
            self._interval if clock.lives_by_looks else min(self._interval * _CALM, stall_seconds / 4)
        )
        self._on_stall, self._on_long = on_stall, on_long
        self._each_second, self._next_second = each_second, 0
        self._on_closed = on_closed
        self._held, self._pause = 0, self._interval
        self._sampler = Sampler()
        self._stopping = allocate_lock()  # held until then: waiting for one costs less than for an Event
        self._lookout: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0
        self._thread: Thread | None = None
        self._witness: Witness | None = None
        self._stops: Stops
        self._seen: deque[_Period] = deque(maxlen=_MOST_SEEN)
        self._waiting: list[_Ended] = []
        self._before: Evidence | None = None
        self._unix_offset = 0.0
        self.cpu_seconds = 0.0
        """CPU time of the watcher thread so far."""

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to watch. Loop thread."""
        self._loop, self._loop_thread = loop, get_ident()
        self._unix_offset = time.time() - time.perf_counter()
        self._stopping.acquire()
        self._witness = Witness()
        self._witness.start()
        self._stops = Stops(self._witness)
        self._lookout = self._clock.lookout()
        self._thread = Thread(self._watch, self._witness, name="loopwatch-watcher")

    def stop(self) -> None:
        """Let the thread end, and do not wait for it: this may be the loop's. Safe to call twice."""
        if self._stopping.locked():
            self._stopping.release()
            if self._lookout is not None:
                self._lookout.end()
        witness, self._witness = self._witness, None
        if witness is not None:
            witness.stop()

    def is_watching(self) -> bool:
        """Tell whether the thread has yet to end. Any thread."""
        return self._thread is not None and self._thread.is_alive()

    def join(self, seconds: float) -> None:
        """Wait until the thread has told what it saw and has ended, for so long at most. Any thread."""
        if self._thread is not None:
            self._thread.join(seconds)

    def _watch(self, witness: Witness) -> None:
        failed, ended = 0, False
        while not ended:
            try:
                ended = self._wait_and_look(witness)
                failed = 0
            except Exception as error:
                failed += 1
                self._report(error)
                self._stage.expect_nobody()
                ended = self._stopping.acquire(timeout=self._interval if failed < _MOST_FAILED else _REST_SECONDS)
        try:
            now = time.perf_counter_ns()
            with contextlib.suppress(OSError):  # the loop's thread may have ended
                self._look(witness, now, now)
            self._tell(_LATE_ENOUGH)
        except Exception as error:
            self._report(error)
        finally:
            self._stage.expect_nobody()

    def _wait_and_look(self, witness: Witness) -> bool:
        """Wait until it is time for a look, and look; or return whether the loop has ended."""
        now = time.perf_counter_ns()
        if self._lookout is not None and self._held < self._noticed_ns and not self._waiting:
            ended, due, asked = self._wait_in_the_lookout(witness, now)
        else:
            due = asked = now + round(self._pause * NANOSECONDS)
            self._stage.expect_watcher(due)
            ended = self._stopping.acquire(timeout=self._pause)
        if not ended and self._loop is not None and self._loop.is_closed():
            self._on_closed()
            ended = True
        if ended:
            return True
        self._held = self._look(witness, due, asked)
        self._pause = self._pause_after(self._held, self._pause)
        now = time.perf_counter_ns()
        if now >= self._next_second:
            self._next_second = now + NANOSECONDS
            self._each_second()
            now = time.perf_counter_ns()
        self._stops.notice(now)
        self.cpu_seconds = time.thread_time()
        return False

    def _report(self, error: Exception) -> None:
        self._failures.report("watcher", error, "stalls may be missing, or lack their function and line")

    def _wait_in_the_lookout(self, witness: Witness, now: int) -> tuple[bool, int, int]:
        """Wait without the GIL for something to look at.

        Return whether it is the end, when that was due, and when the GIL was asked for.
        """
        lookout = self._lookout
        cpu_clock = -1 if witness.cpu_clock is None else witness.cpu_clock
        intervals = self._calm_interval, self._idle_interval, self._noticed_ns / NANOSECONDS
        ended = lookout.wait(now, cpu_clock, self._stage.overdue_address(), *intervals)
        seen = lookout.seen()
        self._clock.look_back(seen)
        for at, held, cpu, process_cpu, *_ in reversed(seen):
            if held < self._noticed_ns:
                self._before = witness.as_of(at, None if cpu < 0 else cpu, process_cpu)
                break
        if not seen:
            return ended, lookout.due, lookout.due
        self._stops.count_from(self._before.process_cpu if self._before else 0, lookout.switches)
        return ended, lookout.due, seen[-1][0]

    def _pause_after(self, held: int, pause: float) -> float:
        if held < _ASLEEP_NS:
            return min(pause * 2, self._idle_interval)
        return self._calm_interval if held < self._noticed_ns else self._interval

    def _look(self, witness: Witness, due: int, asked: int) -> int:
        """Look once; return for how long the loop has been busy.

        That was ``due`` at one instant, and the GIL ``asked`` for at another.
        """
        held = self._clock.look()
        now = time.perf_counter_ns()
        glance = witness.glance()
        before = self._before or glance
        kept_out = self._stops.notice(now, due, asked)
        self._stops.count_from(glance.process_cpu, own_switches())
        if held >= self._noticed_ns:
            if not self._seen or abs(self._seen[-1].began - (now - held)) > _SAME_NS:
                self._seen.append(_Period(now - held, before))
            self._see(self._seen[-1], witness, now, held, kept_out=kept_out)
        while self._clock.stalls:
            ended, length = self._clock.stalls.popleft()
            self._stops.notice(time.perf_counter_ns())
            period = self._seen_between(ended - length, ended)
            if period is None:  # no look fell into it
                period = _Period(ended - length, before)
            else:
                ended = min(ended, period.began + length)
            period.after = witness.glance()  # anew: the stall may have ended since this look began
            period.kept_out = period.kept_out or kept_out
            stopped = self._stops.between(ended - length, ended)
            if length - stopped >= self._stall_ns:
                self._waiting.append(self._ended(period, ended - length, ended, stopped))
        if self._waiting:
            self._tell(now)
        self._before = glance
        self._stops.refresh(now, idle=self._lookout is None or self._lookout.idle)
        return held

    def _seen_between(self, start: int, end: int) -> _Period | None:
        """Return what was seen of a period, whose end may be told, or be estimated, a look too late."""
        for one in self._seen:
            if start < one.seen_at <= end + _APART_NS and not one.ended:
                one.ended = True
                return one
        return None

    def _see(self, period: _Period, witness: Witness, now: int, held: int, *, kept_out: bool) -> None:
        """Look at a period that lasts."""
        period.seen_at = now
        period.count += 1
        period.kept_out = period.kept_out or kept_out
        if period.count <= _CLOSE_LOOKS or period.count % _EACH == 0:
            seen = self._sample()
            period.note(_Look(witness.look(), kept_out), seen)
        if held >= max(_TELL_NS, self._stall_ns) and not period.told:
            period.told = True
            stopped = self._stops.between(now - held, now)
            if held - stopped >= self._stall_ns:
                began, period.after = now - held, witness.look()
                period.note(_Look(period.after, kept_out), None)
                self._on_long(self._stall(self._ended(period, began, period.after.at, stopped)))

    def _ended(self, period: _Period, start: int, end: int, stopped: int) -> _Ended:
        """Return a stall with the long steps in it. The clock may know its ends less well than they do.

        Where the process was ``stopped`` meanwhile, steps are too long, and their places are not known.
        """
        steps = within(self._stage.long_steps(), start, end) if not stopped else []
        start += stopped
        if steps:
            start, end = min(start, steps[0][0]), max(end, *(step[1] for step in steps))
        return _Ended(period, start, end, steps)

    def _sample(self) -> Seen | None:
        """Return what the loop's thread does, unless it has gone on to something else meanwhile."""
        request, task = self._stage.who(), self._task_name()
        try:
            found = glance(self._loop_thread)
            at = time.perf_counter_ns()
            if self._stage.who() is not request or self._task_name() != task:
                return None
            sample = self._sampler.name(found)
        except Exception as error:  # the stall is one all the same
            self._report(error)
            return None
        return Seen(at, request, task, sample) if sample is not None else None

    def _task_name(self) -> str | None:
        try:
            task: asyncio.Task[Any] | None = asyncio.current_task(self._loop)
            return printable(task.get_name()) if task is not None else None
        except Exception:  # there is no loop any more, or the task is of a class of the app's
            return None

    def _tell(self, now: int) -> None:
        """Tell the stalls that have ended, but not those whose request may still be routed."""
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            if now - one.end < _ROUTING_NS and not all(request.is_routed() for request in one.requests()):
                self._waiting.append(one)
            else:
                self._on_stall(self._stall(one))

    def _stall(self, ended: _Ended) -> Stall:
        """Put together what is known of a stall."""
        period, start, end, steps = ended
        found = sorted(holdings(start, end, steps, period.seen), key=lambda hold: hold.length, reverse=True)
        cause = period.cause(start, end)
        if not found:
            found = [Holding(start, end, None, None, ())]
        is_one = found[0].length >= _NEARLY_ALL * (end - start) and cause != CAUSE_UNKNOWN
        holds = [self._hold(found[0], cause if is_one else period.cause_of(found[0], cause))]
        holds += [self._hold(one, period.cause_of(one, cause)) for one in found[1:_MOST_HOLDS]]
        return Stall.of(self._unix(start), (end - start) / NANOSECONDS, holds)

    def _hold(self, holding: Holding, cause: str) -> Hold:
        route, method = self._labels(holding.request)
        seen = holding.blamed()
        sample = seen.sample if seen is not None else _NOTHING
        return Hold(
            started_at=self._unix(holding.start),
            duration=holding.length / NANOSECONDS,
            route=route,
            method=method,
            task=seen.task if seen is not None else None,
            cause=cause,
            function=sample.culprit.function,
            filename=sample.culprit.filename,
            lineno=sample.culprit.lineno,
            call=sample.call,
            stack=tuple(str(line) for line in sample.stack),
            remedy=remedy_for(cause, (sample.call, *sample.inner)),
        )

    def _unix(self, at: int) -> float:
        return self._unix_offset + at / NANOSECONDS

    def _labels(self, request: Request | None) -> tuple[str, str] | tuple[None, None]:
        if request is None:
            return None, None
        try:
            route, method = request.labels()
        except Exception as error:
            self._failures.report("routes", error, "some stalls lack their route")
            return None, None
        return route, method
