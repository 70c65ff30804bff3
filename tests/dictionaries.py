"""Has an object a dictionary of its attributes? CPython makes one for who asks, and then is slower for good."""

from __future__ import annotations

import gc


def has_dictionary(one, *names):
    """Tell whether there is one that holds one of these attributes, without asking the object for it."""
    return any(type(found) is dict and not found.keys().isdisjoint(names) for found in gc.get_referents(one))
