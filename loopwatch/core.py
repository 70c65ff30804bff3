"""The hot path: what runs at every poll, every step and every request. One source, compiled or not.

Where a C compiler was at hand this module is also built as ``loopwatch._core``, with Cython in its pure-Python
mode; :mod:`loopwatch.hot` picks one. Everything here runs on the loop thread unless it says otherwise, in
nanoseconds, and allocates nothing per step.

A :class:`Request` is at once a running account, the driver of the app's coroutine and the ``send`` that the app
gets: one object, which the garbage collector need not track when compiled. Its account has a mark up to which all
time is booked; each transition books what lies between the mark and now, so the states sum to the wall time by
construction.

What each step calls cannot raise, ``exceptval(check=False)``, or says so by what it returns, ``exceptval(-1)``;
else the compiler asks the interpreter for its state each time. What is called rarely catches its own failures.
"""

from __future__ import annotations

import inspect
from array import array
from asyncio import AbstractEventLoop, CancelledError, coroutines, iscoroutine
from bisect import bisect_left
from collections import deque
from contextvars import ContextVar, copy_context
from operator import itemgetter
from sys import exc_info
from types import CoroutineType, SimpleNamespace
from typing import Any

from loopwatch import _cython as cython
from loopwatch.awaiting import awaited
from loopwatch.system import allocate_lock, sleep

if cython.compiled is None:  # never: this tells the compiler what the name means
    import cython

if not cython.compiled:
    from _thread import _local
    from time import perf_counter_ns as wall_now
    from time import thread_time_ns as cpu_now

    from loopwatch.system import get_ident

    def steps_of(request):
        """Take the steps of a request, as its methods do: to resume a generator costs less than to call them."""
        coroutine = request._coroutine
        resume, given = coroutine.send, None
        outer = request._enter(request._mark)  # the first begins as the request does
        try:
            while True:
                value = resume(given)
                request._leave(outer)
                outer = NOT_BOOKED
                try:
                    given = yield value
                    resume = coroutine.send
                except GeneratorExit:
                    coroutine.close()
                    raise
                except BaseException as error:
                    given = error.with_traceback(error.__traceback__.tb_next)  # it was not raised here
                    resume = coroutine.throw
                outer = request._enter(UNKNOWN)
        except StopIteration as stop:
            return stop.value
        finally:
            given = None  # else an exception that was thrown in would lead to itself
            request._leave(outer)
            request._finish()

    async def send_last(sent, request):
        """Await the server's ``send`` of the last part of a response: when it is done, the request has ended."""
        value = await sent
        request._end(0)
        return value

    def resume(coroutine, done):
        """Resume a coroutine; return what it yields, or ``done`` where it returns ``None``.

        What else it returns comes in a :class:`StopIteration`, which is not raised.
        """
        try:
            return coroutine.send(None)
        except StopIteration as stop:
            return done if stop.value is None else StopIteration(stop.value)

    def cpu_at_start(_now):
        """Return the CPU time of this thread, which begins with a job now."""
        return cpu_now()

    def cpu_at_end(_begun_with, _ran, _now):
        """Return it when the thread ends with the job."""
        return cpu_now()

    here = _local()

    def job_here():
        """Return the job that this thread runs, ``None`` if it runs none."""
        return getattr(here, "job", None)

    def swap_job(job):
        """Note the job that this thread runs from now on; return the one that it ran."""
        before = job_here()
        here.job = job
        return before

    def apply(function, arguments, options):
        """Call a function: when compiled, with these very arguments, which the compiler would copy."""
        return function(*arguments, **options)

    address_of = id
    get_variable = ContextVar.get
    set_variable = ContextVar.set

    def told_by(message):
        """Return the status that a message begins a response with, ``LAST_PART`` if it ends one, or else 0."""
        try:
            kind = message["type"]
            if kind == "http.response.start":
                status = message["status"]
                return status if isinstance(status, int) and status > 0 else 0
            if kind == "http.response.body":
                return 0 if message.get("more_body") else LAST_PART
            return LAST_PART if kind == "http.response.pathsend" else 0
        except Exception:
            return 0  # the server will say what is wrong with the message

    def may_end_with(path, end):
        """Tell whether a path ends so, or is none."""
        return type(path) is not str or path.endswith(end)

    numbers_of = list


COMPILED: bool = cython.compiled

NEVER = (1 << 63) - 1
SHORT_NS = 250_000
"""Shorter steps are taken to be CPU: reading the CPU clock costs a system call."""

FRESH_NS = 500_000
"""How old the mark of the CPU clock may be that longer steps are measured from: the bound of their error."""

LONG_NS = 1_000_000
"""Steps and waits at least this long are told to others: to the loop clock, and as victim and blocker."""

WAITED_NS = 50_000
"""A poll that took longer than this found nothing ready at first: what ended it became ready at its end."""

SHORT_PERIOD_NS = 1_000_000
"""Busy periods of the loop up to this long, the first bound of the lag histogram, need no bucket to be found."""

OVERDUE_NS = 100_000
"""A watcher that is later than this waits for the GIL."""

WAY_SECONDS = 50e-6
"""How long the loop then lets go of it: as long as a thread takes to wake up."""

PATIENCE_NS = 1_000_000
"""After this time, and then after twice as long each time, it does so again if nothing is heard of the watcher."""

STEPS = 256
"""How many long steps are remembered, to find who held the loop."""

HOLDERS = 64
"""How many of these one request remembers that it waited for."""

MOST_TIMERS = 16
"""How many pending timers of one request are remembered."""

LAST_PART = -1
"""Stands for the status in a message that ends a response."""

NOT_ALLOWED = 405
"""The status of a request whose method its route does not allow."""

FAILED = 500
"""The status of a request whose app raised before it answered: what the server then sends."""

CANCELLED = 499
"""The status of a request that was cancelled before it was answered, as nginx counts it."""

NO_LABELS = ("_unmatched", "_OTHER")
"""Route and method of a request that is over and could not be counted."""

UNKNOWN = -1
"""Stands for a time that is still to be read from the clock."""

NOT_BOOKED = object()
"""Stands for the interrupted request where a step is not booked at all."""

DONE = object()
"""Stands for what a coroutine yields, where it has returned ``None``."""

RAISED = object()
"""Stands for what a coroutine yields, where it has raised."""

OUR_FRAMES = 0 if cython.compiled else 2
"""How many frames a call through one of the factories adds to a stack: compiled functions have none."""

AT_ONCE = 0
"""How long a poll waits when there is work to do: it is this very object then, and need not be compared."""

NO_MORE_STEPS = iter(())
"""What takes the other steps of a coroutine that ended in its first."""

MARKS = SimpleNamespace(_is_coroutine=getattr(coroutines, "_is_coroutine", None), _is_coroutine_marker=None)
"""What tells `iscoroutinefunction`, asyncio's and inspect's, that a callable object is one."""

if hasattr(inspect, "markcoroutinefunction"):  # since Python 3.12; what it sets has another name in each release
    inspect.markcoroutinefunction(MARKS)

current: ContextVar = ContextVar("loopwatch_request", default=None)
"""The request on whose behalf code runs that is no step of it: set before tasks, timers and threads copy a context.

Steps themselves know their request by :attr:`Stage.running`, since a variable costs more than all their booking.
"""

IN_USE: list = []
"""The stages of all loops that are measured now: nearly always one."""


