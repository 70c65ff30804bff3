"""What is known of an object of somebody else's? Found by the object itself, while it lives.

A ``WeakKeyDictionary`` finds its keys by ``hash`` and ``==``. Objects of other packages need not have both:
Logfire's tracer provider is a dataclass, so it cannot be hashed. And what is equal need not be the same.
"""

from __future__ import annotations

import weakref
from typing import Any, Generic, TypeVar

_Value = TypeVar("_Value")


class WeakIdentityMap(Generic[_Value]):
    """Values by object, forgotten with the object. Any thread."""

    def __init__(self) -> None:
        self._values: dict[_SameObject, _Value] = {}

    def get(self, key: Any) -> _Value | None:
        """Return the value of an object, ``None`` if it has none.

        Raises:
            TypeError: objects of this class have no weak references.

        """
        return self._values.get(_SameObject(key))

    def __setitem__(self, key: Any, value: _Value) -> None:
        values = self._values
        values[_SameObject(key, lambda gone: values.pop(gone, None))] = value

    def __len__(self) -> int:
        return len(self._values)


class _SameObject(weakref.ref[Any]):
    """A weak reference that equals those to the same object; once that is gone, itself only."""

    __slots__ = ("_number",)

    def __init__(self, key: Any, callback: Any = None) -> None:  # noqa: ARG002 # __new__ takes it
        self._number = id(key)

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        key = self()
        return key is not None and isinstance(other, _SameObject) and other() is key
