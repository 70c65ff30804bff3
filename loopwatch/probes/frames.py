"""Which line of the app holds the loop, and which call is it in? Frames of the loop's thread in, names out.

Only code objects, line numbers and the *types* of variables are looked at, never their values, and no code of the
app's is run: attributes are looked up statically. Sources are read for the one expression that is called, once for
each place. Watcher thread.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import itertools
import linecache
import os
import pathlib
import sys
import sysconfig
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from types import CodeType, FrameType

_MOST_FRAMES = 200
_MOST_CALLS = 1000

_OURS = str(pathlib.Path(__file__).parent.parent) + os.sep
_LIBRARIES = tuple(
    {
        str(pathlib.Path(folder).resolve()) + os.sep
        for name, folder in sysconfig.get_paths().items()
        if name in {"stdlib", "platstdlib", "purelib", "platlib", "scripts"}
    }
    | {str(pathlib.Path(os.__file__).resolve().parent) + os.sep}
)
_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
_LOOPS = tuple(
    os.path.join(package, name)  # noqa: PTH118 # compared with the ends of co_filename, thousands of times
    for package, names in {
        "asyncio": ("base_events.py", "events.py", "runners.py", "unix_events.py", "windows_events.py"),
        "uvloop": ("__init__.py",),
        "uvicorn": ("server.py", "main.py"),
    }.items()
    for name in names
)

_UNKNOWN = object()


class Line(NamedTuple):
    """One line of a stack."""

    function: str
    """``module:qualname``"""
    filename: str
    lineno: int

    def __str__(self) -> str:
        return f"{self.function} ({self.filename}:{self.lineno})"


class Sample(NamedTuple):
    """What the loop's thread was doing at one instant: lines, outermost first, and the one that is to blame.

    ``call`` is what that line calls, as far as it can be told, ``""`` if it calls nothing.
    """

    stack: tuple[Line, ...]
    culprit: Line
    call: str
    inner: tuple[str, ...]
    """``module.qualname`` of the lines below the culprit, outermost first."""


class Sampler:
    """Looks at a thread's stack. Remembers which place calls what."""

    def __init__(self) -> None:
        self._calls: dict[tuple[CodeType, int], str] = {}

    def sample(self, thread: int) -> Sample | None:
        """Return what a thread does now; ``None`` where it has ended or does nothing but run its loop."""
        found = _frames_of(thread)
        for index in range(len(found) - 1, -1, -1):
            if found[index].code.co_filename.endswith(_LOOPS):
                del found[: index + 1]
                break
        found = [one for one in found if not one.code.co_filename.startswith((_OURS, "loopwatch/"))]
        if not found:
            return None
        lines = tuple(map(_line, found))
        blamed = next((i for i in range(len(found) - 1, -1, -1) if is_app(found[i].code)), len(found) - 1)
        inner = tuple(line.function.replace(":", ".") for line in lines[blamed + 1 :])
        return Sample(lines, lines[blamed], self._call(found[blamed]), inner)

    def _call(self, at: _At) -> str:
        place = at.code, at.instruction
        found = self._calls.get(place)
        if found is None:
            if len(self._calls) >= _MOST_CALLS:
                self._calls.clear()
            try:
                found = call_in(at.frame, at.instruction)
            except Exception:  # an odd source or an odd object: the line is known all the same
                found = ""
            self._calls[place] = found
        return found


class _At(NamedTuple):
    """Where a frame was: it may go on while it is looked at."""

    frame: FrameType
    code: CodeType
    instruction: int
    lineno: int


def _frames_of(thread: int) -> list[_At]:
    """Return the frames of a thread, outermost first, and where each is."""
    frame = sys._current_frames().get(thread)  # noqa: SLF001 # documented in spite of its name
    found: list[_At] = []
    while frame is not None and len(found) < _MOST_FRAMES:
        code = frame.f_code
        found.append(_At(frame, code, frame.f_lasti, frame.f_lineno or code.co_firstlineno))
        frame = frame.f_back
    found.reverse()
    return found


def is_app(code: CodeType) -> bool:
    """Tell whether code is the user's own, not of a library."""
    file = code.co_filename
    if file.startswith("<") or any(part in file for part in _INSTALLED):
        return False
    return not file.startswith((*_LIBRARIES, _OURS))


def _line(at: _At) -> Line:
    module = at.frame.f_globals.get("__name__", "?")
    return Line(f"{module}:{at.code.co_qualname}", _shown(at.code.co_filename), at.lineno)