@cython.final
@cython.cclass
class Stage:
    """Who is on the stage, that is, holds the loop? And since when can those that wait have been due?

    ``bound`` is the earliest instant at which an event that resumes a task now can have become ready: one that was
    ready before the previous poll would have been delivered by it. Loop clocks keep it.
    """

    running: object
    off: cython.bint
    thread: cython.ulong
    bound: cython.longlong
    next_bound: cython.longlong
    on_failure: object
    on_long_step: object
    holders: list
    _held_to: cython.longlong
    clock: object
    cpu_clock: object
    _told: cython.longlong
    _cpu_at: cython.longlong
    _cpu_mark: cython.longlong
    _spent: cython.longlong
    _libuv: cython.bint
    overdue: cython.longlong
    _asked_again: cython.longlong
    _patience: cython.longlong
    _look: object
    _uv_loop: cython.longlong
    _uv_info: cython.longlong
    _uv_idle: cython.longlong
    _seen_at: cython.longlong
    _seen_idle: cython.longlong
    _seen_iterations: cython.longlong
    _before_at: cython.longlong
    _before_idle: cython.longlong

    def __init__(
        self,
        on_failure: object,
        on_long_step: object = None,
        clock: object = None,
        cpu_clock: object = None,
    ) -> None:
        self.running = None
        self.off = False
        self.thread = 0
        self.bound = NEVER
        self.next_bound = NEVER
        self.on_failure = on_failure
        self.on_long_step = on_long_step
        self.holders = []
        self._held_to = 0
        self.clock = clock
        self.cpu_clock = cpu_clock
        self._told = 0
        self._cpu_at = 0
        self._cpu_mark = 0
        self._spent = 0
        self._libuv = False
        self.overdue = NEVER
        self._asked_again = self._patience = 0
        self._look = None
        self._seen_at = 0

    def watch_libuv(self, look: object, loop: int, info: int, idle: int) -> None:
        """Keep the bound by libuv's figures.

        ``look`` is given the count of iterations that was seen last. It returns the idle nanoseconds, which it may
        leave 0 if that has not changed, and the present count. The compiled core gets the same from the addresses
        of the ``uv_loop_t``, ``uv_metrics_info`` and ``uv_metrics_idle_time``.
        """
        self._look = look
        self._uv_loop, self._uv_info, self._uv_idle = loop, info, idle
        self._seen_idle, self._seen_iterations = look(UNKNOWN)
        self._seen_at = self._before_at = self.now()
        self._before_idle = self._seen_idle
        self._libuv = True

    @cython.cfunc
    @cython.exceptval(check=False)
    def _observe(self, now: cython.longlong) -> cython.void:
        """Move the bound, if a new iteration of libuv has begun since the last step.

        libuv tells no poll's time. But all time since the last look was either idle, before a poll's end, or busy,
        and what was ready before the previous poll was delivered by it: so a task that resumes now was due for no
        longer than the loop was busy since the last look before the previous poll.
        """
        idle: cython.longlong
        iterations: cython.longlong
        if cython.compiled:
            iterations = uv_iterations(self._uv_info, self._uv_loop)
            idle = uv_number(self._uv_idle, self._uv_loop) if iterations != self._seen_iterations else 0
        else:
            try:
                idle, iterations = self._look(self._seen_iterations)
            except Exception as error:
                self.fail(error)
                return
        passed: cython.longlong = iterations - self._seen_iterations
        if passed:
            waited: cython.longlong = idle - self._seen_idle
            busy: cython.longlong = now - self._seen_at - waited
            if passed > 2:  # nobody looked meanwhile: two of these iterations, as far as anyone can tell
                busy = busy * 2 // passed
            elif waited <= WAITED_NS:
                busy = now - self._before_at - (idle - self._before_idle)
            self.bound = now - max(0, busy)
            self._before_at, self._before_idle = self._seen_at, self._seen_idle
            self._seen_idle, self._seen_iterations = idle, iterations
        self._seen_at = now

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def now(self) -> cython.longlong:
        return wall_now() if self.clock is None else self._ask()

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def cpu(self) -> cython.longlong:
        return cpu_now() if self.cpu_clock is None else self.cpu_clock()

    @cython.cfunc
    @cython.exceptval(check=False)
    def _ask(self) -> cython.longlong:
        """Read the clock that was given. One that breaks stands still, and switches the steps off."""
        try:
            self._told = self.clock()
        except Exception as error:
            self.fail(error)
        return self._told

    @staticmethod
    def is_any_in_use() -> bool:
        """Tell whether a loop of this process is measured now. Any thread."""
        return bool(IN_USE)

    def use(self) -> None:
        """Book the steps of requests from now on. Safe to call twice."""
        if self not in IN_USE:
            IN_USE.append(self)

    def who(self) -> Any:
        """Return the request whose step holds the loop at this instant, ``None`` if it is none. Any thread."""
        return self.running

    def request(self) -> Any:
        """Return the request on whose behalf the loop runs now, ``None`` if there is none.

        Contexts that are copied from now on tell it too.
        """
        return self._request()

    @cython.cfunc
    def _request(self) -> object:
        found = self._on_behalf_of()
        if self.running is not None:
            request: Request = self.running
            request._share()
        return found

    @cython.cfunc
    def _on_behalf_of(self) -> object:
        """Return the same without letting contexts know."""
        if self.running is not None:
            return self.running
        found = get_variable(current)
        if found is not None:
            request: Request = found
            if request.stage is not self:  # another loop's, which has this one do something
                return None
        return found

    def expect_watcher(self, due: cython.longlong) -> None:
        """Hear that a thread is to look at the loop, and needs the GIL for it. That thread."""
        self.overdue = due + OVERDUE_NS

    def overdue_address(self) -> int:
        """Return where it stands from when on a watcher must be waiting: for one without the GIL."""
        return cython.cast(cython.size_t, cython.address(self.overdue)) if cython.compiled else 0

    def expect_nobody(self) -> None:
        """Hear that no such thread waits. That thread."""
        self.overdue = NEVER

    @cython.cfunc
    @cython.exceptval(-1)
    def _make_way(self, now: cython.longlong) -> cython.int:
        """Let go of the GIL for long enough that the watcher, which waits for it, wakes up and takes it.

        A loop that polls without waiting lets go of it at each poll, too: that wakes the watcher, which comes too
        late and begins to wait anew. It may need the GIL again soon; if not, way is made ever more rarely.
        """
        self._patience = 2 * self._patience if self.overdue == self._asked_again else PATIENCE_NS
        self.overdue = self._asked_again = now + self._patience
        sleep(WAY_SECONDS)
        return 0

    def is_off(self) -> bool:
        """Tell whether steps are no longer booked."""
        return self.off

    def switch_off(self) -> None:
        """Book no more steps; requests in flight go on without. Safe to call twice."""
        self.off = True
        if self in IN_USE:
            IN_USE.remove(self)
        self.holders.clear()  # they know their stage, and nobody would collect the circle

    def fail(self, error: BaseException) -> None:
        """Switch the steps off and report why."""
        self.off = True
        self.on_failure("steps", error, "the time of requests is no longer split into states")

    def fail_once(self, error: BaseException) -> None:
        """Report what failed in the accounting of one request; it and all others go on to be accounted."""
        self.on_failure(
            "steps", error, "a request's waiting may be in the wrong state, or lack its victim or blocker"
        )

    def long_steps(self) -> list[tuple[int, int, int, Any]]:
        """Return the latest long steps: when each began and ended, its CPU time, and whose it was. Any thread."""
        return self.holders.copy()

    def blockers(self, start: cython.longlong, end: cython.longlong) -> list:
        """Return (request, nanoseconds) for each long step that held the loop between two instants."""
        found = []
        for held_from, held_to, _, request in reversed(self.holders):
            if held_to <= start:
                break  # as have all that ended before it
            overlap = min(held_to, end) - max(held_from, start)
            if overlap > 0:
                found.append((request, overlap))
        return found


@cython.final
@cython.no_gc
@cython.freelist(64)
@cython.cclass
class Job:
    """One piece of work for a pool of workers: a function, and when it was submitted, began and ended.

    A worker thread calls it in place of the function, and its clocks time it there. What happens in the worker is
    written there, the rest on the loop thread; ``left`` is when it was given up.
    """

    submitted: cython.longlong
    started: cython.longlong
    ended: cython.longlong
    left: cython.longlong
    cpu: cython.longlong
    thread: cython.longlong
    _known: cython.longlong  # to its pool: SUBMITTED and so on
    _member: Member
    _function: object
    _request: object  # until it is over: a request remembers its work, too, and nobody would collect the circle

    def __call__(self, *arguments):
        """Worker thread: call the function."""
        if self.left:
            return self._function(*arguments)
        self.thread = get_ident()
        outer = swap_job(self)
        self.started = wall_now()
        begun_with: cython.longlong = cpu_at_start(self.started)
        try:
            return self._function(*arguments)
        finally:
            ended: cython.longlong = wall_now()
            self.cpu = max(0, cpu_at_end(begun_with, ended - self.started, ended) - begun_with)
            swap_job(outer)
            self.ended = ended
            self._function = self._request = None
            if self.left:  # nobody else would tell
                self._member._pool._told.append(self)

    def __getattr__(self, name):
        # __name__ and its like: what an executor asks a function for.
        if self._function is None:
            raise AttributeError(name)
        return getattr(self._function, name)

    def leave(self, _future: object = None) -> None:
        """Nobody waits for it any more: it is over, or given up. Also the callback of a future. Loop thread."""
        if not self.ended:
            self.left = wall_now()
            if not self.started:
                self.ended = self.left
                self._request = None
            elif not self._member._frees and not self.ended:
                return
        self._member._pool._told.append(self)


