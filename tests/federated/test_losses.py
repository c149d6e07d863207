"""Losses against PyTorch's own and against the formula, for classes, probabilities and masks."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from medpfl import InputError, Plan
from medpfl.federated.losses import LOSSES, cross_entropy, dice

SHAPES = [(3, 4), (2, 3, 5, 6), (2, 3, 3, 4, 5)]


def logits_and_labels(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, dtype=torch.float64, generator=generator)
    return logits, torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)


def probabilities(labels, classes):
    return functional.one_hot(labels, classes).movedim(-1, 1).double()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cross_entropy_is_that_of_pytorch(shape):
    logits, labels = logits_and_labels(shape)
    expected = functional.cross_entropy(logits, labels)
    assert torch.allclose(cross_entropy(logits, labels), expected)
    assert torch.allclose(cross_entropy(logits, probabilities(labels, shape[1])), expected)
    soft = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).softmax(1)
    assert torch.allclose(cross_entropy(logits, soft), functional.cross_entropy(logits, soft))


@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
def test_dice_is_the_formula(shape):
    logits, labels = logits_and_labels(shape)
    p, y = logits.softmax(1), probabilities(labels, shape[1])
    each = []
    for image in range(shape[0]):
        for label in range(shape[1]):
            both, total = (p * y)[image, label].sum(), p[image, label].sum() + y[image, label].sum()
            each.append(1 - (2 * both + 1e-5) / (total + 1e-5))
    expected = torch.stack(each).mean()
    assert torch.allclose(dice(logits, labels), expected)
    assert torch.allclose(dice(logits, y), expected)


def test_dice_of_a_mask_that_is_right_and_of_one_that_is_not():
    _, labels = logits_and_labels((1, 2, 4, 4))
    right = probabilities(labels, 2) * 200 - 100
    assert dice(right, labels) < 1e-6
    assert dice(-right, labels) > 0.99


def test_every_loss_of_a_plan_is_there():
    assert {Plan(loss=name).loss for name in LOSSES} == {"cross_entropy", "dice"}
    with pytest.raises(InputError, match="choose cross_entropy or dice"):
        Plan(loss="mse")  # type: ignore[arg-type]
