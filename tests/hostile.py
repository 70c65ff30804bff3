"""Names that would break a line, a page or an encoder, and what each of these is to be."""

from __future__ import annotations

from types import FunctionType

NAMES = {
    "newline": "a\nb",
    "return": "a\r\nb",
    "escape": "\x1b[31mred\x1b[0m",
    "backslashes": r"a\nb\\",
    "quotes": "'a\"b",
    "sample": 'a"} 1\nloopwatch_request_active{b="',
    "surrogate": "a\ud800b",
    "bidi": "a\u202eb\u2066c\u200f",
    "nul": "a\0b",
    "separators": "a\u2028b\x85c\x0bd",
    "long": "long/" * 2000,
    "long in escapes": "\udfff" * 10_000,
}


class Speechless:
    """Has no words for itself."""

    def __str__(self):
        raise RuntimeError("no words")

    __repr__ = __str__


def using(name):
    """Return a function that uses an executor; all that the interpreter knows of it is called ``name``."""

    def use(loop, executor):
        return loop.run_in_executor(executor, abs, 1)

    code = use.__code__.replace(co_filename=name, co_name=name, co_qualname=name)
    return FunctionType(code, {"__name__": name})


def is_a_line(text):
    """Tell whether text stays one line in any log, terminal, page and encoding."""
    return text.isprintable() and len(text.encode()) > 0
