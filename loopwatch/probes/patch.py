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
        self._found = vars(holder).get(name)
        self._ours = replacement
        setattr(holder, name, replacement)

    def remove(self) -> bool:
        """Put back what was found. What came on top of ours is left alone: then return ``False``."""
        if vars(self._holder).get(self._name) is not self._ours:
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
