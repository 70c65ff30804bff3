"""How long does each step of a request's coroutines hold the loop, the request's own and its child tasks'?

A task steps its coroutine from one suspension to the next. The request drives its own coroutine and so sees each
step; a :class:`~loopwatch.core.TaskFactory` puts a :class:`~loopwatch.core.Child` around the coroutine of every
task that is created on its behalf. Timers that a step sets are noted: what they resume is due when they are.
"""

from __future__ import annotations

import asyncio
import functools
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from loopwatch.hot import TaskFactory, TimerFactory
from loopwatch.probes.patch import Patch

if TYPE_CHECKING:
    from loopwatch.hot import Stage

AnyTaskFactory = Any  # asyncio's own type for it differs between versions

_EAGER_CODE = getattr(getattr(asyncio, "eager_task_factory", None), "__code__", None)


class StepsProbe:
    """Hears of the tasks and timers that requests create on one event loop. Loop thread only."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._loop: asyncio.AbstractEventLoop | None = None
        self._found: AnyTaskFactory = None
        self._installed: AnyTaskFactory = None
        self._timers: Patch | None = None
        self._names: Patch | None = None

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
        self._installed = self._chained_to(found, loop)
        loop.set_task_factory(self._installed)
        if found is None and self._names is None:
            self._names = self._keep_names_of(loop, self._installed)

    def stop(self) -> None:
        """Put back what was found. A task factory that the app set on top of ours is left alone."""
        loop, self._loop = self._loop, None
        self._stage.switch_off()
        if loop is not None and not loop.is_closed() and loop.get_task_factory() is self._installed:
            loop.set_task_factory(self._found)
        for patch in (self._names, self._timers):
            if patch is not None:
                patch.remove()
        self._installed = self._found = self._timers = self._names = None

    def _note_timers_of(self, loop: asyncio.AbstractEventLoop) -> Patch | None:
        """Wrap the one method of ``loop`` that makes all its timers: asyncio's, or else uvloop's."""
        if isinstance(loop, asyncio.BaseEventLoop):
            return Patch(loop, "call_at", TimerFactory(self._stage, loop.call_at).call_at)
        if type(loop).__module__.partition(".")[0] == "uvloop":
            return Patch(loop, "call_later", TimerFactory(self._stage, loop.call_later).call_later)
        return None

    def _keep_names_of(self, loop: asyncio.AbstractEventLoop, make: AnyTaskFactory) -> Patch | None:
        """Keep the default names of tasks, where asyncio names each "None" that a factory made without a name.

        Our factory alone then makes the task, with its name. Where the app has set another one, nothing changes.
        """
        if not (_is_asyncios(loop) and _forgets_names()):
            return None
        create_task: Any = loop.create_task

        @functools.wraps(create_task)
        def create_named_task(coro: Any, **options: Any) -> Any:
            is_ours = loop.get_task_factory() is make and not loop.is_closed()
            return make(loop, coro, **options) if is_ours else create_task(coro, **options)

        return Patch(loop, "create_task", create_named_task)

    def _chained_to(self, found: AnyTaskFactory, loop: asyncio.AbstractEventLoop) -> AnyTaskFactory:
        if found is None:
            return TaskFactory(self._stage, asyncio.Task, loop_hides=_is_asyncios(loop)).make
        if _EAGER_CODE is not None and getattr(found, "__code__", None) is _EAGER_CODE:
            # anyio recognises CPython's eager factory by its code object and takes the task constructor out of
            # its closure, so this one must be made by CPython's own maker.
            construct = TaskFactory(self._stage, found.__closure__[0].cell_contents).construct
            return getattr(asyncio, "create_eager_task_factory")(construct)  # noqa: B009 # from 3.12 on
        return TaskFactory(self._stage, found).make_by_factory


def _is_asyncios(loop: asyncio.AbstractEventLoop) -> bool:
    """Tell whether ``loop`` makes its tasks as asyncio does."""
    return type(loop).create_task is asyncio.BaseEventLoop.create_task


@functools.cache
def _forgets_names() -> bool:
    """Tell whether asyncio sets the name of a task that has none to "None", where a factory makes it: CPython 3.13.

    It is tried out, on a loop that never runs, with a task that only notes its names.
    """
    names: list[str | None] = []
    loop = asyncio.BaseEventLoop()
    try:
        loop.set_task_factory(lambda *_, **__: cast("Any", SimpleNamespace(set_name=names.append)))
        loop.create_task(cast("Any", None))
    finally:
        loop.close()
    return names == [None]
