"""Which core is in use? The compiled one where it was built, but for ``LOOPWATCH_PURE``; else the plain one."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

Lookout: Any = None
"""Watches a loop without the GIL (:mod:`loopwatch._lookout`); ``None`` where that was not built."""

if TYPE_CHECKING or os.environ.get("LOOPWATCH_PURE"):
    from loopwatch import core
else:
    try:
        from loopwatch import _core as core
    except ImportError:
        from loopwatch import core
    else:
        with contextlib.suppress(ImportError):
            from loopwatch._lookout import Lookout

COMPILED = core.COMPILED
Account = core.Account
CallFactory = core.CallFactory
Child = core.Child
Door = core.Door
Job = core.Job
JobFactory = core.JobFactory
Pool = core.Pool
Request = core.Request
Stage = core.Stage
TaskFactory = core.TaskFactory
TimedSelect = core.TimedSelect
TimerFactory = core.TimerFactory
current = core.current

__all__ = [
    "COMPILED", "Account", "CallFactory", "Child", "Door", "Job", "JobFactory", "Lookout", "Pool", "Request",
    "Stage", "TaskFactory", "TimedSelect", "TimerFactory", "current",
]  # fmt: skip
