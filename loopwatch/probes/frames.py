"""Which line of the app holds the loop, and which call is it in? Frames of the loop's thread in, names out.

Only code objects, line numbers and the *types* of variables are looked at, never their values, and no code of the
app's is run: attributes are looked up statically. Sources are read for the one expression that is called, once for
each place. Watcher thread.
"""

from __future__ import annotations

import builtins
import contextlib
import dis
import inspect
import linecache
import os
import pathlib
import re
import sysconfig
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from loopwatch.names import LONGEST_PATH, printable
from loopwatch.probes.stacks import frames_of
from loopwatch.probes.variables import UNKNOWN, variable

if TYPE_CHECKING:
    from types import CodeType, FrameType

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
_RUNNERS = tuple(
    os.path.join(package, name)  # noqa: PTH118 # compared with the ends of co_filename, thousands of times
    for package, names in {
        "asyncio": ("base_events.py", "events.py", "runners.py", "windows_events.py"),
        "uvloop": ("__init__.py",),
        "uvicorn": ("server.py", "main.py"),
    }.items()
    for name in names
)
_RUNNING = {
    *("run", "run_until_complete", "run_forever", "_run_once", "_run"),  # of asyncio
    *("wrapper", "main", "serve", "_serve", "main_loop"),  # of uvloop and uvicorn
}
"""The functions of those files that run a loop. Others do the work of an app: ``create_connection``, say."""

_CALLS = ("CALL", "CALL_KW", "CALL_FUNCTION_EX", "PRECALL")
_AWAITS = ("SEND", "YIELD_VALUE", "RESUME")
_WITH = ("BEFORE_WITH", "BEFORE_ASYNC_WITH")
_DOTTED = re.compile(r"[^\W\d]\w*(\s*\.\s*[^\W\d]\w*)*")
_METHOD = re.compile(r"\.\s*([^\W\d]\w*)$")
_Place = tuple[int | None, int | None, int | None, int | None]
"""Of some source: its first and last line, the first column and the one after the last, in bytes."""


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
        return self.name(glance(thread))

    def name(self, found: list[At]) -> Sample | None:
        """Return what a thread did at a :func:`glance`; ``None`` where it had ended or only ran its loop."""
        for index in range(len(found) - 1, -1, -1):
            if runs_a_loop(found[index].code):
                del found[: index + 1]
                break
        found = [one for one in found if not one.code.co_filename.startswith((_OURS, "loopwatch/"))]
        if not found:
            return None
        lines = tuple(map(_line, found))
        blamed = next((i for i in range(len(found) - 1, -1, -1) if is_app(found[i].code)), len(found) - 1)
        inner = tuple(line.function.replace(":", ".") for line in lines[blamed + 1 :])
        return Sample(lines, lines[blamed], self._call(found[blamed]), inner)

    def _call(self, at: At) -> str:
        place = at.code, at.instruction
        found = self._calls.get(place)
        if found is None:
            if len(self._calls) >= _MOST_CALLS:
                self._calls.clear()
            try:
                found = printable(call_in(at.frame, at.instruction))
            except Exception:  # an odd source or an odd object: the line is known all the same
                found = ""
            self._calls[place] = found
        return found


class At(NamedTuple):
    """Where a frame was: it may go on while it is looked at."""

    frame: FrameType
    code: CodeType
    instruction: int
    lineno: int


def glance(thread: int) -> list[At]:
    """Return the frames of a thread, outermost first, and where each is.

    This is quick. To name them reads files, and the thread goes on meanwhile.
    """
    return [
        At(frame, frame.f_code, frame.f_lasti, frame.f_lineno or frame.f_code.co_firstlineno)
        for frame in reversed(frames_of(thread))
    ]


def runs_a_loop(code: CodeType) -> bool:
    """Tell whether code runs a loop, on whose behalf nothing is called: its callbacks are."""
    return code.co_name in _RUNNING and code.co_filename.endswith(_RUNNERS)


def is_app(code: CodeType) -> bool:
    """Tell whether code is the user's own, not of a library."""
    file = code.co_filename
    if file.startswith("<") or any(part in file for part in _INSTALLED):
        return False
    return not file.startswith((*_LIBRARIES, _OURS))


def _line(at: At) -> Line:
    name = printable(f"{module_of(at.frame)}:{at.code.co_qualname}")
    return Line(name, _shown(at.code.co_filename), at.lineno)


def module_of(frame: FrameType) -> str:
    """Return the name of the module whose code a frame runs, ``?`` where it has none that is a plain string."""
    module = dict.get(frame.f_globals, "__name__")
    return module if type(module) is str else "?"  # to ask another for one would run code of the app's


def _shown(filename: str) -> str:
    """Return a path as people write it: from the working directory, where it is below, with slashes."""
    with contextlib.suppress(OSError):  # that directory was removed
        filename = filename.removeprefix(os.getcwd() + os.sep)  # noqa: PTH109 # a string is wanted
    return printable(filename.replace(os.sep, "/"), LONGEST_PATH)