def _shown(filename: str) -> str:
    """Return a path as people write it: from the working directory, where it is below."""
    here = os.getcwd() + os.sep  # noqa: PTH109 # a string is wanted
    return filename.removeprefix(here)


def call_in(frame: FrameType, instruction: int) -> str:
    """Return the name of what a frame calls: ``time.sleep``, ``sqlite3.Cursor.execute``; ``""`` if nothing."""
    expression = _expression_at(frame.f_code, instruction)
    if isinstance(expression, ast.Await):
        expression = expression.value
    if isinstance(expression, ast.Call):
        return _name_of(expression.func, frame)
    if isinstance(expression, ast.Name | ast.Attribute):  # with lock: ...
        found = _find(expression, frame)
        return "" if found is _UNKNOWN else _type_name(found)
    return ""


def _expression_at(code: CodeType, instruction: int) -> ast.expr | None:
    """Parse the part of the source that an instruction belongs to."""
    position = next(itertools.islice(code.co_positions(), instruction // 2, None), None)
    if position is None:
        return None
    first, last, start, end = position
    if first is None or last is None or start is None or end is None:
        return None
    lines = [linecache.getline(code.co_filename, line).encode() for line in range(first, last + 1)]
    lines[-1] = lines[-1][:end]
    lines[0] = lines[0][start:]
    text = b"".join(lines)
    try:
        return ast.parse(b"(" + text + b"\n)", mode="eval").body
    except SyntaxError:
        statement = ast.parse(text).body[0]  # of ``with`` the whole statement is told
        return statement.items[0].context_expr if isinstance(statement, ast.With | ast.AsyncWith) else None


def _name_of(called: ast.expr, frame: FrameType) -> str:
    """Return the name of what an expression stands for, by its own module where it is a function or class."""
    if isinstance(called, ast.Attribute):
        owner = _find(called.value, frame)
        if isinstance(owner, ModuleType):
            return f"{owner.__name__}.{called.attr}"
        if owner is _UNKNOWN:
            return ast.unparse(called) if _is_dotted(called) else called.attr
        kind = owner if isinstance(owner, type) else type(owner)
        return f"{_full_name(kind)}.{called.attr}"
    found = _find(called, frame)
    if found is _UNKNOWN:
        return called.id if isinstance(called, ast.Name) else ""
    return _full_name(found) or _type_name(found)


def _is_dotted(expression: ast.expr) -> bool:
    while isinstance(expression, ast.Attribute):
        expression = expression.value
    return isinstance(expression, ast.Name)


def _find(expression: ast.expr, frame: FrameType) -> Any:
    """Return the object that a name or a chain of attributes stands for, without running any code of its own."""
    if isinstance(expression, ast.Name):
        code = frame.f_code
        if expression.id in code.co_varnames or expression.id in code.co_freevars + code.co_cellvars:
            return frame.f_locals.get(expression.id, _UNKNOWN)
        return frame.f_globals.get(expression.id, vars(builtins).get(expression.id, _UNKNOWN))
    if isinstance(expression, ast.Attribute):
        owner = _find(expression.value, frame)
        if owner is _UNKNOWN:
            return _UNKNOWN
        if isinstance(owner, ModuleType):
            return vars(owner).get(expression.attr, _UNKNOWN)
        return _attribute_of(owner, expression.attr)
    return _UNKNOWN


def _attribute_of(owner: Any, name: str) -> Any:
    """Return an attribute of an object, ``_UNKNOWN`` where only code of its class could tell.

    :func:`inspect.getattr_static` is asked of classes alone. Of an object it wants the dictionary, which CPython up
    to 3.12 then makes, and then finds its attributes more slowly for good: all of a loop's or a transport's,
    after one stall in one of its methods.
    """
    of_class = inspect.getattr_static(owner if isinstance(owner, type) else type(owner), name, _UNKNOWN)
    if hasattr(type(of_class), "__get__"):
        return _UNKNOWN
    if isinstance(owner, type):
        return of_class
    try:
        return object.__getattribute__(owner, name)  # with no descriptor of that name, this runs nothing
    except AttributeError:
        return _UNKNOWN


def _full_name(named: Any) -> str:
    if not isinstance(named, type | FunctionType | BuiltinFunctionType | MethodType):
        return ""  # its attributes may be code of the app's
    module, name = getattr(named, "__module__", None), getattr(named, "__qualname__", None)
    if not isinstance(name, str):
        return ""
    return f"{module}.{name}" if isinstance(module, str) and module != "builtins" else name


def _type_name(value: Any) -> str:
    return _full_name(type(value))
