"""Objects of others are found by themselves, whatever they say of hash and equality, and are not kept alive."""

from __future__ import annotations

import gc

from loopwatch.identity import WeakIdentityMap


class Equal:
    """Equals every other one, so it cannot be hashed."""

    def __eq__(self, other):
        return isinstance(other, Equal)

    __hash__ = None


def test_objects_that_equal_each_other_have_values_of_their_own():
    first, second = Equal(), Equal()
    values = WeakIdentityMap()
    values[first] = "first"
    assert values.get(second) is None
    values[second] = "second"
    values[first] = "again"
    assert [values.get(one) for one in (first, second)] == ["again", "second"]
    assert len(values) == 2


def test_an_object_that_is_gone_leaves_nothing():
    values = WeakIdentityMap()
    one, other = Equal(), Equal()
    values[one], values[other] = "one", "other"
    del one
    gc.collect()
    assert len(values) == 1
    assert values.get(other) == "other"