def call_in(frame: FrameType, instruction: int) -> str:
    """Return the name of what a frame calls: ``time.sleep``, ``sqlite3.Cursor.execute``; ``""`` if nothing.

    The compiler has noted which part of the source each instruction belongs to, so no source is parsed: in
    CPython 3.11 up to 3.11.7, that would raise a ``SystemError`` in a thread of the app's that parses meanwhile.
    """
    code, index = frame.f_code, instruction // 2
    places, names = list(code.co_positions()), [dis.opname[each] for each in code.co_code[::2]]
    index = _at_or_before(names, index)  # where a Python function is called, CPython 3.11 is past the caches
    if names[index] in _WITH:
        index = _at_or_before(names, index - 1)  # what makes the context manager
    whole = places[index]
    if names[index] in _AWAITS:
        index = _last_call(places, names, index, whole)
    if names[index] in _CALLS:
        return _name_of(_source(code, _called(places, places[index])), frame)
    expression = _names_in(_source(code, whole))  # with lock: ...
    found = _find(expression, frame) if expression else UNKNOWN
    return "" if found is UNKNOWN else _type_name(found)


def _at_or_before(names: list[str], index: int) -> int:
    """Return the index of the nearest instruction that is none of the caches, which lie between."""
    while names[index] == "CACHE":
        index -= 1
    return index


def _last_call(places: list[_Place], names: list[str], before: int, whole: _Place) -> int:
    """Return the index of the call that makes what is awaited, or that of the awaiting if none does."""
    calls = (each for each in range(before) if names[each] in _CALLS and places[each][1::2] == whole[1::2])
    return next((each for each in calls if places[each] != whole), before)


def _called(places: list[_Place], call: _Place) -> _Place:
    """Return the place of what is called: of the expressions that begin where the call does, the next longest."""
    first, last, start, end = call
    if first is None or last is None or start is None or end is None:
        return call
    parts = [
        (to_line, to)
        for line, to_line, column, to in places
        if (line, column) == (first, start)
        and to_line is not None
        and to is not None
        and (to_line, to) < (last, end)
    ]
    to_line, to = max(parts, default=(first, start))
    return first, to_line, start, to


def _source(code: CodeType, place: _Place) -> str:
    """Return a part of the source, ``""`` where it is not known."""
    first, last, start, end = place
    if first is None or last is None or start is None or end is None:
        return ""
    lines = [linecache.getline(code.co_filename, line).encode() for line in range(first, last + 1)]
    lines[-1] = lines[-1][:end]
    lines[0] = lines[0][start:]
    return b"".join(lines).decode(errors="replace")


def _names_in(source: str) -> list[str]:
    """Return the names of an expression like ``self.session.get``; none if it is anything else."""
    return re.split(r"\s*\.\s*", source) if _DOTTED.fullmatch(source) else []


def _name_of(called: str, frame: FrameType) -> str:
    """Return the name of what an expression stands for, by its own module where it is a function or class."""
    names = _names_in(called)
    if not names:  # what a call returns, say: its method is known all the same
        method = _METHOD.search(called)
        return method[1] if method else ""
    *owners, attribute = names
    if owners:
        owner = _find(owners, frame)
        if isinstance(owner, ModuleType):
            return f"{owner.__name__}.{attribute}"
        if owner is UNKNOWN:
            return ".".join(names)
        return f"{_full_name(owner if isinstance(owner, type) else type(owner))}.{attribute}"
    found = _find(names, frame)
    if found is UNKNOWN:
        return attribute
    return _full_name(found) or _type_name(found)


def _find(names: list[str], frame: FrameType) -> Any:
    """Return the object that a name and its attributes stand for, without running any code of its own."""
    name, *attributes = names
    code = frame.f_code
    if name in code.co_varnames or name in code.co_freevars + code.co_cellvars:
        found = variable(frame, name)
    else:
        found = frame.f_globals.get(name, vars(builtins).get(name, UNKNOWN))
    for attribute in attributes:
        if found is UNKNOWN:
            break
        found = (
            vars(found).get(attribute, UNKNOWN)
            if isinstance(found, ModuleType)
            else _attribute_of(found, attribute)
        )
    return found


def _attribute_of(owner: Any, name: str) -> Any:
    """Return an attribute of an object, ``UNKNOWN`` where only code of its class could tell.

    :func:`inspect.getattr_static` is asked of classes alone. Of an object it wants the dictionary, which CPython up
    to 3.12 then makes, and then finds its attributes more slowly for good: all of a loop's or a transport's,
    after one stall in one of its methods.
    """
    of_class = inspect.getattr_static(owner if isinstance(owner, type) else type(owner), name, UNKNOWN)
    if hasattr(type(of_class), "__get__"):
        return UNKNOWN
    if isinstance(owner, type):
        return of_class
    try:
        return object.__getattribute__(owner, name)  # with no descriptor of that name, this runs nothing
    except AttributeError:
        return UNKNOWN


def _full_name(named: Any) -> str:
    if not isinstance(named, type | FunctionType | BuiltinFunctionType | MethodType):
        return ""  # its attributes may be code of the app's
    module, name = getattr(named, "__module__", None), getattr(named, "__qualname__", None)
    if not isinstance(name, str):
        return ""
    return f"{module}.{name}" if isinstance(module, str) and module != "builtins" else name


def _type_name(value: Any) -> str:
    return _full_name(type(value))
