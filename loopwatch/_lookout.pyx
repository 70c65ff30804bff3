"""How does a thread watch a loop without asking for the GIL? It sleeps and peeks in C.

A thread that wants the GIL is woken each time that the loop lets go of it to poll, and mostly comes too late: at ten
thousand polls a second that is ten thousand wake-ups, for each of which the loop pays. So the watcher asks for the GIL
only when there is something to look at. There is no plain version of this: without it the watcher looks in Python.
"""

from loopwatch._core cimport clock_now, process_cpu_now, uv_iterations, uv_number, wall_now

cdef extern from "pythread.h" nogil:
    ctypedef void *PyThread_type_lock
    PyThread_type_lock PyThread_allocate_lock()
    void PyThread_free_lock(PyThread_type_lock lock)
    int PyThread_acquire_lock(PyThread_type_lock lock, int wait)
    int PyThread_acquire_lock_timed(PyThread_type_lock lock, long long microseconds, int interruptible)
    void PyThread_release_lock(PyThread_type_lock lock)

cdef extern from *:
    """
    #include <sys/resource.h>

    static long long peek_switches(void) {
        struct rusage usage;
    #ifdef RUSAGE_THREAD
        if (!getrusage(RUSAGE_THREAD, &usage)) return usage.ru_nvcsw;
    #endif
        return 0;
    }

    static long long peek_since(long long address) {
        return *(volatile long long *)(size_t)address;
    }
    """
    long long peek_switches() noexcept nogil
    long long peek_since(long long address) noexcept nogil

cdef enum:
    MOST = 256
    ATTEMPTS = 10

cdef long long SECOND = 1_000_000_000
cdef long long MILLISECOND = 1_000_000
cdef long long APART = 50_000
cdef long long LATE = 50_000_000
cdef long long OVERDUE = 100_000
cdef long long NEVER = 0x7FFFFFFFFFFFFFFF
cdef long long SOON = SECOND
cdef long long LATEST = 10 * SECOND

cdef struct Peek:
    long long at
    long long held
    long long cpu
    long long process_cpu
    long long idle
    long long iterations


cdef bint is_dull(Peek *older, Peek *newer) noexcept nogil:
    """Tell whether all busy periods between two peeks at libuv's figures were short, as far as anyone can tell."""
    cdef long long busy = (newer.at - older.at) - (newer.idle - older.idle)
    if newer.iterations == 0:
        return True  # asyncio's loop tells its periods itself
    return busy <= max(1, newer.iterations - older.iterations) * MILLISECOND


