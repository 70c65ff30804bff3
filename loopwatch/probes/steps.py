"""How long does each step of a request's coroutines hold the loop, the request's own and its child tasks'?

A task steps its coroutine from one suspension to the next. The request drives its own coroutine and so sees each
step; a task factory puts a :class:`~loopwatch.core.Child` around the coroutine of every task that is created on its
behalf. Timers that a step sets are noted, since what they resume is due when they are.
"""

from __future__ import annotations

import asyncio
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from loopwatch.hot import Child
from loopwatch.probes.patch import Patch

if TYPE_CHECKING:
    from loopwatch.hot import Stage

TaskFactory = Any  # asyncio's own type for it differs between versions

_EAGER_CODE = getattr(getattr(asyncio, "eager_task_factory", None), "__code__", None)


class StepsProbe:
    """Hears of the tasks and timers that requests create on one event loop. Loop thread only."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._loop: asyncio.AbstractEventLoop | None = None
        self._found: TaskFactory = None
        self._installed: TaskFactory = None
        self._timers: Patch | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Measure child tasks too, through a task factory that chains to the one it finds.

        Calling it again puts the factory back on top, if the app has set one of its own meanwhile.
        """
        found = loop.get_task_factory()
        if self._loop is not None and found is self._installed:
            return
        if self._timers is None:
            self._stage.use()
            self._timers = self._note_timers_of(loop)
        self._loop, self._found = loop, found
        self._installed = self._chained_to(found)
        loop.set_task_factory(self._installed)

    def stop(self) -> None:
        """Put back what was found. A task factory that the app set on top of ours is left alone."""
        loop, self._loop = self._loop, None
        self._stage.switch_off()
        if loop is not None and loop.get_task_factory() is self._installed:
            loop.set_task_factory(self._found)
        if self._timers is not None:
            self._timers.remove()
        self._installed = self._found = self._timers = None

    def _note_timers_of(self, loop: asyncio.AbstractEventLoop) -> Patch | None:
        """Wrap the one method of ``loop`` that makes all its timers: asyncio's, or else uvloop's."""
        note = self._stage.note_timer
        if isinstance(loop, asyncio.BaseEventLoop):
            call_at = loop.call_at

            def noted_call_at(when: float, *callback: Any, **context: Any) -> asyncio.TimerHandle:
                timer = call_at(when, *callback, **context)
                note(timer)
                return timer

            return Patch(loop, "call_at", noted_call_at)
        if type(loop).__module__.partition(".")[0] == "uvloop":
            call_later = loop.call_later

            def noted_call_later(delay: float, *callback: Any, **context: Any) -> Any:
                timer = call_later(delay, *callback, **context)
                if hasattr(timer, "when"):  # a delay below half a millisecond makes no timer
                    note(timer)
                return timer

            return Patch(loop, "call_later", noted_call_later)
        return None

    def _adopt(self, coroutine: Any) -> Any:
        """Wrap the coroutine of a new task if a request creates it."""
        request = self._stage.request()
        if request is None or self._stage.is_off() or request.is_over():
            return coroutine
        if type(coroutine) is not CoroutineType and not asyncio.iscoroutine(coroutine):
            return coroutine  # the task itself will say what is wrong with it
        if type(coroutine) is Child:
            return coroutine
        return Child(coroutine, request)

    def _chained_to(self, found: TaskFactory) -> TaskFactory:
        if found is None:

            def factory(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> Any:
                return asyncio.Task(self._adopt(coroutine), loop=loop, **options)

        elif _EAGER_CODE is not None and getattr(found, "__code__", None) is _EAGER_CODE:
            # anyio recognises CPython's eager factory by its code object and takes the task constructor out of
            # its closure, so this one must be made by CPython's own maker.
            construct = found.__closure__[0].cell_contents

            def adopt(coroutine: Any, **options: Any) -> Any:
                return construct(self._adopt(coroutine), **options)

            return getattr(asyncio, "create_eager_task_factory")(adopt)  # noqa: B009 # from 3.12 on

        else:

            def factory(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> Any:
                return found(loop, self._adopt(coroutine), **options)

        return factory
