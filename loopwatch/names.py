"""How is written what the app named: routes, tasks, pools, functions, files, errors? So that a line stays a line.

Names may hold anything. Each is written once, where loopwatch takes it in, and every exporter gets what this module
returns. It adds no quotes and no escapes of an output format: those are the exporters' business.
"""

from __future__ import annotations

import binascii
from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

LONGEST = 200
"""Characters of a name that is written, unless its kind has a limit of its own."""

LONGEST_PATH, LONGEST_MESSAGE = 1000, 1000
"""Characters of a file's path, and of what an error says."""

_TAIL = 3
"""One part in so many of a shortened name is its end: paths often differ there."""


def printable(name: object, longest: int = LONGEST) -> str:
    r"""Return a name as one printable line that encodes as UTF-8; ``longest`` limits its characters. Any thread.

    What is not printable (:meth:`str.isprintable`: control, format and bidi characters, lone surrogates, spaces
    other than ``" "``) becomes an escape of Python's: ``\n``, ``\u202e``, ``\ud800``. A backslash becomes two. What
    is too long loses its middle to a checksum, the same in every process. So two names are not written alike.
    An object that is no string is written as ``str()`` has it, or as its class where that fails. Never raises.
    """
    text = text_of(name)
    if len(text) <= longest and text.isprintable() and "\\" not in text:
        return text  # nearly all, and at no cost
    if len(text) <= longest:
        escaped = "".join(map(_escaped, text))
        if len(escaped) <= longest:
            return escaped
    checksum = f"…{binascii.crc32(text.encode(errors='surrogatepass')):08x}…"
    room = longest - len(checksum)
    tail = "".join(reversed(_fitting(reversed(text), room // _TAIL)))
    return "".join(chain(_fitting(text, room - len(tail)), (checksum, tail)))


def text_of(name: object) -> str:
    """Return a name as a plain string: its characters, or what ``str()`` makes of another object. Never raises."""
    if type(name) is str:
        return name
    try:
        return str.__str__(name if isinstance(name, str) else str(name))
    except Exception:  # of the app's own code
        return type.__repr__(type(name))


def described(error: BaseException) -> str:
    """Return an error's class and message as one printable line, whatever its own ``__str__`` does."""
    return f"{printable(type(error).__name__)}: {printable(error, LONGEST_MESSAGE)}"


def _escaped(character: str) -> str:
    if character.isprintable() and character != "\\":
        return character
    return character.encode("unicode_escape").decode()


def _fitting(characters: Iterable[str], room: int) -> list[str]:
    """Return as many characters, escaped, as there is room for. None is cut in two."""
    fitting: list[str] = []
    for escaped in map(_escaped, characters):
        room -= len(escaped)
        if room < 0:
            break
        fitting.append(escaped)
    return fitting
