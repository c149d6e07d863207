"""Re-identification on hand-made cases: ties, patients, nearest others."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medpfl.metrics.identification import distances, identified, nearest_other

GALLERY = torch.tensor([0.0, 0.2, 0.5, 1.0]).view(4, 1, 1, 1)
NOBODY = torch.zeros(2, 4, dtype=torch.bool)


def levels(*values):
    return torch.tensor(values).view(-1, 1, 1, 1)


@pytest.mark.slow
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)),
    counts=st.tuples(st.integers(0, 4), st.integers(1, 4)),
)
def test_distances_are_mean_squared_errors(shape, counts):
    generator = torch.Generator().manual_seed(0)
    images, gallery = (torch.rand(n, *shape, generator=generator) for n in counts)
    found = distances(images, gallery)
    assert found.shape == counts
    for i, image in enumerate(images):
        for j, other in enumerate(gallery):
            assert torch.isclose(found[i, j], ((image - other) ** 2).mean())


def test_near_twins_are_told_apart():
    """The expanded square would lose a difference of 1e-5 in single precision."""
    twin = torch.full((1, 1, 64, 64), 0.7)
    other = twin.clone()
    other[0, 0, 0, 0] += 1e-5
    assert distances(twin, twin).item() == 0
    assert 0 < distances(twin, other).item() < 1e-13


def test_the_nearest_is_identified():
    distance = distances(levels(0.18, 0.4), GALLERY)
    assert identified(distance, torch.tensor([1, 2]), NOBODY).tolist() == [True, True]
    assert identified(distance, torch.tensor([0, 3]), NOBODY).tolist() == [False, False]


def test_a_tie_is_not_an_identification():
    gallery = levels(0.5, 0.5, 0.9)
    distance = distances(levels(0.5, 0.7), gallery)
    assert identified(distance, torch.tensor([0, 2]), torch.zeros(2, 3).bool()).tolist() == [False, False]
    assert identified(distance, torch.tensor([1, 1]), torch.zeros(2, 3).bool()).tolist() == [False, False]


def test_images_of_the_same_patient_are_left_out():
    distance = distances(levels(0.3, 0.3), GALLERY)  # own image 2 is farther than image 1
    own = torch.tensor([2, 2])
    excluded = torch.tensor([[False, False, False, False], [False, True, True, False]])
    assert identified(distance, own, excluded).tolist() == [False, True]
    assert nearest_other(distance, own, excluded).tolist() == [1, 0]


def test_nearest_other_is_never_the_own_image():
    distance = distances(GALLERY, GALLERY)
    own = torch.arange(4)
    assert nearest_other(distance, own, torch.zeros(4, 4).bool()).tolist() == [1, 0, 1, 2]
    assert identified(distance, own, torch.eye(4).bool()).all()


def test_nothing_that_is_handed_over_is_changed():
    distance = distances(levels(0.25, 0.9), GALLERY)
    before = distance.clone()
    excluded = torch.eye(2, 4).bool()
    identified(distance, torch.tensor([1, 3]), excluded)
    nearest_other(distance, torch.tensor([1, 3]), excluded)
    assert torch.equal(distance, before)


def test_a_guess_that_is_not_a_number_identifies_nobody():
    distance = distances(levels(float("nan"), 0.0), GALLERY)
    assert identified(distance, torch.tensor([0, 0]), NOBODY).tolist() == [False, True]
