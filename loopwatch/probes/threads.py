"""Which work goes into worker threads and processes, how long does it wait there, and how long does it run?

anyio's threads run FastAPI's ``def`` routes and dependencies and ``run_in_threadpool``; the loop's own
``run_in_executor`` serves ``asyncio.to_thread`` and every executor that it is given. Both are wrapped, so that work
is timed by the thread that runs it; what runs in another process is timed by when it is submitted and over.

Relies on anyio's ``AsyncIOBackend.run_sync_in_worker_thread``; see docs/what-it-relies-on.md.
"""

from __future__ import annotations

import functools
import inspect
import sys
from typing import TYPE_CHECKING, Any, cast

from loopwatch.hot import CallFactory, Job, JobFactory
from loopwatch.probes.patch import Patch
from loopwatch.probes.pools import Pools, is_remote, is_threads, tells_its_executor

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from loopwatch.failures import Failures
    from loopwatch.hot import Member, Stage


_PARAMETERS = ("func", "args", "abandon_on_cancel", "limiter")
"""Those of anyio's way into a thread since 4.1. To pass on whatever is given takes as long as all the rest."""


class ThreadsProbe:
    """Times what one loop gives to workers, for the request that did and for the pool that it is in."""

    def __init__(self, max_pools: int, failures: Failures) -> None:
        self.pools = Pools(max_pools)
        self._failures = failures
        self._patches: list[Patch] = []

    def start(self, loop: asyncio.AbstractEventLoop, stage: Stage) -> None:
        """Wrap the ways into a pool; find the loop's default limiter if the app uses anyio. Loop thread."""
        self._wrap(loop, "run_in_executor", self._timed_executor(loop, stage))
        self._wrap(loop, "call_soon_threadsafe", CallFactory(loop.call_soon_threadsafe).call_soon_threadsafe)
        if not tells_its_executor(loop):
            self._wrap(loop, "set_default_executor", self._noted_executor(loop.set_default_executor))
        if "anyio" not in sys.modules:
            self.pools.begin(loop, None)
            return
        from anyio._backends._asyncio import AsyncIOBackend  # noqa: PLC0415 # only where the app uses it
        from anyio.to_thread import current_default_thread_limiter  # noqa: PLC0415

        limiter = current_default_thread_limiter()
        self.pools.begin(loop, limiter)
        timed = self._timed_worker_thread(AsyncIOBackend.run_sync_in_worker_thread, stage)
        self._wrap(AsyncIOBackend, "run_sync_in_worker_thread", staticmethod(timed))
        limit = vars(type(limiter)).get("total_tokens")
        if isinstance(limit, property) and limit.fset is not None:
            self._wrap(type(limiter), "total_tokens", self._noted_limit(limit))

    def stop(self) -> None:
        """Put back what was found. Safe to call twice."""
        patches, self._patches = self._patches, []
        for patch in reversed(patches):
            patch.remove()
        self.pools.end()

    def begin_anew(self) -> None:
        """Forget all pools, and what was wrapped: it is passed on for as long as it stays."""
        self._patches = []
        self.pools.begin_anew()

    def _wrap(self, holder: Any, name: str, replacement: Any) -> None:
        self._patches.append(Patch(holder, name, replacement))

    def _fail(self, error: Exception) -> None:
        self._failures.report("threads", error, "some work for threads is not measured")

    def _timed_worker_thread(self, way_in: Callable[..., Any], stage: Stage) -> Callable[..., Any]:
        """Return what takes the place of anyio's way into a thread. Loop thread."""
        job_of: Callable[[Any, Any], Job | None] = JobFactory(stage, self.pools.of_limiter, self._fail).make

        @functools.wraps(way_in)
        async def timed(func: Any, args: Any, abandon_on_cancel: bool = False, limiter: Any = None) -> Any:
            job = job_of(func, limiter)
            if job is None:
                return await way_in(func, args, abandon_on_cancel, limiter)
            try:
                return await way_in(job, args, abandon_on_cancel, limiter)
            finally:
                job.leave()

        @functools.wraps(way_in)
        async def timed_as_called(function: Any, *arguments: Any, **options: Any) -> Any:
            job = job_of(function, options.get("limiter"))
            if job is None:
                return await way_in(function, *arguments, **options)
            try:
                return await way_in(job, *arguments, **options)
            finally:
                job.leave()

        return timed if _parameters_of(way_in) == _PARAMETERS else timed_as_called

    def _timed_executor(self, loop: asyncio.AbstractEventLoop, stage: Stage) -> Callable[..., Any]:
        run_in_executor: Callable[..., Any] = loop.run_in_executor

        # Its names are those of asyncio: some call it with them.
        @functools.wraps(run_in_executor)
        def timed(executor: Any, func: Callable[..., Any], *args: Any) -> Any:
            job = None
            try:
                if is_remote(executor):
                    executor = _Remote(executor, self.pools.of_executor(executor, func))
                elif (
                    (executor is None or is_threads(executor))
                    and type(func) is not Job
                    and not (loop.get_debug() and _is_refused(func))
                ):
                    job = self.pools.of_executor(executor, func).job(func, stage)
            except Exception as error:
                self._fail(error)
            if job is None:
                return run_in_executor(executor, func, *args)
            try:
                future = run_in_executor(executor, job, *args)
            except BaseException:
                job.leave()
                raise
            future.add_done_callback(job.leave)
            return future

        return timed

    def _noted_executor(self, set_default_executor: Callable[[Any], None]) -> Callable[[Any], None]:
        @functools.wraps(set_default_executor)
        def noted(executor: Any) -> None:
            set_default_executor(executor)
            self.pools.set_default_executor(executor)

        return noted

    def _noted_limit(self, limit: property) -> property:
        """Return the same property, but for telling that the limit was changed."""
        change = cast("Callable[[Any, float], None]", limit.fset)

        def changed(limiter: Any, tokens: float) -> None:
            change(limiter, tokens)
            self.pools.refresh(limiter)

        return property(limit.fget, changed, doc=limit.__doc__)


def _parameters_of(function: Callable[..., Any]) -> tuple[str, ...]:
    try:
        return tuple(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return ()


def _is_refused(function: Any) -> bool:
    """Tell whether asyncio refuses to run it in an executor, which it does in debug mode."""
    return not callable(function) or inspect.iscoroutinefunction(function)


class _Remote:
    """An executor whose workers are out of reach: submits to it, and notes when that and when the work is over."""

    def __init__(self, executor: Any, member: Member) -> None:
        self._executor, self._member = executor, member

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Submit to the executor, as :meth:`concurrent.futures.Executor.submit`."""
        future = self._executor.submit(function, *arguments)
        job = self._member.submit()
        future.add_done_callback(lambda _: self._member.end(job))
        return future
