"""What is a local variable of a running frame bound to? Nothing of the reading stays in the frame. Watcher thread.

Up to CPython 3.12, ``frame.f_locals`` leaves a copy of all variables in the frame, and the frame keeps that until
it ends: objects that the app lets go of stay alive. From 3.13 on it is a view. In 3.12, ``PyFrame_GetVar`` of the
C API returns one variable. In 3.11 the copy is emptied again. It is not made at all where the app could hold it:
where a function names ``locals`` or its like, or is traced.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import FrameType

UNKNOWN = object()
"""Stands for a variable that is not bound, or whose value cannot be had."""

if sys.version_info >= (3, 13):

    def variable(frame: FrameType, name: str) -> Any:
        """Return the value of a function's variable, :data:`UNKNOWN` where it cannot be had. Runs no code of it."""
        return frame.f_locals.get(name, UNKNOWN)

elif sys.version_info >= (3, 12):
    import ctypes

    _get_variable = ctypes.pythonapi.PyFrame_GetVar
    _get_variable.argtypes = (ctypes.py_object, ctypes.py_object)
    _get_variable.restype = ctypes.py_object

    def variable(frame: FrameType, name: str) -> Any:
        """Return the value of a function's variable, :data:`UNKNOWN` where it cannot be had. Runs no code of it."""
        try:
            return _get_variable(frame, name)
        except NameError:
            return UNKNOWN

else:
    _USE_THE_COPY = frozenset({"locals", "vars", "dir", "eval", "exec", "f_locals"})
    _OURS_ALONE = 3
    """References to a copy that nobody else has: the frame's, ours, and the argument of who counts them."""

    def variable(frame: FrameType, name: str) -> Any:
        """Return the value of a function's variable, :data:`UNKNOWN` where it cannot be had. Runs no code of it."""
        if frame.f_trace is not None or not _USE_THE_COPY.isdisjoint(frame.f_code.co_names):
            return UNKNOWN
        copy = frame.f_locals
        value = copy.get(name, UNKNOWN)
        if sys.getrefcount(copy) <= _OURS_ALONE:
            copy.clear()
        return value
