"""The one thing that there should be: if there is none, or more, a test has failed rather than broken."""

from __future__ import annotations


def only(found):
    """Return the only one of what was found."""
    found = tuple(found)
    assert len(found) == 1, f"{len(found)} instead of 1: {found}"
    return found[0]
