# What the compiled core calls in C where the plain one calls Python's own functions of the same meaning. The lookout
# shares what asks clocks and libuv.
cdef extern from *:
    """
    #include <stdlib.h>
    #include <time.h>

    /* What leads to an error is kept out of the way of what runs at each step: it would fill the processor's caches. */
    #ifdef __GNUC__
    __attribute__((cold)) static void __Pyx_AddTraceback(const char *, int, int, const char *);
    __attribute__((cold)) extern void _Py_Dealloc(PyObject *);
    #endif

    static long long loopwatch_clock(clockid_t clock) {
        struct timespec now;
        if (clock_gettime(clock, &now)) return -1;  /* of a thread that has ended */
        return now.tv_sec * 1000000000LL + now.tv_nsec;
    }

    /* The CPU time of a worker thread when it begins with a job, `now`. To read it costs a system call, and a short job
       needs no reading: all of it is taken to be CPU. After many of these in a row another one is expected; what it
       begins with is then told by the last reading, the jobs since, and their ways: what the thread took from job to
       job, on average. Should it be longer, that is all there is to tell where it began. */
    enum { SHORT_JOB = 20000, MANY = 64, READING_HOLDS = 5000000, LONGEST_WAY = 200000, WEIGHT = 8 };
    static __thread struct { long long read_at, ended_with, way; int ways, short_ones; } loopwatch_worker;

    static long long loopwatch_cpu_at_start(long long now) {
        long long cpu, longer;
        loopwatch_worker.ways++;
        if (loopwatch_worker.short_ones >= MANY && now - loopwatch_worker.read_at < READING_HOLDS)
            return loopwatch_worker.ended_with + loopwatch_worker.way;
        cpu = loopwatch_clock(CLOCK_THREAD_CPUTIME_ID);
        longer = (cpu - loopwatch_worker.ended_with - loopwatch_worker.way) / loopwatch_worker.ways;
        if (llabs(longer) < LONGEST_WAY) loopwatch_worker.way += longer / WEIGHT;
        loopwatch_worker.ways = 0;
        loopwatch_worker.read_at = now;
        return cpu;
    }

    /* The same when it ends with it, at `now`, after it `ran` for so long. */
    static long long loopwatch_cpu_at_end(long long begun_with, long long ran, long long now) {
        if (ran < SHORT_JOB) {
            if (loopwatch_worker.short_ones < MANY) loopwatch_worker.short_ones++;
            return loopwatch_worker.ended_with = begun_with + ran;
        }
        loopwatch_worker.short_ones = loopwatch_worker.ways = 0;
        loopwatch_worker.read_at = now;
        return loopwatch_worker.ended_with = loopwatch_clock(CLOCK_THREAD_CPUTIME_ID);
    }

    /* The job that this thread runs, NULL or None if it runs none. */
    static __thread PyObject *loopwatch_job;

    static PyObject *loopwatch_job_here(void) {
        PyObject *job = loopwatch_job == NULL ? Py_None : loopwatch_job;
        Py_INCREF(job);
        return job;
    }

    static PyObject *loopwatch_swap_job(PyObject *job) {
        PyObject *before = loopwatch_job;
        Py_INCREF(job);
        loopwatch_job = job;
        if (before == NULL) {
            before = Py_None;
            Py_INCREF(before);
        }
        return before;
    }

    /* coroutine.send(None): where it returns None, `done`; what else it returns comes in a StopIteration, which is not
       raised, since an exception costs more than the step. */
    static PyObject *loopwatch_resume(PyObject *coroutine, PyObject *done) {
        PyObject *result = NULL, *stop;
        switch (PyIter_Send(coroutine, Py_None, &result)) {
        case PYGEN_NEXT:
            return result;
        case PYGEN_RETURN:
            if (result == Py_None) {
                Py_INCREF(done);
                stop = done;
            } else {
                stop = PyObject_CallFunctionObjArgs(PyExc_StopIteration, result, NULL);
            }
            Py_DECREF(result);
            return stop;
        default:
            return NULL;
        }
    }

    static int loopwatch_is(PyObject *text, const char *wanted, Py_ssize_t length) {
        return PyUnicode_GET_LENGTH(text) == length && !memcmp(PyUnicode_1BYTE_DATA(text), wanted, length);
    }
    #define LOOPWATCH_IS(text, wanted) loopwatch_is(text, wanted, sizeof(wanted) - 1)

    /* The status that a message begins a response with, LAST_PART (-1) if it ends one, or else 0. The messages are
       the app's: what is wrong with them the server will say. */
    static long long loopwatch_told_by(PyObject *message) {
        static PyObject *type, *status, *more_body;
        PyObject *kind, *value;
        long long told = 0;
        if (type == NULL) {
            type = PyUnicode_InternFromString("type");
            status = PyUnicode_InternFromString("status");
            more_body = PyUnicode_InternFromString("more_body");
        }
        if (!PyDict_Check(message)) return 0;
        kind = PyDict_GetItemWithError(message, type);
        if (kind != NULL && PyUnicode_Check(kind) && PyUnicode_IS_ASCII(kind)) {
            if (LOOPWATCH_IS(kind, "http.response.start")) {
                value = PyDict_GetItemWithError(message, status);
                if (value != NULL && PyLong_Check(value)) told = PyLong_AsLongLong(value);
                if (told < 0) told = 0;
            } else if (LOOPWATCH_IS(kind, "http.response.body")) {
                value = PyDict_GetItemWithError(message, more_body);
                if (value == NULL || value == Py_False || !PyObject_IsTrue(value)) told = -1;
            } else if (LOOPWATCH_IS(kind, "http.response.pathsend")) {
                told = -1;
            }
        }
        if (PyErr_Occurred()) PyErr_Clear();
        return told;
    }

    /* Whether a path ends so, or is none. */
    static int loopwatch_may_end_with(PyObject *path, PyObject *end) {
        Py_ssize_t longer;
        if (!PyUnicode_CheckExact(path)) return 1;
        longer = PyUnicode_GET_LENGTH(path) - PyUnicode_GET_LENGTH(end);
        if (longer < 0) return 0;
        if (!PyUnicode_IS_ASCII(path) || !PyUnicode_IS_ASCII(end)) return PyUnicode_Tailmatch(path, end, 0, PY_SSIZE_T_MAX, 1) != 0;
        return !memcmp((char *)PyUnicode_1BYTE_DATA(path) + longer, PyUnicode_1BYTE_DATA(end), PyUnicode_GET_LENGTH(end));
    }

    /* Where an array.array has its numbers, as long as it is not resized. */
    static long long *loopwatch_numbers_of(PyObject *array) {
        Py_buffer buffer;
        if (PyObject_GetBuffer(array, &buffer, PyBUF_SIMPLE)) return NULL;
        PyBuffer_Release(&buffer);
        return (long long *)buffer.buf;
    }

    /* libuv's figures, by the addresses of its functions; the first field of uv_metrics_t is the loop count. */
    static long long loopwatch_uv_iterations(long long info, long long loop) {
        unsigned long long metrics[16];
        ((int (*)(void *, void *))(size_t)info)((void *)(size_t)loop, metrics);
        return (long long)metrics[0];
    }

    static long long loopwatch_uv_number(long long function, long long loop) {
        return (long long)((unsigned long long (*)(void *))(size_t)function)((void *)(size_t)loop);
    }

    static PyObject *loopwatch_get(PyObject *variable) {
        PyObject *value = NULL;
        if (PyContextVar_Get(variable, Py_None, &value) < 0) return NULL;
        return value;
    }

    static int loopwatch_set(PyObject *variable, PyObject *value) {
        PyObject *token = PyContextVar_Set(variable, value);
        Py_XDECREF(token);
        return token == NULL ? -1 : 0;
    }

    #define loopwatch_wall_now() loopwatch_clock(CLOCK_MONOTONIC)
    #define loopwatch_cpu_now() loopwatch_clock(CLOCK_THREAD_CPUTIME_ID)
    #define loopwatch_process_cpu_now() loopwatch_clock(CLOCK_PROCESS_CPUTIME_ID)
    """
    long long wall_now "loopwatch_wall_now"() noexcept nogil
    long long cpu_now "loopwatch_cpu_now"() noexcept
    long long cpu_at_start "loopwatch_cpu_at_start"(long long now) noexcept
    long long cpu_at_end "loopwatch_cpu_at_end"(long long begun_with, long long ran, long long now) noexcept
    long long process_cpu_now "loopwatch_process_cpu_now"() noexcept nogil
    long long clock_now "loopwatch_clock"(long long clock) noexcept nogil
    object job_here "loopwatch_job_here"()
    object swap_job "loopwatch_swap_job"(object job)
    object resume "loopwatch_resume"(object coroutine, object done)
    object get_variable "loopwatch_get"(object variable)
    int set_variable "loopwatch_set"(object variable, object value) except -1
    long long told_by "loopwatch_told_by"(object message) noexcept
    bint may_end_with "loopwatch_may_end_with"(object path, object end) noexcept
    object apply "PyObject_Call"(object function, object arguments, object options)
    object address_of "PyLong_FromVoidPtr"(object instance)
    unsigned long get_ident "PyThread_get_thread_ident"() noexcept
    long long *numbers_of "loopwatch_numbers_of"(object array) except NULL
    long long uv_iterations "loopwatch_uv_iterations"(long long info, long long loop) noexcept nogil
    long long uv_number "loopwatch_uv_number"(long long function, long long loop) noexcept nogil

# Globals that each step asks for: a C variable each, instead of a search in the module's dictionary.
cdef long long NEVER, SHORT_NS, FRESH_NS, LONG_NS, WAITED_NS, SHORT_PERIOD_NS, OVERDUE_NS, PATIENCE_NS
cdef long long LAST_PART, STEPS, HOLDERS, MOST_TIMERS, MOST_TOLD, SUBMITTED, HELD, LEFT, OVER, UNKNOWN
cdef object AT_ONCE, NOT_BOOKED, DONE, RAISED, NO_MORE_STEPS, CoroutineType
cdef list IN_USE
