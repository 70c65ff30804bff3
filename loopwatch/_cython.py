"""Stands in for Cython's module of the same name where the core runs as plain Python."""

from __future__ import annotations

from typing import Any

compiled = False
longlong = int
double = float
Py_ssize_t = int
bint = bool


def _unchanged(decorated: Any) -> Any:
    return decorated


cfunc = inline = final = no_gc = _unchanged


def cclass(declared: type) -> type:
    """Make the class anew, with a slot for each attribute that it declares, as a compiled one has."""
    body = {name: value for name, value in vars(declared).items() if name not in {"__dict__", "__weakref__"}}
    body["__slots__"] = tuple(declared.__annotations__)
    return type(declared)(declared.__name__, declared.__bases__, body)


def cast(_kind: Any, value: Any) -> Any:
    """Tell the compiler the type of a value."""
    return value


def freelist(_size: int) -> Any:
    """Keep some freed objects for the next ones: a hint to the compiler."""
    return _unchanged


def exceptval(*_values: Any, **_options: Any) -> Any:
    """Tell the compiler how a function signals an exception."""
    return _unchanged


def locals(**_types: Any) -> Any:  # noqa: A001 # Cython's name
    """Tell the compiler the types of local variables."""
    return _unchanged
