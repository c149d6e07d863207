"""Re-identification on hand-made cases: ties, patients, nearest others."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medpfl.metrics.identification import distances, nearest

GALLERY = torch.tensor([0.0, 0.2, 0.5, 1.0]).view(4, 1, 1, 1)


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


def compared(images, own, gallery=GALLERY, excluded=None, part=3):
    excluded = torch.zeros(len(images), len(gallery), dtype=torch.bool) if excluded is None else excluded
    return nearest(images, torch.tensor(own), gallery.split(part), lambda start, end: excluded[:, start:end])


def test_the_nearest_is_identified():
    images = levels(0.18, 0.4)
    assert compared(images, [1, 2]).identified.tolist() == [True, True]
    assert compared(images, [0, 3]).identified.tolist() == [False, False]


def test_a_tie_is_not_an_identification():
    gallery, images = levels(0.5, 0.5, 0.9), levels(0.5, 0.7)
    for part in (1, 3):
        found = compared(images, [0, 2], gallery, part=part)
        assert found.identified.tolist() == [False, False]
        assert found.of_all(torch.tensor([0, 2])).tolist() == [0, 0], "the first of equally near ones"
        assert compared(images, [1, 1], gallery, part=part).identified.tolist() == [False, False]


def test_images_of_the_same_patient_are_left_out():
    excluded = torch.tensor([[False, False, False, False], [False, True, True, False]])
    found = compared(levels(0.3, 0.3), [2, 2], excluded=excluded)  # own image 2 is farther than image 1
    assert found.identified.tolist() == [False, True]
    assert found.place.tolist() == [1, 0]
    assert found.of_all(torch.tensor([2, 2])).tolist() == [1, 2]


def test_the_nearest_other_is_never_the_own_image():
    found = compared(GALLERY, [0, 1, 2, 3])
    assert found.place.tolist() == [1, 0, 1, 2]
    assert not found.own.any()
    assert found.of_all(torch.arange(4)).tolist() == [0, 1, 2, 3]
    assert compared(GALLERY, [0, 1, 2, 3], excluded=torch.eye(4).bool()).identified.all()


def test_nobody_else_is_infinitely_far():
    found = compared(levels(0.3), [2], excluded=torch.ones(1, 4).bool())
    assert (found.other.item(), found.place.item()) == (math.inf, 0)


def test_nothing_that_is_handed_over_is_changed():
    images, gallery, excluded = levels(0.25, 0.9), GALLERY.clone(), torch.eye(2, 4).bool()
    compared(images, [1, 3], gallery, excluded)
    assert images.equal(levels(0.25, 0.9))
    assert gallery.equal(GALLERY)
    assert excluded.equal(torch.eye(2, 4).bool())


def test_a_guess_that_is_not_a_number_identifies_nobody():
    assert compared(levels(float("nan"), 0.0), [0, 0]).identified.tolist() == [False, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_nearest_is_the_one_of_all_distances_even_among_near_twins(dtype):
    """Twins that differ by one rounding step of one pixel, and exact copies: the matrix product cannot tell them."""
    draw = torch.Generator().manual_seed(0)
    base = torch.rand(40, 3, 8, 8, generator=draw)
    twins = base.clone()
    twins[:, 0, 0, 0] = twins[:, 0, 0, 0].nextafter(torch.tensor(2.0))
    gallery = torch.cat([base, twins, base[:5]])[torch.randperm(85, generator=draw)]
    own = torch.randperm(85, generator=draw)[:30]
    images = torch.cat([gallery[own[:20]], torch.rand(10, 3, 8, 8, generator=draw)]).to(dtype)
    excluded = torch.rand(30, 85, generator=draw) < 0.2
    found = compared(images, own.tolist(), gallery, excluded, part=7)
    every, rows = distances(images, gallery), torch.arange(30)
    others = every.masked_fill(excluded, torch.inf)
    others[rows, own] = torch.inf
    assert found.own.equal(every[rows, own].double())
    assert found.other.equal(others.amin(1).double())
    assert found.place.equal(others.argmin(1))
    others[rows, own] = every[rows, own]
    assert found.of_all(own).equal(others.argmin(1))
