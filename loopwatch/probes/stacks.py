"""Which frames does a thread run now? The only module that asks the interpreter for frames. Any thread.

``sys._current_frames()`` and ``f_back`` make frame objects. In CPython 3.11 this may start a garbage collection. A
finalizer in it may release the GIL, the thread that is looked at goes on, and the new object points to a frame that
has ended: the process crashes. So the collector is held off meanwhile. From CPython 3.12 on, no collection starts
where an object is made.

Without the GIL the thread that is looked at never stands still, so that no frame of it can be read.
"""

from __future__ import annotations

import gc
import operator
import sys
from itertools import accumulate, repeat
from typing import TYPE_CHECKING

from loopwatch.system import HAS_GIL

if TYPE_CHECKING:
    from types import FrameType

MOST_FRAMES = 200


def frames_of(thread: int) -> list[FrameType]:
    """Return the frames of a thread, innermost first, :data:`MOST_FRAMES` at most.

    There are none if it has ended, and none in an interpreter without the GIL.
    """
    if not HAS_GIL:
        return []
    if sys.version_info >= (3, 12):
        return _walk(sys._current_frames().get(thread))  # noqa: SLF001 # documented in spite of its name
    # One call of C for both, so that no other thread can switch the collector in between.
    was_enabled, _ = map(operator.call, (gc.isenabled, gc.disable))
    try:
        return _walk(sys._current_frames().get(thread))  # noqa: SLF001 # documented in spite of its name
    finally:
        if was_enabled:
            gc.enable()


def _walk(frame: FrameType | None) -> list[FrameType]:
    """Return a frame and those that called it; in C, so that the thread stands still while its frames are read."""
    found: list[FrameType] = []
    if frame is not None:
        try:
            found.extend(accumulate(repeat("f_back", MOST_FRAMES - 1), getattr, initial=frame))
        except AttributeError:  # of None, the end
            found.pop()
    return found
