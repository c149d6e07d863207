"""Bytes on the wire: what a receiver needs to rebuild an update."""

from __future__ import annotations

import pytest
import torch

from medpfl.core.types import Update
from medpfl.defenses import NoDefense, Signs, TopK
from medpfl.federated.wire import wire_bytes


def update(**more) -> Update:
    generator = torch.Generator().manual_seed(0)
    return Update({"a": torch.randn(40, 25, generator=generator), "b": torch.randn(7, generator=generator)}, **more)


def sent(defense) -> Update:
    return defense.update(update(), defense.init(), torch.Generator())[0]


def test_plain_values():
    assert wire_bytes(sent(NoDefense())) == 4 * 1007
    assert wire_bytes(update(num_samples=3)) == 4 * 1007 + 8
    assert wire_bytes(update(buffers={"mean": torch.zeros(5), "count": torch.tensor(3)})) == 4 * 1007 + 5 * 4 + 8


def test_survivors_travel_with_their_places():
    few = sent(TopK(keep=0.1))
    kept = sum(int(t.count_nonzero()) for t in few.tensors.values())
    assert kept == 101
    assert wire_bytes(few) <= 8 * kept
    assert wire_bytes(few) > 4 * kept
    assert wire_bytes(sent(TopK(keep=0.9))) <= 4 * 1007


def test_signs_take_a_bit_and_their_size():
    signs = Update({"a": sent(Signs()).tensors["a"]})
    assert len(signs.tensors["a"].unique()) == 2
    assert wire_bytes(signs) == 1000 // 8 + 2 * 4
    odd = Update({"a": signs.tensors["a"].flatten()[:-1]})
    assert wire_bytes(odd) == 125 + 2 * 4, "the last byte is not full"


def test_masked_integers_cannot_be_packed():
    assert wire_bytes(sent(Signs()), masked=True) == 4 * 1007


@pytest.mark.parametrize("values", [torch.zeros(8), torch.ones(1), torch.zeros(0)])
def test_the_ends(values):
    assert 0 <= wire_bytes(Update({"a": values})) <= 4 * len(values)