SUBMITTED, HELD, LEFT, OVER = 0, 1, 2, 3
"""What a pool knows of work: nothing yet; that it holds a place; that it runs on without one; its end."""

INFINITE = float("inf")

MOST_TOLD = 64
"""After so many changes a pool books them, whether or not anybody reads it."""


@cython.final
@cython.cclass
class Member:
    """One limiter or executor of a pool: what is submitted to it, and what the pool has booked of that.

    ``frees`` tells that work which is given up frees its place at once, as in a limiter, even if it still runs;
    ``in_line`` that work begins in order, and nobody says when.
    """

    _pool: Pool
    _frees: cython.bint
    _line: object
    _places: cython.double
    _works: cython.longlong
    _is_booked: cython.bint
    _is_gone: cython.bint

    def __init__(self, pool: Pool, places: float, frees: bool = False, in_line: bool = False) -> None:
        """Begin with so many places. Any thread."""
        self._pool = pool
        self._frees = frees
        self._line = deque() if in_line else None
        self._places = 0.0
        self._works = 0
        self._is_booked = self._is_gone = False
        self.resize(places)

    def job(self, function: object, stage: Stage) -> Job:
        """Return a function that does the same in a worker thread and is timed there. Loop thread."""
        return self._job(function, stage)

    @cython.cfunc
    def _job(self, function: object, stage: Stage) -> Job:
        job: Job = self._submit()
        job._function = function
        current_request = stage._on_behalf_of()
        if current_request is not None:
            request: Request = current_request
            if request._open or request._workers > 0:
                job._request = request
                request._add_job(job)
        return job

    def submit(self) -> Job:
        """Note work that runs where nobody can time it. Loop thread."""
        return self._submit()

    @cython.cfunc
    def _submit(self) -> Job:
        job: Job = Job.__new__(Job)
        job.submitted = wall_now()
        job.started = job.ended = job.left = job.cpu = job.thread = 0
        job._known = SUBMITTED
        job._member = self
        job._function = job._request = None
        pool: Pool = self._pool
        pool._told.append(job)
        if len(pool._told) > MOST_TOLD and pool._lock.acquire(False):
            try:
                pool._book()
            finally:
                pool._lock.release()
        return job

    def end(self, work: Job) -> None:
        """Note that such work is over. Any thread."""
        work.ended = wall_now()
        self._pool._told.append(work)

    def resize(self, places: float) -> None:
        """Note that it has ``places`` from now on. Any thread."""
        self._pool._told.append((wall_now(), self, places))

    def retire(self) -> None:
        """Note that nobody submits to it any more: its places go when its work has ended. Any thread; no lock."""
        self._pool._told.append((wall_now(), self, None))


@cython.final
@cython.cclass
class Pool:
    """What is submitted to one pool of workers, for how long it waits and runs there, and for how long it was full.

    Any thread tells of a change by appending to a queue, which takes no lock; who comes by next books it. The
    changes carry their times, so the figures do not depend on when that is. A member leaves no place free while
    work waits: it is full while as many pieces of work as it has places, or more, are submitted and not over.

    A pool of one member is at its limit while that is full. One whose members are made anew, for each call say, is
    at its limit while work waits: its members may be full by design, and the next call brings one of its own.
    """

    _told: object
    _lock: object
    _works: set
    _members: cython.longlong
    _living: cython.longlong
    _limit: cython.double
    _unlimited: cython.longlong
    _waiting: cython.double
    _since: cython.longlong
    _full_since: cython.longlong
    _ended_at: cython.longlong
    _saturated: cython.longlong
    _cpu: cython.longlong
    _wait: cython.longlong
    _queue: Counts
    _run: Counts

    def __init__(self, bounds_ns: list) -> None:
        """Begin without a member."""
        self._told = deque()
        self._lock = allocate_lock()
        self._works = set()
        self._members = self._living = self._unlimited = 0
        self._limit = self._waiting = 0.0
        self._since = wall_now()
        self._full_since = self._ended_at = 0
        self._saturated = self._cpu = self._wait = 0
        self._queue, self._run = Counts(bounds_ns), Counts(bounds_ns)

    def read(self) -> tuple:
        """Return the limit, work that holds a place, work that waits, and what has been counted.

        That is the time at the limit, histograms of queue and run, CPU and other time: nanoseconds. Any thread.
        """
        with self._lock:
            self._book_all()
            self._pass(wall_now())
            return (
                INFINITE if self._unlimited else self._limit,
                len(self._works) - int(self._waiting),
                int(self._waiting),
                self._saturated,
                self._queue.read(),
                self._run.read(),
                self._cpu,
                self._wait,
            )

    def stuck(self) -> tuple:
        """Return for how many nanoseconds nothing has ended while work waits, and who runs what. Any thread."""
        with self._lock:
            self._book_all()
            since = max(self._full_since, self._ended_at) if self._full_since else 0
            running = []
            for one in self._works:
                work: Job = one
                if work.started and not work.ended:
                    running.append((work.thread, work._function))
        return (wall_now() - since if since else 0), running

    def _book_all(self):
        """Book what was told, and what has ended though a busy loop has yet to tell it. Whoever holds the lock."""
        self._book()
        ended = []
        for one in self._works:
            work: Job = one
            if work.ended and not work._member._frees:
                ended.append((work.ended, work))
        for _, one in sorted(ended, key=itemgetter(0)):
            self._book_work(one)
        self._look_at_queue()

    @cython.cfunc
    def _book(self):
        """Book what was told. Whoever holds the lock."""
        while self._told:
            told = self._told.popleft()
            if type(told) is Job:
                self._book_work(told)
            else:
                when, member, places = told
                self._pass(when)
                self._book_places(member, places)
            self._look_at_queue()

    @cython.cfunc
    def _look_at_queue(self):
        """Note since when there is one."""
        if not self._waiting:
            self._full_since = 0
        elif not self._full_since:
            self._full_since = self._since

    @cython.cfunc
    def _book_places(self, member: Member, places: object):
        """Book how many places a member has, ``None`` if it is gone."""
        if places is None:
            member._is_gone = True
            if not member._works:
                self._remove(member)
            return
        if not member._is_booked:
            member._is_booked = True
            self._members += 1
            self._living += 1
        self._change(member, member._works, places)

    @cython.cfunc
    def _remove(self, member: Member):
        if member._is_booked:
            member._is_booked = False
            self._living -= 1
            self._change(member, 0, 0.0)

    @cython.cfunc
    def _change(self, member: Member, works: cython.longlong, places: cython.double):
        """Book how much work a member has from now on, and how many places."""
        if member._works > member._places:
            self._waiting -= member._works - member._places
        if works > places:
            self._waiting += works - places
        if places != member._places:
            for each, sign in ((member._places, -1), (places, 1)):
                if each == INFINITE:  # what is without end is not added: nothing could be taken away from it
                    self._unlimited += sign
                else:
                    self._limit += sign * each
        member._works, member._places = works, places

    @cython.cfunc
    def _book_work(self, work: Job):
        member: Member = work._member
        if work._known == SUBMITTED:
            self._pass(work.submitted)
            self._works.add(work)
            self._change(member, member._works + 1, member._places)
            work._known = HELD
            if member._line is not None:
                if member._works > member._places:
                    member._line.append(work)
                else:
                    work.started = work.submitted
        elif work._known == HELD:
            self._release(work)
        elif work._known == LEFT and work.ended:
            self._book_run(work)

    @cython.cfunc
    def _release(self, work: Job):
        """Book that work has freed its place, or left the queue."""
        member: Member = work._member
        gone: cython.longlong = work.left if work.left and (member._frees or not work.ended) else work.ended
        self._pass(gone)
        self._works.discard(work)
        self._change(member, member._works - 1, member._places)
        if member._line is not None:
            self._move_up(work, gone)
        if member._is_gone and not member._works:
            self._remove(member)
        self._queue._observe(max(0, (work.started or gone) - work.submitted))
        work._known = OVER
        if not work.started:
            return
        self._ended_at = gone
        if work.ended:
            self._book_run(work)
        else:
            work._known = LEFT

    @cython.cfunc
    def _move_up(self, work: Job, now: cython.longlong):
        """Let the next in line begin where ``work`` has ended; what had not begun leaves the line."""
        line: object = work._member._line
        if not work.started:
            line.remove(work)
        elif line:
            following: Job = line.popleft()
            following.started = now

    @cython.cfunc
    def _book_run(self, work: Job):
        work._known = OVER
        ran: cython.longlong = max(0, work.ended - work.started)
        self._run._observe(ran)
        if work._member._line is None:
            self._cpu += min(work.cpu, ran)
            self._wait += max(0, ran - work.cpu)

    @cython.cfunc
    def _pass(self, now: cython.longlong):
        """Let time pass up to a change."""
        if now <= self._since:
            return
        if self._is_at_limit():
            self._saturated += now - self._since
        self._since = now

    @cython.cfunc
    def _is_at_limit(self) -> cython.bint:
        if self._members > 1:
            return self._waiting > 0
        return self._living == 1 and not self._unlimited and len(self._works) >= self._limit


