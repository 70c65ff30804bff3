"""The watcher thread: is the loop stuck now, who holds it, in which line and why?

It looks at the loop's clock every few milliseconds, which never wakes the loop. While a busy period lasts it takes
samples of the loop thread's stack and, at both ends, evidence for the cause. When the period is over and was long
enough to be a stall, what was found is put together. All runs on the watcher thread but for ``start`` and ``stop``.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from loopwatch.histogram import NANOSECONDS
from loopwatch.names import printable
from loopwatch.probes.causes import Evidence, Witness, cause_between
from loopwatch.probes.frames import Line, Sample, Sampler
from loopwatch.probes.remedies import remedy_for
from loopwatch.probes.stops import Stops, own_switches
from loopwatch.readings import Stall

if TYPE_CHECKING:
    from collections.abc import Callable

    from loopwatch.failures import Failures
    from loopwatch.hot import Request, Stage

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


class _Holder(NamedTuple):
    """Who held the loop when a sample was taken."""

    request: Request | None
    task: str | None


_NOBODY = _Holder(None, None)
_NOTHING = Sample((), Line("", "", 0), "", ())


class _Period:
    """One busy period of the loop: what was seen while it lasted, and at the looks before and after it."""

    def __init__(self, began: int, before: Evidence) -> None:
        self.began = self.seen_at = began
        self.before = self.after = before
        self.first: Evidence | None = None
        self.last: Evidence | None = None
        self.samples: Counter[Sample] = Counter()
        self.holders: Counter[_Holder] = Counter()
        self.looks = 0
        self.kept_out = False
        self.told = False
        self.ended = False

    def cause(self, ended: int, length: int) -> str:
        """Return why it was long: by what was seen during it, or else by its ends."""
        first, last = self.first, self.last
        if first is not None and last is not None and last.at - first.at >= max(_LEAST_NS, length * _COVERED):
            return cause_between(first, last, kept_out=self.kept_out)
        # Around it the loop was idle, more or less: only its own time counts.
        before, after = self.before._replace(at=ended - length), self.after._replace(at=ended)
        return cause_between(before, after, kept_out=self.kept_out)


class _Ended(NamedTuple):
    """A stall that has ended, and waits until its request is routed."""

    period: _Period
    ended: int
    length: int


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
        self._stopping = threading.Lock()  # held until then: waiting for one costs less than for an Event
        self._lookout: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0
        self._thread: threading.Thread | None = None
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
        self._loop, self._loop_thread = loop, threading.get_ident()
        self._unix_offset = time.time() - time.perf_counter()
        self._stopping.acquire()
        self._witness = Witness()
        self._witness.start()
        self._stops = Stops(self._witness)
        self._lookout = self._clock.lookout()
        self._thread = threading.Thread(
            target=self._watch, args=(self._witness,), name="loopwatch-watcher", daemon=True
        )
        self._thread.start()

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
        thread = self._thread
        if thread is not None and thread.ident is not None and thread is not threading.current_thread():
            thread.join(seconds)

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
                self._sample(period)
            else:
                ended = min(ended, period.began + length)
            period.after = witness.glance()  # anew: the stall may have ended since this look began
            period.kept_out = period.kept_out or kept_out
            length -= self._stops.between(ended - length, ended)
            if length >= self._stall_ns:
                self._waiting.append(_Ended(period, ended, length))
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
        period.looks += 1
        period.kept_out = period.kept_out or kept_out
        if period.looks <= _CLOSE_LOOKS or period.looks % _EACH == 0:
            self._sample(period)
            period.last = witness.look()
            if period.first is None:
                period.first = period.last
        if held >= max(_TELL_NS, self._stall_ns) and not period.told:
            period.told = True
            held -= self._stops.between(now - held, now)
            if held >= self._stall_ns:
                period.last = period.after = witness.look()
                self._on_long(self._stall(period, now, held))

    def _sample(self, period: _Period) -> None:
        holder = _Holder(self._stage.who(), self._task_name())  # at once: the loop's thread may go on
        try:
            sample = self._sampler.sample(self._loop_thread)
        except Exception as error:  # the stall is one all the same
            self._report(error)
            return
        if sample is not None:
            period.samples[sample] += 1
            period.holders[holder] += 1

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
            request = _most(one.period.holders, _NOBODY).request
            if request is not None and not request.is_routed() and now - one.ended < _ROUTING_NS:
                self._waiting.append(one)
            else:
                self._on_stall(self._stall(one.period, one.ended, one.length))

    def _stall(self, period: _Period, ended: int, length: int) -> Stall:
        """Put together what is known of a stall."""
        holder = _most(period.holders, _NOBODY)
        route, method = self._labels(holder.request)
        sample = _blamed(period.samples)
        cause = period.cause(ended, length)
        return Stall(
            started_at=self._unix_offset + (ended - length) / NANOSECONDS,
            duration=length / NANOSECONDS,
            route=route,
            method=method,
            task=holder.task,
            cause=cause,
            function=sample.culprit.function,
            filename=sample.culprit.filename,
            lineno=sample.culprit.lineno,
            call=sample.call,
            stack=tuple(str(line) for line in sample.stack),
            remedy=remedy_for(cause, (sample.call, *sample.inner)),
        )

    def _labels(self, request: Request | None) -> tuple[str, str] | tuple[None, None]:
        if request is None:
            return None, None
        try:
            route, method = request.labels()
        except Exception as error:
            self._failures.report("routes", error, "some stalls lack their route")
            return None, None
        return route, method


def _most(counted: Counter[Any], otherwise: Any) -> Any:
    return counted.most_common(1)[0][0] if counted else otherwise


def _blamed(samples: Counter[Sample]) -> Sample:
    """Return a sample of the function and call that were seen most often, and of these the most frequent."""
    places: Counter[tuple[str, str]] = Counter()
    for sample, times in samples.items():
        places[sample.culprit.function, sample.call] += times
    blamed = _most(places, ("", ""))
    same = {one: times for one, times in samples.items() if (one.culprit.function, one.call) == blamed}
    return cast("Sample", _most(Counter(same), _NOTHING))
