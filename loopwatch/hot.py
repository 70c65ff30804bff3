"""Which core is in use? The compiled one where it was built, but for ``LOOPWATCH_PURE``; else the plain one."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

from loopwatch.names import described
from loopwatch.system import HAS_GIL

Lookout: Any = None
"""Watches a loop without the GIL (:mod:`loopwatch._lookout`); ``None`` where that was not built."""

PLAIN_COST = "1.2 to 1.4 times as long as in the bare app, instead of about 1.05"
"""What the plain core costs, by the benchmark of the README."""

_why_plain, _cure = "", ""

if TYPE_CHECKING or os.environ.get("LOOPWATCH_PURE"):
    from loopwatch import core

    _why_plain, _cure = "LOOPWATCH_PURE is set", "unset it"
elif not HAS_GIL:
    # The compiled core needs the GIL: to import it would switch that on for the whole process, with a warning.
    from loopwatch import core

    _why_plain, _cure = "this interpreter runs without the GIL", "set PYTHON_GIL=1"
else:
    try:
        import loopwatch._core as core
    except Exception as error:  # `python -W error` raises warnings, too
        from loopwatch import core

        _why_plain = "it was not compiled at installation"
        if not isinstance(error, ModuleNotFoundError):
            _why_plain = f"the compiled one cannot be loaded: {described(error)}"
        _cure = "install a C compiler and Python's headers, then install loopwatch again"
    else:
        with contextlib.suppress(Exception):
            from loopwatch._lookout import Lookout

COMPILED = core.COMPILED
CORE = "compiled" if COMPILED else "plain"
"""The name of the core in use, as in ``loopwatch_info{core}``."""

Account = core.Account
CallFactory = core.CallFactory
Child = core.Child
Door = core.Door
Job = core.Job
JobFactory = core.JobFactory
Member = core.Member
Pool = core.Pool
Request = core.Request
Stage = core.Stage
TaskFactory = core.TaskFactory
TimedSelect = core.TimedSelect
TimerFactory = core.TimerFactory
current = core.current


def describe_core() -> str:
    """Return which core is in use and, of the plain one, why, what it costs and how to get the other."""
    if COMPILED:
        return "compiled core"
    return f"plain Python core ({_why_plain}; a small request takes {PLAIN_COST}. To change that, {_cure})"


__all__ = [
    "COMPILED", "CORE", "Account", "CallFactory", "Child", "Door", "Job", "JobFactory", "Lookout", "Member",
    "Pool", "Request", "Stage", "TaskFactory", "TimedSelect", "TimerFactory", "current", "describe_core",
]  # fmt: skip