cdef class Lookout:
    """Watches one loop for one thread, from outside.

    Of asyncio's loop it reads when its busy period began, at an address that ``owner`` keeps valid; of uvloop's it
    asks libuv, through the addresses of its functions, until :meth:`let_go`.
    """

    cdef PyThread_type_lock gate  # held until the end: to wait for it is to sleep
    cdef PyThread_type_lock guard  # held while libuv is asked: its loop must not go away meanwhile
    cdef object owner
    cdef long long since, loop, info, idle_time, now
    cdef long long window_at, window_idle, iterations
    cdef Peek peeks[MOST]
    cdef int count
    cdef readonly bint idle
    """Whether the loop was idle at the last peek: then the GIL is to be had at once."""
    cdef readonly long long due
    """When the last peek was to be."""
    cdef readonly long long switches
    """How often this thread had given up its CPU by itself, before it asked for the GIL."""

    def __cinit__(self):
        self.gate, self.guard = PyThread_allocate_lock(), PyThread_allocate_lock()
        if self.gate == NULL or self.guard == NULL:
            raise MemoryError
        PyThread_acquire_lock(self.gate, 1)
        self.iterations = -1

    def __dealloc__(self):
        if self.gate != NULL:
            PyThread_free_lock(self.gate)
        if self.guard != NULL:
            PyThread_free_lock(self.guard)

    def watch_selector(self, object owner, long long since):
        """Watch asyncio's loop."""
        self.owner, self.since = owner, since

    def watch_libuv(self, long long loop, long long info, long long idle, long long now):
        """Watch uvloop's."""
        self.info, self.idle_time, self.now = info, idle, now
        self.loop = loop

    def let_go(self):
        """Ask the loop nothing more; it may be closed then. Waits for a peek in progress, about a microsecond."""
        with nogil:
            PyThread_acquire_lock(self.guard, 1)
            self.loop = 0
            PyThread_release_lock(self.guard)

    def end(self):
        """Wake the thread that waits, for good. Any thread, once."""
        PyThread_release_lock(self.gate)

    def wait(
        self,
        long long heard_at,
        long long cpu_clock,
        long long overdue,
        double calm_seconds,
        double idle_seconds,
        double noticed_seconds,
    ):
        """Peek until the loop has been busy for long; tell whether the end has come.

        Peeks are ``calm_seconds`` apart, or up to ``idle_seconds`` while the loop sleeps. Nothing to tell is told
        after a second, as soon as the loop is idle; after ten if it never is. There are none if this comes late:
        ``heard_at`` is when it was called. ``cpu_clock`` is that of the loop's thread, -1 where there is none.
        At the address ``overdue`` the loop reads from when on this thread must be waiting for the GIL.
        """
        cdef long long calm = <long long>(calm_seconds * SECOND), idle = <long long>(idle_seconds * SECOND)
        cdef long long noticed = <long long>(noticed_seconds * SECOND)
        cdef long long pause = calm, began
        cdef bint ended = False
        cdef Peek peek
        self.count = 0
        with nogil:
            (<long long *>overdue)[0] = NEVER
            began = wall_now()
            self.due = heard_at
            while self.count < MOST and began - heard_at <= LATE:
                self.due = wall_now() + pause
                if PyThread_acquire_lock_timed(self.gate, pause // 1000, 0):
                    PyThread_release_lock(self.gate)  # whoever waits again ends at once
                    ended = True
                    break
                self.look(&peek)
                peek.cpu = clock_now(cpu_clock) if cpu_clock != -1 else -1
                peek.process_cpu = process_cpu_now()
                self.keep(&peek, noticed)
                if (
                    peek.held >= noticed
                    or peek.at - self.due > LATE
                    or peek.at - began >= (SOON if self.idle else LATEST)
                ):
                    break
                pause = min(2 * pause, idle) if peek.held < MILLISECOND else calm
            self.switches = peek_switches()
            (<long long *>overdue)[0] = wall_now() + OVERDUE
        return ended

    cdef void look(self, Peek *peek) noexcept nogil:
        """Find out for how long the loop has been busy."""
        cdef long long since, began
        cdef int attempt
        peek.held = peek.idle = peek.iterations = 0
        self.idle = False
        if self.info == 0:
            since = peek_since(self.since)
            peek.at = wall_now()
            self.idle = since < 0
            if since > 0:
                peek.held = max(0, peek.at - since)
            return
        PyThread_acquire_lock(self.guard, 1)
        if self.loop != 0:
            for attempt in range(ATTEMPTS):
                began = wall_now()
                peek.iterations = uv_iterations(self.info, self.loop)
                peek.idle = uv_number(self.idle_time, self.loop)
                peek.at = wall_now()
                if peek.at - began < APART:
                    break  # else this thread lost its CPU in between: idle time would look like busy time
            # Idle time stands still while callbacks run; libuv then caches when the poll ended, in milliseconds.
            self.idle = uv_number(self.idle_time, self.loop) != peek.idle
            if peek.iterations == self.iterations:
                peek.held = max(0, (peek.at - self.window_at) - (peek.idle - self.window_idle))
            else:
                if not self.idle:
                    peek.held = max(0, peek.at - (uv_number(self.now, self.loop) + 1) * MILLISECOND)
                self.iterations = peek.iterations
                self.window_at, self.window_idle = peek.at - peek.held, peek.idle
        else:
            peek.at = wall_now()
        PyThread_release_lock(self.guard)

    cdef void keep(self, Peek *peek, long long noticed) noexcept nogil:
        """Remember a peek; in place of the one before, if there was nothing of interest around that."""
        cdef int last = self.count - 1
        if last >= 1 and peek.held < noticed and is_dull(&self.peeks[last - 1], &self.peeks[last]) and is_dull(
            &self.peeks[last], peek
        ):
            self.peeks[last] = peek[0]
        else:
            self.peeks[self.count] = peek[0]
            self.count += 1

    def seen(self):
        """Return (at, held, cpu, process CPU, idle, iterations) of each peek of the last wait; times in nanoseconds."""
        return [
            (peek.at, peek.held, peek.cpu, peek.process_cpu, peek.idle, peek.iterations)
            for peek in self.peeks[: self.count]
        ]
