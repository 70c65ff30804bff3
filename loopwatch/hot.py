"""Which core is in use? The compiled one where it was built, but for ``LOOPWATCH_PURE``; else the plain one."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

Lookout: Any = None
"""Watches a loop without the GIL (:mod:`loopwatch._lookout`); ``None`` where that was not built."""

if TYPE_CHECKING or os.environ.get("LOOPWATCH_PURE"):
    from loopwatch.core import COMPILED, Account, Child, Door, Job, Pool, Request, Stage, TimedSelect, current
else:
    try:
        from loopwatch._core import COMPILED, Account, Child, Door, Job, Pool, Request, Stage, TimedSelect, current
    except ImportError:
        from loopwatch.core import COMPILED, Account, Child, Door, Job, Pool, Request, Stage, TimedSelect, current
    else:
        with contextlib.suppress(ImportError):
            from loopwatch._lookout import Lookout

__all__ = [
    "COMPILED", "Account", "Child", "Door", "Job", "Lookout", "Pool", "Request", "Stage", "TimedSelect", "current",
]  # fmt: skip
