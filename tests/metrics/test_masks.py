"""Mask overlap against definitions written out as in scikit-learn, and edge cases."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medpfl.metrics.masks import class_counts, majority, mask_dice, mask_iou


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), axes=st.sampled_from([(5, 6), (3, 4, 5)]), classes=st.integers(2, 4))
def test_as_sets_of_pixels(seed, axes, classes):
    generator = torch.Generator().manual_seed(seed)
    guess, truth = (torch.randint(classes, (3, *axes), generator=generator) for _ in range(2))
    for i in range(3):
        dices, ious = [], []
        for label in range(1, classes):
            a, b = ({tuple(p) for p in (m[i] == label).nonzero().tolist()} for m in (guess, truth))
            if a or b:
                dices.append(2 * len(a & b) / (len(a) + len(b)))
                ious.append(len(a & b) / len(a | b))
        assert mask_dice(guess, truth)[i].item() == pytest.approx(sum(dices) / len(dices) if dices else 1)
        assert mask_iou(guess, truth)[i].item() == pytest.approx(sum(ious) / len(ious) if ious else 1)


def test_empty_masks_and_a_class_that_only_the_guess_has():
    nothing, one, two = (torch.full((1, 2, 2), label) for label in range(3))
    assert mask_dice(nothing, nothing).tolist() == mask_iou(nothing, nothing).tolist() == [1.0]
    assert mask_dice(one, nothing).tolist() == [0.0]
    assert mask_dice(two, one).tolist() == [0.0]


def test_the_majority_is_of_the_others():
    masks = torch.tensor([[[1, 1]], [[1, 0]], [[1, 0]], [[0, 2]], [[2, 2]]])
    assert majority(class_counts(masks), masks[[0, 3]]).tolist() == [[[1, 0]], [[1, 0]]]
    assert majority(class_counts(masks), masks[[1]]).tolist() == [[[1, 2]]]
