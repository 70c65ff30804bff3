# What the compiled core calls in C where the plain one calls Python's own functions of the same meaning. The lookout
# shares what asks clocks and libuv.
cdef extern from *:
    """
    #include <time.h>

    static long long loopwatch_clock(clockid_t clock) {
        struct timespec now;
        if (clock_gettime(clock, &now)) return -1;  /* of a thread that has ended */
        return now.tv_sec * 1000000000LL + now.tv_nsec;
    }

    /* coroutine.send(None): a returned value is raised as StopIteration, as its method does; but for None, which
       returns `done`, since an exception costs more than the step. */
    static PyObject *loopwatch_resume(PyObject *coroutine, PyObject *done) {
        PyObject *result = NULL;
        switch (PyIter_Send(coroutine, Py_None, &result)) {
        case PYGEN_NEXT:
            return result;
        case PYGEN_RETURN:
            if (result == Py_None) {
                Py_INCREF(done);
                Py_DECREF(result);
                return done;
            } else {
                PyObject *stop = PyObject_CallFunctionObjArgs(PyExc_StopIteration, result, NULL);
                if (stop != NULL) {
                    PyErr_SetObject(PyExc_StopIteration, stop);
                    Py_DECREF(stop);
                }
            }
            Py_DECREF(result);
            return NULL;
        default:
            return NULL;
        }
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
    long long process_cpu_now "loopwatch_process_cpu_now"() noexcept nogil
    long long clock_now "loopwatch_clock"(long long clock) noexcept nogil
    object resume "loopwatch_resume"(object coroutine, object done)
    object get_variable "loopwatch_get"(object variable)
    int set_variable "loopwatch_set"(object variable, object value) except -1
    long long uv_iterations "loopwatch_uv_iterations"(long long info, long long loop) noexcept nogil
    long long uv_number "loopwatch_uv_number"(long long function, long long loop) noexcept nogil