@cython.final
@cython.cclass
class Counts:
    """A histogram over fixed bounds. Written on the loop thread, read on any."""

    _bounds: list
    _held: tuple
    _limits: cython.p_longlong
    _counts: cython.p_longlong
    _last: cython.Py_ssize_t
    total: cython.longlong

    def __init__(self, bounds_ns: list) -> None:
        limits, counts = array("q", bounds_ns), array("q", bytes(8 * (len(bounds_ns) + 1)))
        self._held = limits, counts  # keeps their numbers where they are
        self._limits, self._counts = numbers_of(limits), numbers_of(counts)
        self._bounds = bounds_ns
        self._last = len(bounds_ns)
        self.total = 0

    @cython.cfunc
    @cython.exceptval(check=False)
    def _observe(self, duration: cython.longlong) -> cython.void:
        """Count one duration."""
        if cython.compiled:
            bucket: cython.Py_ssize_t = 0
            while bucket < self._last and self._limits[bucket] < duration:
                bucket += 1
        else:
            bucket = bisect_left(self._bounds, duration)
        self._counts[bucket] += 1
        self.total += duration

    def count(self) -> int:
        """Return how many were counted. Any thread."""
        return sum([self._counts[bucket] for bucket in range(self._last + 1)])

    def read(self) -> tuple:
        """Return the count of each bucket and the sum, in nanoseconds. Any thread."""
        return tuple([self._counts[bucket] for bucket in range(self._last + 1)]), self.total


@cython.final
@cython.cclass
class Account:
    """All requests of one route and method. Written on the loop thread, read on any."""

    _bounds: list
    _held: tuple
    _request: cython.p_longlong
    _background: cython.p_longlong
    durations: dict
    _usual: Counts
    cpu: Counts
    wait: Counts
    labels: tuple

    def __init__(self, bounds_ns: list, labels: tuple) -> None:
        self._bounds = bounds_ns
        self.labels = labels
        self._held = array("q", bytes(8 * 7)), array("q", bytes(8 * 7))
        self._request, self._background = numbers_of(self._held[0]), numbers_of(self._held[1])
        self._usual = Counts(bounds_ns)
        self.durations = {2: self._usual}
        self.cpu = Counts(bounds_ns)
        self.wait = Counts(bounds_ns)

    @cython.cfunc
    def _add(self, request: object, status_class: cython.longlong, duration: cython.longlong, split: cython.bint):
        """Add a request that has ended after ``duration``; ``split`` tells whether its states are known."""
        if status_class == 2:
            counts: Counts = self._usual  # nearly all
        else:
            counts = self.durations.get(status_class)
            if counts is None:
                counts = self.durations[status_class] = Counts(self._bounds)
        counts._observe(duration)
        if split:
            one: Request = request
            cpu: cython.longlong = one.loop_cpu + one.thread_cpu
            self.cpu._observe(cpu)
            self.wait._observe(duration - cpu)
            one._pour(self._request)

    def read(self) -> tuple:
        """Return times during requests and in the background, and histograms of CPU, of wait and by status class.

        Any thread.
        """
        return (
            [self._request[state] for state in range(7)],
            [self._background[state] for state in range(7)],
            self.cpu.read(),
            self.wait.read(),
            {status: counts.read() for status, counts in self.durations.copy().items() if counts.count()},
        )


