"""Priors over voxels that are not cubes."""

from __future__ import annotations

import pytest
import torch

from medpfl import InputError
from medpfl.attacks import GradientMatching, GradInv
from medpfl.attacks.matching.priors import Smoothness, TotalVariation
from medpfl.core.spec import build


def ramps():
    """Return, for each axis, a volume that rises by 1 per millimeter along it, with voxels of 4 x 1 x 2 mm."""
    axes = torch.meshgrid(torch.arange(3) * 4.0, torch.arange(5) * 1.0, torch.arange(4) * 2.0, indexing="ij")
    return [ramp[None, None] for ramp in axes]


@pytest.mark.parametrize(("prior", "power"), [(TotalVariation, 1), (Smoothness, 2)])
def test_a_slope_counts_the_same_along_every_axis(prior, power):
    values = [float(prior(0.5, spacing=(4, 1, 2))(ramp)) for ramp in ramps()]
    assert values == pytest.approx([0.5] * 3)
    plain = [float(prior(0.5)(ramp)) for ramp in ramps()]
    assert plain == pytest.approx([0.5 * step**power for step in (4, 1, 2)])


def test_only_the_ratios_of_spacings_count():
    images = torch.rand(2, 1, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    prior = TotalVariation(0.1, (4, 1, 2))
    assert torch.allclose(prior(images), TotalVariation(0.1, (2, 0.5, 1))(images))
    assert torch.allclose(TotalVariation(0.1)(images), TotalVariation(0.1, (3, 3, 3))(images))
    assert not torch.allclose(prior(images), TotalVariation(0.1)(images))


def test_a_single_slice_has_no_neighbors():
    images = torch.rand(1, 1, 1, 4, 5, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(TotalVariation(0.1)(images), TotalVariation(0.1)(images[:, :, 0]))


@pytest.mark.parametrize("spacing", [(), (1, 0, 1), (1, -1), (float("nan"), 1), ("a", 1)])
def test_spacings_that_are_none(spacing):
    with pytest.raises(InputError, match="spacing"):
        TotalVariation(0.1, spacing)


def test_another_number_of_axes():
    with pytest.raises(InputError, match="the images have 2 axes"):
        TotalVariation(0.1, (1, 1, 1))(torch.zeros(1, 1, 4, 4))


def test_specs():
    known = {"GradInv": GradInv, "GradientMatching": GradientMatching}
    attack = build("GradInv(tv=0.1, spacing=(3, 1, 1))", known, "attack")
    assert attack == GradInv(tv=0.1, spacing=(3, 1, 1))
    assert "spacing=(3, 1, 1)" in repr(attack)
