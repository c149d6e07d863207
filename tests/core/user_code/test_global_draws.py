"""Parts that draw from a global generator give the same numbers again, and leave it as it was."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from medpfl.core.user_code.global_draws import seeded


def draws():
    return float(torch.rand(())), float(np.random.rand()), random.random()


def made(state):
    with seeded(state):
        return draws()


def test_the_part_s_own_generator_decides_the_draws():
    generator = torch.Generator().manual_seed(3)
    first = made(generator)
    assert made(generator) == first
    assert float(torch.rand((), generator=generator)) not in first, "global draws are others than the part's own"
    assert not set(made(generator)) & set(first), "a later round has other draws"


def test_the_global_generators_go_on_as_if_nothing_had_been_drawn():
    def two():
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        return draws(), draws()

    undisturbed = two()
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    assert draws() == undisturbed[0]
    with pytest.raises(ZeroDivisionError), seeded(torch.Generator().manual_seed(3)):
        _ = draws(), 1 / 0
    assert draws() == undisturbed[1]
