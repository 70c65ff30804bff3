"""How is an attribute of somebody else's object replaced, and put back exactly as it was found?"""

from __future__ import annotations

from typing import Any

_buried: list[Patch] = []
"""Those that were to be removed from a class while something was on top of them."""


class Patch:
    """One attribute of one object, replaced for a while.

    A class is shared by all loops: those that are on one of its attributes may be removed in any order.
    """

    __slots__ = ("_found", "_holder", "_name", "_ours")

    def __init__(self, holder: Any, name: str, replacement: Any) -> None:
        self._holder = holder
        self._name = name
        self._found = _own(holder, name)
        self._ours = replacement
        setattr(holder, name, replacement)

    def remove(self) -> bool:
        """Put back what was found. What came on top of ours is left alone: then return ``False``."""
        if _own(self._holder, self._name) is not self._ours:
            if isinstance(self._holder, type):  # anything else would be kept alive by it
                _buried.append(self)
            return False
        found = self._found
        while below := next((one for one in _buried if one._ours is found), None):  # noqa: SLF001 # our class
            _buried.remove(below)
            found = below._found  # noqa: SLF001 # our class
        if found is None:
            delattr(self._holder, self._name)
        else:
            setattr(self._holder, self._name, found)
        return True


def _own(holder: Any, name: str) -> Any:
    """Return an object's own attribute, ``None`` where it is only its class's.

    ``vars`` is asked of classes alone. For an object CPython makes a dictionary when it is asked, and up to 3.12
    finds all the object's attributes more slowly from then on: for a loop, that is a hundredth of a request.
    """
    if isinstance(holder, type):
        return vars(holder).get(name)
    found: Any = getattr(holder, name, None)
    inherited: Any = getattr(type(holder), name, None)
    if hasattr(inherited, "__get__"):
        inherited = inherited.__get__(holder)  # a method: each time another object, but equal
    return None if found == inherited else found
