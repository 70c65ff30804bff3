"""Which code uses a limiter or an executor, and does it make that itself? Its frame in, a name and a place out.

What one expression makes, at each call of its function anew, is of one kind wherever in the function it is used:
FastAPI makes a limiter for each dependency with ``yield``, and uses it here after an error and there without one.
What is made elsewhere, or by several expressions, is of one kind for each place that uses it. Frames are walked
once for each limiter or executor, up to the first that does not pass its work on for others. Loop thread.
"""

from __future__ import annotations

import dis
import functools
import inspect
from typing import TYPE_CHECKING, Any, NamedTuple

from loopwatch.names import text_of
from loopwatch.probes.frames import module_of, runs_a_loop

if TYPE_CHECKING:
    from types import CodeType

_PASS_WORK_ON = frozenset({"anyio", "asyncio", "asyncer", "concurrent", "loopwatch", "uvloop"})
"""Packages whose functions run what they are given in a limiter or executor that they are given."""

_MOST_FUNCTIONS = 1000


class User(NamedTuple):
    """A function, as ``module.qualname``, and where in it; 0 where all that it uses of a type is of one kind."""

    function: str
    place: int | tuple[int, int]


def user_of(kind: type, function: Any) -> User:
    """Return who uses an object of that type now, to run ``function``; that itself where nobody but a loop does."""
    frame = inspect.currentframe()
    while frame is not None and not runs_a_loop(frame.f_code):
        module = module_of(frame)
        if module.partition(".")[0] not in _PASS_WORK_ON:
            code = frame.f_code
            name = f"{module}.{code.co_qualname}"
            place = 0 if _makes_one(code, kind) else (code.co_firstlineno, frame.f_lasti)
            return User(name, place)
        frame = frame.f_back
    return User(name_of(function), 0)


def name_of(function: Any) -> str:
    """Return ``module.qualname`` of what a pool is given to run."""
    while isinstance(function, functools.partial):
        function = function.func
    try:
        module = getattr(function, "__module__", None) or type(function).__module__
        name = getattr(function, "__qualname__", None) or type(function).__qualname__
    except Exception:  # of the app's own code
        return type.__repr__(type(function))
    return f"{text_of(module)}.{text_of(name)}"


_made: dict[tuple[str, str, int, frozenset[str]], bool] = {}
"""What was found out, by names alone: whatever code and types were made at run time can go."""


def _makes_one(code: CodeType, kind: type) -> bool:
    """Tell whether the code names the type once: one expression of it makes all that it uses, if it makes any."""
    names = frozenset(each.__name__ for each in kind.__mro__) - {"object"}
    if names.isdisjoint(code.co_names):
        return False
    key = code.co_filename, code.co_qualname, code.co_firstlineno, names
    known = _made.get(key)
    if known is None:
        if len(_made) >= _MOST_FUNCTIONS:
            _made.clear()
        loads = (each for each in dis.get_instructions(code) if each.opname.startswith("LOAD_"))
        known = _made[key] = sum(isinstance(each.argval, str) and each.argval in names for each in loads) == 1
    return known
