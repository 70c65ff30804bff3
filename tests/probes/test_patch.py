"""What is patched is put back exactly as it was found, in whatever order."""

from __future__ import annotations

import itertools

import pytest

from loopwatch.probes import patch
from loopwatch.probes.patch import Patch


def make_holder():
    class Holder:
        attribute = "found"

    return Holder


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_a_class_is_as_it_was_whatever_the_order(order):
    holder = make_holder()
    patches = [Patch(holder, "attribute", f"replacement {number}") for number in range(3)]
    for number in order:
        patches[number].remove()
    assert holder.attribute == "found"
    assert patch._buried == []


def test_what_an_instance_did_not_have_is_taken_away_again():
    one = make_holder()()
    one_patch = Patch(one, "attribute", "ours")
    assert one.attribute == "ours"
    assert one_patch.remove()
    assert "attribute" not in vars(one)


def test_what_somebody_else_put_on_top_is_left_alone():
    one = make_holder()()
    ours = Patch(one, "attribute", "ours")
    one.attribute = "theirs"
    assert not ours.remove()
    assert one.attribute == "theirs"
    assert patch._buried == []