@cython.final
@cython.no_gc
@cython.freelist(64)
@cython.cclass
class Request:
    """One request: its account, the driver of its coroutine, and the ``send`` that its app gets."""

    # So inspect's and asyncio's `iscoroutinefunction` take it for one, as they do the server's `send`.
    _is_coroutine_marker = MARKS._is_coroutine_marker
    _is_coroutine = MARKS._is_coroutine

    stage: Stage
    scope: object
    status: cython.longlong
    loop_cpu: cython.longlong
    loop_blocked: cython.longlong
    thread_cpu: cython.longlong
    thread_wait: cython.longlong
    thread_queue: cython.longlong
    loop_wait: cython.longlong
    awaiting: cython.longlong
    _mark: cython.longlong
    _opened: cython.longlong
    _open: cython.bint
    _resting: cython.bint
    _workers: cython.longlong
    _threads: cython.longlong
    _threads_cpu: cython.longlong
    _job: Job  # of the one worker thread that works for it
    _jobs: list  # where there are several
    _timers: list
    _shared: cython.bint
    _victims: list
    _coroutine: object
    _send: object
    _uncalled: cython.bint
    _receive: object
    _session_send: object
    _door: Door
    _outer: object
    _pending: object
    _background: Account

    # --- the driver of the request's own coroutine

    def drive(self, coroutine: object) -> object:
        """Take the coroutine that serves the request; awaiting the request then runs it, step by step."""
        self._door.active += 1
        self._drive(coroutine)
        return self

    @cython.cfunc
    def _drive(self, coroutine: object):
        self._coroutine = coroutine if type(coroutine) is CoroutineType else steppable(coroutine)
        self._workers += 1

    @cython.cfunc
    def _call(self):
        """Call the app, now that the request is awaited: a request that is never awaited holds nothing."""
        door: Door = self._door
        receive, self._receive = self._receive, None
        send, self._session_send = self._session_send, None
        if send is None:  # a method of Python's is called faster than an object with a `__call__`
            send = self if cython.compiled else self.__call__
        self._uncalled = False
        door.active += 1
        served = RAISED
        try:
            served = door._app(self.scope, receive, send)
        finally:
            if served is RAISED:
                self._finish()
        self._drive(served)

    @cython.cfunc
    def _share(self):
        """Let contexts that are copied in this step know the request."""
        if self._shared:
            return
        self._shared = True
        outer = get_variable(current)
        if outer is not None:  # a request within a request, or after it in the same context
            further_out: Request = outer
            if further_out._open or further_out._workers > 0:
                self._outer = outer
        set_variable(current, self)

    def __await__(self):
        """Take the first step; return what takes the others, which is nothing where that was all."""
        if self._uncalled:
            self._call()
        if not cython.compiled:
            return steps_of(self)
        value = self._take_step(self._mark)  # it begins as the request does
        if value is DONE:
            return NO_MORE_STEPS
        self._pending = value
        return self

    def __iter__(self):
        return self

    def __next__(self):
        value = self._pending
        if value is DONE:
            value = self._take_step(UNKNOWN)
        else:
            self._pending = DONE
        return passed_on(value)

    @cython.cfunc
    def _take_step(self, now: cython.longlong) -> object:
        """Resume the coroutine; return what :func:`resume` does."""
        outer = self._enter(now)
        value = RAISED
        try:
            value = resume(self._coroutine, DONE)
        finally:  # to be ready for `except` costs some hundred instructions before each step
            self._leave(outer)
            if value is DONE or value is RAISED or type(value) is StopIteration:
                self._finish()
        return value

    def send(self, value):
        """Resume with ``value``, as :meth:`coroutine.send`."""
        if self._uncalled:
            self._call()
        outer = self._enter(UNKNOWN)
        try:
            value = self._coroutine.send(value)
        except BaseException:
            self._leave(outer)
            self._finish()
            raise
        self._leave(outer)
        return value

    def throw(self, *error):
        """Resume with an exception, as :meth:`coroutine.throw`."""
        if self._uncalled:
            self._call()
        outer = self._enter(UNKNOWN)
        try:
            value = self._coroutine.throw(*error)
        except BaseException:
            self._leave(outer)
            self._finish()
            raise
        self._leave(outer)
        return value

    def close(self) -> None:
        """Close, as :meth:`coroutine.close`."""
        self._uncalled = False
        if self._coroutine is not None:
            try:
                self._coroutine.close()
            finally:
                self._finish()

    @cython.cfunc
    @cython.exceptval(-1)
    def _finish(self) -> cython.int:
        """The coroutine has ended, or raised what is handled now: end the request too if its response has not."""
        if self._shared and get_variable(current) is self:  # whoever called the app goes on in this context
            set_variable(current, self._outer)
        self._outer = self._coroutine = None
        if self._open:
            self._end(CANCELLED if isinstance(exc_info()[1], CancelledError) else FAILED)
        self._drop_worker()
        self.scope = None  # whoever remembers this request keeps nothing of the app's alive

    # --- the send that the app gets

    def __call__(self, message):
        """Pass a message on to the server; note the status, and the end of the response once it was sent."""
        told: cython.longlong = told_by(message)
        if told > 0:
            self.status = told
        if self._send is None:
            return say_nothing()
        sent = self._send(message)
        if told != LAST_PART or not self._open:
            return sent
        if not cython.compiled:
            return send_last(sent, self)
        ending: LastSend = LastSend.__new__(LastSend)
        ending._request = self
        ending._pending = DONE
        ending._coroutine = sent if type(sent) is CoroutineType else steppable(sent)
        return ending

    def __getattr__(self, name):
        # __name__ and its like: what tracers ask the `send` of an app for.
        if self._send is None:
            raise AttributeError(name)
        return getattr(self._send, name)

    # --- the account

    def open(self) -> None:
        """Begin an account in the state it is in: of the request, or of one message of a session."""
        self._begin()
        self._door.active += 1

    @cython.cfunc
    @cython.exceptval(check=False)
    def _begin(self) -> cython.void:
        self.loop_cpu = self.loop_blocked = self.thread_cpu = self.thread_wait = 0
        self.thread_queue = self.loop_wait = self.awaiting = 0
        self._threads = self._threads_cpu = 0
        self._opened = self._mark = self.stage.now()
        self._open = True
        self._resting = False

    def end(self, status_if_none: cython.longlong = 0) -> None:
        """Close the account into that of the route; what comes later is booked as background work."""
        self._end(status_if_none)

    @cython.cfunc
    @cython.exceptval(-1)
    def _end(self, status_if_none: cython.longlong) -> cython.int:
        """Close the account. Never raises: it is called from within the app's own steps."""
        if not self._open:
            return 0
        door: Door = self._door
        door.active -= 1
        try:
            stage: Stage = self.stage
            if stage.running is self:
                self._book_step(stage.now())
            elif self._resting or stage.off or get_ident() != stage.thread:  # where garbage collection closes it
                self._mark = stage.now()
            else:  # an empty step books what lies before it
                self._leave(self._enter(UNKNOWN))
            if self._threads or self._threads_cpu:
                self._settle_threads()
            account: Account = (
                door._account(self.scope)
                if self.status != NOT_ALLOWED
                else door.recorder.account_of_not_allowed(self.scope)
            )
            self._background = account
            status_class: cython.longlong = (self.status or status_if_none) // 100
            if not 1 <= status_class <= 5:
                status_class = 1 if status_class < 1 else 5
            if door._observer is not None:
                door._observer.end(self, status_class)
            account._add(self, status_class, self._mark - self._opened, not stage.off)
            if self._victims is not None:
                self._charge()
        except Exception as error:
            self.stage.on_failure("requests", error, "some requests are not counted")
        self._open = False
        return 0

    @cython.cfunc
    def _charge(self):
        """Have those who held the loop while it waited charged for that."""
        victims, self._victims = self._victims, None
        self._door.recorder.charge(self.scope, victims)

    def answer(self, status: int) -> None:
        """Note the status of the response."""
        self.status = status

    def route(self) -> str:
        """Return the label of its route."""
        return self.labels()[0]

    def labels(self) -> tuple:
        """Return the labels of its route and method, as far as it is routed. Any thread."""
        account: Account = self._background
        if account is not None:
            return account.labels
        scope = self.scope
        return self._door.recorder.labels_of(scope) if scope is not None else NO_LABELS

    def is_routed(self) -> bool:
        """Tell whether its route is known, or can no longer become so. Any thread."""
        scope = self.scope
        return self._background is not None or scope is None or "endpoint" in scope

    def read(self) -> tuple:
        """Return the account's nanoseconds in each state, in the order of ``catalogue.STATES``."""
        return (
            self.loop_cpu,
            self.loop_blocked,
            self.thread_cpu,
            self.thread_wait,
            self.thread_queue,
            self.loop_wait,
            self.awaiting,
        )

    def read_now(self) -> tuple:
        """Return what :meth:`read` will, were the account closed at this instant. Loop thread.

        A step in progress is booked up to now; what threads did is divided as far as they have told.
        """
        stage: Stage = self.stage
        if stage.running is self and not stage.off:
            self._book_step(stage.now())
        cpu: cython.longlong = min(self._threads, self._threads_cpu)
        return (
            self.loop_cpu,
            self.loop_blocked,
            self.thread_cpu + cpu,
            self.thread_wait + self._threads - cpu,
            self.thread_queue,
            self.loop_wait,
            self.awaiting,
        )

    def is_open(self) -> bool:
        """Tell whether its account is open: the response, or a message of a session, has not ended. Any thread."""
        return self._open

    def is_session(self) -> bool:
        """Tell whether it is a WebSocket session, which is accounted by message."""
        scope = self.scope
        return scope is not None and scope["type"] == "websocket"

    def is_over(self) -> bool:
        """Tell whether nobody works on its behalf any more."""
        return not self._open and self._workers <= 0

    def rest(self) -> None:
        """Book nothing until the next step begins: the request waits for nothing of its own."""
        self._resting = True

    @cython.cfunc
    @cython.exceptval(check=False)
    def _add_worker(self) -> cython.void:
        """Count one more coroutine that works on the request's behalf."""
        self._workers += 1

    @cython.cfunc
    @cython.exceptval(check=False)
    def _drop_worker(self) -> cython.void:
        """Count one coroutine less. While there is none, time passes without being booked."""
        self._workers -= 1
        if self._workers <= 0:
            self._resting = True
            # A timer's context leads to the request: nobody would collect the circle. So may the server's `send`.
            self._job = self._jobs = self._timers = self._send = None

    @cython.cfunc
    def _enter(self, now: cython.longlong) -> object:
        """Begin a step: return the request whose step it interrupts, ``None`` if there is none."""
        stage: Stage = self.stage
        outer = stage.running
        # An eager child takes its first step within its parent's, which books the time already.
        if stage.off or outer is self:
            return NOT_BOOKED
        if now == UNKNOWN:
            now = stage.now()
        if outer is not None:
            cython.cast(Request, outer)._book_step(now)
        if stage._libuv:
            stage._observe(now)
        if self._resting:
            self._resting = False
            if self._job is not None or self._jobs is not None:
                self._forget_jobs()
        else:  # what the request waited for, and then for how long it was due
            start: cython.longlong = self._mark
            due: cython.longlong = stage.bound
            if self._job is not None:
                start = self._book_job(now)
            elif self._jobs is not None:
                start = self._book_jobs(now)
            if self._timers is not None:
                due = self._due_by_timer(start, now, due)
            if due < start:  # noqa: PLR1730 # a call costs the plain core as much as the rest
                due = start
            if due < now:
                self.loop_wait += now - due
                self.awaiting += due - start
                if now - due >= LONG_NS:
                    self._blame(due, now)
            else:
                self.awaiting += now - start
        if now - stage._cpu_at > FRESH_NS:
            stage._cpu_at = now
            stage._cpu_mark = stage.cpu()
            stage._spent = 0
        self._mark = now
        stage.running = self
        return outer

    @cython.cfunc
    @cython.exceptval(-1)
    def _leave(self, outer: object) -> cython.int:
        """End a step, and go on with the one that it interrupted."""
        if outer is NOT_BOOKED:
            return 0
        stage: Stage = self.stage
        stage.running = outer
        now: cython.longlong = stage.now()
        self._book_step(now)
        stage._seen_at = now
        if now > stage.overdue and outer is None:
            stage._make_way(now)
        if outer is not None:
            interrupted: Request = cython.cast(Request, outer)
            interrupted.awaiting += now - interrupted._mark
            interrupted._mark = now
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _book_step(self, now: cython.longlong) -> cython.int:
        """Book a step that ends now, its CPU and its blocked time apart."""
        stage: Stage = self.stage
        wall: cython.longlong = now - self._mark
        if wall < SHORT_NS:
            self.loop_cpu += wall
            stage._spent += wall
        else:
            cpu_mark: cython.longlong = stage.cpu()
            cpu: cython.longlong = cpu_mark - stage._cpu_mark - stage._spent
            cpu = max(0, min(cpu, wall))
            self.loop_cpu += cpu
            self.loop_blocked += wall - cpu
            stage._cpu_mark = cpu_mark
            stage._cpu_at = now
            stage._spent = 0
            if wall >= LONG_NS:
                self._tell_long_step(now, wall, cpu)
        self._mark = now
        if self._background is not None and not self._open:
            self._pour(self._background._background)

    @cython.cfunc
    @cython.exceptval(-1)
    def _tell_long_step(self, now: cython.longlong, wall: cython.longlong, cpu: cython.longlong) -> cython.int:
        stage: Stage = self.stage
        try:
            if len(stage.holders) >= STEPS:
                del stage.holders[: STEPS // 2]
            stage.holders.append((now - wall, now, cpu, self))
            stage._held_to = now
            if stage.on_long_step is not None:
                stage.on_long_step(wall)
            if self._open and self._door._observer is not None:
                self._door._observer.held(self, now - wall, now)
        except Exception as error:
            stage.fail_once(error)

    @cython.cfunc
    @cython.exceptval(-1)
    def _blame(self, start: cython.longlong, end: cython.longlong) -> cython.int:
        stage: Stage = self.stage
        try:
            if not self._open:
                return 0  # victims are those who have yet to answer
            if stage._held_to > start:
                if self._victims is None:
                    self._victims = []
                self._victims += stage.blockers(start, end)
                if len(self._victims) >= HOLDERS:
                    self._charge()
            if self._door._observer is not None:
                self._door._observer.waited(self, start, end)
        except Exception as error:
            stage.fail_once(error)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _pour(self, times: cython.p_longlong) -> cython.void:
        """Add the account's times to others, in the order of ``catalogue.STATES``, and empty it."""
        if self.loop_cpu:
            times[0] += self.loop_cpu
            self.loop_cpu = 0
        if self.loop_blocked:
            times[1] += self.loop_blocked
            self.loop_blocked = 0
        if self.thread_cpu:
            times[2] += self.thread_cpu
            self.thread_cpu = 0
        if self.thread_wait:
            times[3] += self.thread_wait
            self.thread_wait = 0
        if self.thread_queue:
            times[4] += self.thread_queue
            self.thread_queue = 0
        if self.loop_wait:
            times[5] += self.loop_wait
            self.loop_wait = 0
        if self.awaiting:
            times[6] += self.awaiting
            self.awaiting = 0

    # --- worker threads and timers

    @cython.cfunc
    def _add_job(self, job: Job):
        """Note what a worker thread is to do for the request."""
        if self._jobs is not None:
            self._jobs.append(job)
        elif self._job is None:
            self._job = job
        else:
            self._jobs = [self._job, job]
            self._job = None

    @cython.cfunc
    @cython.exceptval(-1)
    def _forget_jobs(self) -> cython.int:
        """Forget work that ended between two messages: a session may submit some with each message."""
        job: Job
        if self._jobs is None:
            job = self._job
            if job.ended:
                self._job = None
            return 0
        unfinished = []
        for one in self._jobs:
            job = one
            if not job.ended:
                unfinished.append(job)
        self._jobs = unfinished or None
        return 0

    @cython.cfunc
    def _note_timer(self, timer: object):
        """Remember an ``asyncio.TimerHandle`` set in a step: what it resumes is due when it is."""
        if self._timers is None:
            self._timers = [timer]
        elif len(self._timers) < MOST_TIMERS:
            self._timers.append(timer)

    @cython.cfunc
    @cython.exceptval(-1)
    def _due_by_timer(self, start: cython.longlong, now: cython.longlong, due: cython.longlong) -> cython.longlong:
        """Return when the earliest timer that fired in the gap was due, but not before ``due``, or else ``due``.

        A loop that sleeps a little longer than its timer asked for is idle meanwhile, not busy with others.
        """
        pending = []
        fired: cython.longlong = NEVER
        try:
            for timer in self._timers:
                if timer.cancelled():
                    continue
                when: cython.double = timer.when() * 1e9  # infinite for who sleeps for ever
                if when > now:
                    pending.append(timer)
                elif when > start:
                    fired = min(fired, int(when))
        except Exception as error:
            self.stage.fail_once(error)
        self._timers = pending or None
        if fired == NEVER:
            return due
        return fired if due == NEVER else max(fired, due)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _book_job(self, now: cython.longlong) -> cython.longlong:
        """Book what one worker thread did since the mark; return when that ended.

        The thread writes single attributes, so its work is seen either as ended, with its CPU time, or as running.
        """
        mark: cython.longlong = self._mark
        job: Job = self._job
        end: cython.longlong = job.ended
        if not end or end > now:
            end = now
        elif end < mark:
            end = mark
        begin: cython.longlong = job.started
        if not begin or begin > end:
            begin = end
        elif begin < mark:
            begin = mark
        self.thread_queue += begin - mark
        self._threads += end - begin
        if job.ended:
            self._threads_cpu += job.cpu
            self._job = None
            self._settle_threads()
        return end

    @cython.cfunc
    @cython.exceptval(-1)
    def _book_jobs(self, now: cython.longlong) -> cython.longlong:
        """Book what several worker threads did since the mark; return when the last of it had ended.

        Running comes before queueing, and each instant counts once.
        """
        mark: cython.longlong = self._mark
        running, either, unfinished = [], [], []
        last: cython.longlong = mark
        for one in self._jobs:
            job: Job = one
            end: cython.longlong = job.ended or now
            if job.started:
                running.append((max(mark, job.started), end))
            either.append((max(mark, job.submitted), end))
            if job.ended:
                self._threads_cpu += job.cpu
            else:
                unfinished.append(job)
            last = max(last, min(end, now))
        self._jobs = unfinished or None
        in_threads: cython.longlong = covered(running)
        in_all: cython.longlong = covered(either)
        self._threads += in_threads
        self.thread_queue += in_all - in_threads
        self.awaiting += (last - mark) - in_all
        if self._jobs is None:
            self._settle_threads()
        return last

    @cython.cfunc
    @cython.exceptval(check=False)
    def _settle_threads(self) -> cython.void:
        """Divide the time in threads into CPU and wait, as soon as the threads have told their CPU time."""
        cpu: cython.longlong = min(self._threads, self._threads_cpu)
        self.thread_cpu += cpu
        self.thread_wait += self._threads - cpu
        self._threads = self._threads_cpu = 0


if not cython.compiled:  # the method is what the app gets
    Request.__call__._is_coroutine_marker = Request._is_coroutine_marker
    Request.__call__._is_coroutine = Request._is_coroutine


@cython.cfunc
@cython.inline
def passed_on(value: object) -> object:
    """Pass on what :func:`resume` told, as an iterator does."""
    if value is DONE:
        raise StopIteration
    if type(value) is StopIteration:
        raise value
    return value


async def say_nothing():
    """Send what comes when the app, and all that worked for the request, have ended: as servers do then."""


def steppable(awaitable: object):
    """Return what an app gave us as something that has ``send``; nearly always it is a coroutine already."""
    return awaitable if iscoroutine(awaitable) else awaited(awaitable)


@cython.cfunc
def hide_last_frames(made: object, count: cython.Py_ssize_t):
    """Take frames off the end of the stack that asyncio keeps, in debug mode, of where a task or timer was made.

    asyncio writes the last frame as "created at": that of the caller, also where the call went through a factory.
    """
    if not count:
        return
    frames = getattr(made, "_source_traceback", None)
    if frames:
        del frames[len(frames) - count :]


def covered(intervals: list):
    """Return how many nanoseconds lie in at least one of the (start, end) intervals."""
    total: cython.longlong = 0
    reached: cython.longlong = 0
    for start, end in sorted(intervals):
        if end > start and end > reached:
            total += end - max(start, reached)
            reached = end
    return total


@cython.final
@cython.cclass
class Child:
    """The coroutine of a task that a request created: behaves as the one it drives, and books each of its steps."""

    __weakref__: object
    _coroutine: object
    _request: Request

    def __init__(self, coroutine: object, request: Request) -> None:
        self._coroutine = coroutine
        self._request = request
        request._add_worker()

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        outer = self._request._enter(UNKNOWN)
        value = RAISED
        try:
            value = resume(self._coroutine, DONE)
        finally:
            if value is DONE or value is RAISED or type(value) is StopIteration:
                self._request._drop_worker()
            self._request._leave(outer)
        return passed_on(value)

    def send(self, value):
        """Resume with ``value``, as :meth:`coroutine.send`."""
        outer = self._request._enter(UNKNOWN)
        try:
            return self._coroutine.send(value)
        except BaseException:
            self._request._drop_worker()
            raise
        finally:
            self._request._leave(outer)

    def throw(self, *error):
        """Resume with an exception, as :meth:`coroutine.throw`."""
        outer = self._request._enter(UNKNOWN)
        try:
            return self._coroutine.throw(*error)
        except BaseException:
            self._request._drop_worker()
            raise
        finally:
            self._request._leave(outer)

    def close(self) -> None:
        """Close, as :meth:`coroutine.close`. May run on any thread, by garbage collection: books nothing."""
        self._coroutine.close()

    def __getattr__(self, name):
        # cr_frame, cr_running, __qualname__ and their like: what tools ask a task's coroutine for.
        return getattr(self._coroutine, name)


@cython.final
@cython.cclass
class TaskFactory:
    """Makes the tasks of a loop, and has those that a request creates drive a :class:`Child`. Loop thread."""

    _stage: Stage
    _construct: object
    _hidden: cython.Py_ssize_t

    def __init__(self, stage: Stage, construct: object, loop_hides: int = 0) -> None:
        """Construct tasks as told; ``loop_hides``: how many of its own frames the loop hides without a factory."""
        self._stage = stage
        self._construct = construct
        self._hidden = loop_hides + OUR_FRAMES

    def make(self, loop, coroutine, **options):
        """Make a task where ``construct`` is :class:`asyncio.Task`."""
        options["loop"] = loop
        task = apply(self._construct, (self._adopted(coroutine),), options)
        hide_last_frames(task, self._hidden)
        return task

    def make_by_factory(self, loop, coroutine, **options):
        """Make a task where ``construct`` is another task factory."""
        return apply(self._construct, (loop, self._adopted(coroutine)), options)

    def construct(self, coroutine, **options):
        """Make a task as its class does."""
        task = apply(self._construct, (self._adopted(coroutine),), options)
        hide_last_frames(task, self._hidden)
        return task

    @cython.cfunc
    def _adopted(self, coroutine: object) -> object:
        """Return the coroutine of a new task, driven by a :class:`Child` if a request creates it."""
        creator = self._stage._request()
        if creator is None or self._stage.off:
            return coroutine
        request: Request = creator
        if (not request._open and request._workers <= 0) or type(coroutine) is Child:
            return coroutine
        if type(coroutine) is not CoroutineType and not iscoroutine(coroutine):
            return coroutine  # the task itself will say what is wrong with it
        return Child(coroutine, request)


@cython.final
@cython.cclass
class TimerFactory:
    """Sets the timers of a loop, and has the request know that sets one. Loop thread."""

    _stage: Stage
    _set: object
    _kind: object

    def __init__(self, stage: Stage, set_timer: object) -> None:
        self._stage = stage
        self._set = set_timer
        self._kind = None

    def call_at(self, *arguments, **context):
        """Set a timer, as asyncio's loops do."""
        return self._note(apply(self._set, arguments, context))

    def call_later(self, *arguments, **context):
        """Set a timer, as uvloop's loops do."""
        return self._note(apply(self._set, arguments, context))

    @cython.cfunc
    def _note(self, timer: object) -> object:
        """Have the request that sets a timer remember it."""
        hide_last_frames(timer, OUR_FRAMES)
        if self._stage.running is not None and (type(timer) is self._kind or self._is_timer(timer)):
            request: Request = self._stage.running
            request._note_timer(timer)
        return timer

    @cython.cfunc
    def _is_timer(self, handle: object) -> cython.bint:
        """Tell whether this is one, and know its kind again: uvloop makes none for less than half a millisecond."""
        if not hasattr(handle, "when"):
            return False
        self._kind = type(handle)
        return True


@cython.final
@cython.cclass
class JobFactory:
    """Makes jobs of what one loop gives to the threads of limiters. Loop thread; on any other it makes none."""

    _stage: Stage
    _thread: cython.ulong
    _default: Member
    _member_of: object
    _on_failure: object

    def __init__(self, stage: Stage, member_of: object, on_failure: object) -> None:
        self._stage = stage
        self._thread = get_ident()
        self._default = member_of(None, None)
        self._member_of = member_of
        self._on_failure = on_failure

    def make(self, function, limiter):
        """Return a function that does the same in a worker thread and is timed there, ``None`` if none is to be."""
        if get_ident() != self._thread or type(function) is Job:  # all loops share the way into a thread
            return None
        try:
            member: Member = self._default if limiter is None else self._member_of(limiter, function)
            return member._job(function, self._stage)
        except Exception as error:
            self._on_failure(error)
            return None


@cython.final
@cython.cclass
class CallFactory:
    """Has a loop call what other threads give it, on behalf of the request that they work for. Any thread.

    The contexts of these calls tell it. A worker thread's own context does not: to set a variable in it would cost
    more than to time the work, and most work never calls the loop.
    """

    _call: object

    def __init__(self, call_soon_threadsafe: object) -> None:
        self._call = call_soon_threadsafe

    def call_soon_threadsafe(self, *arguments, **context):
        """Have the loop call a function, as its own does."""
        job_of_thread = job_here()
        if job_of_thread is not None and context.get("context") is None:
            job: Job = job_of_thread
            if job._request is not None:
                context["context"] = copied = copy_context()
                copied.run(current.set, job._request)
        handle = apply(self._call, arguments, context)
        hide_last_frames(handle, OUR_FRAMES)
        return handle


for _ours, _theirs in (
    (TimerFactory.call_at, AbstractEventLoop.call_at),
    (TimerFactory.call_later, AbstractEventLoop.call_later),
    (CallFactory.call_soon_threadsafe, AbstractEventLoop.call_soon_threadsafe),
):
    _ours.__signature__ = inspect.signature(_theirs)  # whoever asks sees no arguments that are only passed on


@cython.final
@cython.no_gc
@cython.freelist(64)
@cython.cclass
class LastSend:
    """The server's ``send`` of the last part of a response: when it is done, the request has ended."""

    _coroutine: object
    _pending: object
    _request: Request

    def __await__(self):
        """Take the first step; return what takes the others, which is nothing where that was all."""
        value = self._take_step()
        if value is DONE:
            return NO_MORE_STEPS
        self._pending = value
        return self

    def __iter__(self):
        return self

    def __next__(self):
        value = self._pending
        if value is DONE:
            value = self._take_step()
        else:
            self._pending = DONE
        return passed_on(value)

    @cython.cfunc
    def _take_step(self) -> object:
        value = resume(self._coroutine, DONE)
        if value is DONE or type(value) is StopIteration:
            self._request._end(0)
        return value

    def send(self, value):
        """Resume with ``value``, as :meth:`coroutine.send`."""
        try:
            return self._coroutine.send(value)
        except StopIteration:
            self._request._end(0)
            raise

    def throw(self, *error):
        """Resume with an exception, as :meth:`coroutine.throw`."""
        try:
            return self._coroutine.throw(*error)
        except StopIteration:
            self._request._end(0)
            raise

    def close(self) -> None:
        """Close, as :meth:`coroutine.close`."""
        self._coroutine.close()

    def __getattr__(self, name):
        # __qualname__, cr_frame and their like: what tools ask a task's coroutine for.
        return getattr(self._coroutine, name)


@cython.final
@cython.cclass
class _Way:
    """Whose requests a door measures, and on which stage: replaced as one, as an app may run on several threads."""

    loop: object
    is_running: object
    stage: Stage
    metrics_path: str


@cython.final
@cython.cclass
class Door:
    """Where requests come in: begins one for each, and finds its account when it has ended. Loop thread.

    It is an ASGI app that returns the measured request itself, or hands what is unusual to ``aside``: other scopes,
    another loop, the metrics path.
    """

    _app: object
    _aside: object
    _way: _Way
    _accounts: dict
    _observer: object
    active: cython.longlong
    recorder: object

    def __init__(self, app: object, aside: object, recorder: object) -> None:
        self._app = app
        self._aside = aside
        self._way = None
        self._accounts = {}
        self._observer = None
        self.active = 0
        self.recorder = recorder

    def forget_endpoints(self) -> None:
        """Forget which account each endpoint leads to: a new one may have the ``id`` of a removed one."""
        self._accounts = {}

    def begin_anew(self) -> None:
        """Forget the loop and all requests, as in a child process that was forked."""
        self._way = None
        self._accounts = {}
        self.active = 0

    def lead_to(self, loop: object, stage: Stage, metrics_path: object) -> None:
        """Measure what comes on ``loop``, which runs in this thread, from now on, but for the metrics path."""
        stage.thread = get_ident()
        way: _Way = _Way.__new__(_Way)
        way.loop = loop
        way.is_running = loop.is_running
        way.stage = stage
        way.metrics_path = metrics_path
        self._way = way

    def renew(self, loop: object, stage: Stage) -> None:
        """Measure what comes on ``loop`` on another stage from now on; where that is not led to, change nothing."""
        way: _Way = self._way
        if way is not None and loop is way.loop:
            self.lead_to(loop, stage, way.metrics_path)

    def lead_into(self, app: object) -> None:
        """Have ``app`` serve new requests. Requests in progress and the observer stay."""
        self._app = app

    def observe(self, observer: object) -> None:
        """Have ``observer`` told when a request begins and ends, and when it held or waited for the loop for long.

        ``begin(request)`` before its account is opened and ``end(request, status_class)`` before it is closed;
        ``held(request, start, end)`` and ``waited(request, start, end)`` for at least :data:`LONG_NS`. They must
        not raise. ``None`` tells nobody.
        """
        self._observer = observer

    def __reduce__(self):
        """Copy or pickle the middleware that this belongs to."""
        return getattr, (self._aside.__self__, "door")

    @property
    def app(self) -> object:
        """The app that it leads to, as every ASGI middleware tells it."""
        return self._app

    def count_active(self) -> int:
        """Return the requests in progress. Any thread."""
        return self.active

    def __call__(self, scope, receive, send):
        """Return what serves one scope when it is awaited."""
        if type(scope) is not dict:
            return self._aside(scope, receive, send)
        fields: dict = scope
        way: _Way = self._way
        if (
            way is None
            or fields["type"] != "http"
            or get_ident() != way.stage.thread  # up to 3.11, `get_running_loop` would ask the system
            or not way.is_running()
            or (way.metrics_path is not None and may_end_with(fields.get("path"), way.metrics_path))
        ):
            return self._aside(scope, receive, send)
        return self._measure(scope, receive, send, way.stage)

    def measure(self, scope: object, receive: object, send: object, stage: Stage) -> object:
        """Return the measured request of an HTTP scope; ``stage`` is that of the running loop."""
        return self._measure(scope, receive, send, stage)

    @cython.cfunc
    def _measure(self, scope: object, receive: object, send: object, stage: Stage) -> object:
        alone: cython.bint = stage.running is None and len(IN_USE) == 1 and IN_USE[0] is stage
        if not alone and self._is_measured(scope):
            return self._app(scope, receive, send)
        request: Request = self._begin(scope, send, stage)
        request._uncalled = True
        request._receive = receive
        return request

    def serve(self, request: Request, receive: object, send: object) -> object:
        """Return the request of a session; awaiting it calls the app with these ``receive`` and ``send``."""
        request._uncalled = True
        request._receive, request._session_send = receive, send
        return request

    def is_measured(self, scope: object) -> bool:
        """Tell whether another door, further out, measures this scope already."""
        return self._is_measured(scope)

    @cython.cfunc
    def _is_measured(self, scope: object) -> cython.bint:
        for one in IN_USE:
            stage: Stage = one
            if stage.running is not None:
                request: Request = stage.running
                if request.scope is scope:
                    return True
        return False

    def begin(self, scope: object, send: object, stage: Stage) -> Request:
        """Return a new request on ``stage``, whose coroutine is still to be given to :meth:`Request.drive`."""
        return self._begin(scope, send, stage)

    @cython.cfunc
    def _begin(self, scope: object, send: object, stage: Stage) -> Request:
        request: Request = Request.__new__(Request)
        if not cython.compiled:  # the compiler clears all there is
            request.status = request._workers = 0
            request._coroutine = request._outer = request._background = None
            request._job = request._jobs = request._timers = request._victims = None
            request._receive = request._session_send = None
            request._shared = request._uncalled = False
        request.stage = stage
        request.scope = scope
        request._send = send
        request._door = self
        request._pending = DONE
        if self._observer is not None:  # it is told before the request's own time begins
            try:
                self._observer.begin(request)
            except Exception as error:
                stage.on_failure("middleware", error, "who observes such requests is not told of them")
        request._begin()
        return request

    @cython.cfunc
    def _account(self, scope: object) -> Account:
        """Find the account of a request that the app has routed."""
        if type(scope) is dict:
            fields: dict = scope
            by_endpoint: dict = self._accounts.get(fields.get("method"))  # a WebSocket's scope has none
            if by_endpoint is not None:
                account = by_endpoint.get(address_of(fields.get("endpoint")))
                if account is not None:
                    return account
        account, key = self.recorder.account(scope)
        if key is not None:
            self._accounts.setdefault(key[0], {})[key[1]] = account
        return account


@cython.final
@cython.cclass
class TimedSelect:
    """A selector's ``select``, and how long the loop was busy and idle around it.

    Written on the loop thread, read on any: ``since`` is when the present busy (positive) or idle (negative) period
    began, and 0 while the figures change.
    """

    _polled: cython.longlong
    _select: object
    _stage: Stage
    busy: cython.longlong
    clock: object
    idle: cython.longlong
    iterations: cython.longlong
    off: cython.bint
    on_long: object
    on_worst: object
    on_failure: object
    short_squares: cython.double
    since: cython.longlong
    slot_ends: cython.longlong
    slot_worst: cython.longlong

    def __init__(
        self,
        select: object,
        stage: Stage,
        on_long: object,
        on_worst: object,
        on_failure: object,
        clock: object = None,
    ) -> None:
        self._select = select
        self._stage = stage
        self.on_long = on_long
        self.on_worst = on_worst
        self.on_failure = on_failure
        self.clock = clock
        self.busy = self.idle = self.iterations = 0
        self.short_squares = 0.0
        self.slot_ends = self.slot_worst = 0
        self.off = False
        self.since = self._polled = self._now()

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def _now(self) -> cython.longlong:
        return wall_now() if self.clock is None else self._ask()

    @cython.cfunc
    @cython.exceptval(check=False)
    def _ask(self) -> cython.longlong:
        """Read the clock that was given. One that breaks ends the measuring."""
        try:
            return self.clock()
        except Exception as error:
            self._fail(error)
            return self._polled

    def read(self) -> tuple:
        """Return (since, busy, idle, iterations, squares of short periods); ``since`` is 0 while they change."""
        return self.since, self.busy, self.idle, self.iterations, self.short_squares

    def since_address(self) -> int:
        """Return where ``since`` is, for who reads it without the GIL; 0 where it is Python's."""
        return cython.cast(cython.size_t, cython.address(self.since)) if cython.compiled else 0

    def switch_off(self) -> None:
        """Measure no more; pass polls on."""
        self.off = True

    def select(self, timeout=None):
        """Poll, as the selector's own does."""
        if self.off:
            return self._select(timeout)
        now: cython.longlong = self._now()
        if self.off:  # the clock broke
            return self._select(timeout)
        since: cython.longlong = self.since
        self.since = 0
        self.iterations += 1
        if since > 0:
            busy: cython.longlong = now - since
            self.busy += busy
            if busy > SHORT_PERIOD_NS:
                self._tell_long(busy)
            else:
                self.short_squares += busy * busy
            if busy > self.slot_worst or now >= self.slot_ends:
                self._tell_worst(busy, now)
        elif since < 0:  # idle already: the last poll was left by an exception that also broke our clock
            self.idle += now + since
        # else it was left by an interrupt, in these lines: nobody knows since when the loop has been busy
        if timeout is AT_ONCE or (timeout is not None and timeout <= 0):
            # A poll that does not wait is no idleness: the next busy period begins at once.
            self._tell_stage(now, 0)
            self.since = now
            return self._select(timeout)
        self.since = -now
        try:
            return self._select(timeout)
        finally:
            if not self.off:
                self._end_idle()

    @cython.cfunc
    @cython.exceptval(-1)
    def _tell_long(self, busy: cython.longlong) -> cython.int:
        try:
            self.on_long(busy)
        except Exception as error:
            self._fail(error)

    @cython.cfunc
    @cython.exceptval(-1)
    def _tell_worst(self, busy: cython.longlong, now: cython.longlong) -> cython.int:
        self.slot_worst = busy
        try:
            self.slot_ends = self.on_worst(busy, now)
        except Exception as error:
            self._fail(error)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _end_idle(self) -> cython.void:
        now: cython.longlong = self._now()
        waited: cython.longlong = now + self.since
        self.since = 0
        self.idle += waited
        self._tell_stage(now, waited)
        self.since = now

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def _tell_stage(self, now: cython.longlong, waited: cython.longlong) -> cython.void:
        stage: Stage = self._stage
        stage.bound = stage.next_bound
        stage.next_bound = now if waited > WAITED_NS else self._polled
        self._polled = now

    @cython.cfunc
    def _fail(self, error: object):
        self.off = True
        self.on_failure(error)
