"""Augmentation: its range, its draws, and each change on images that show it."""

from __future__ import annotations

import pytest
import torch

from medpfl.data.augment import augmented


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 12, 20), (1, 6, 8, 8)])
def test_images_and_volumes_keep_shape_and_range_and_differ_each(shape):
    images = torch.rand(1, *shape, generator=seeded()).expand(5, *shape)
    changed = augmented(images, seeded(1))
    assert changed.shape == images.shape
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert len({float(one.sum()) for one in changed}) == 5
    assert torch.equal(changed, augmented(images, seeded(1)))
    assert not torch.equal(changed, augmented(images, seeded(2)))


def test_a_flat_image_changes_in_brightness_and_gamma_alone():
    changed = augmented(torch.full((2000, 1, 8, 8), 0.5), seeded())
    levels = changed.mean((1, 2, 3))
    assert torch.allclose(changed, levels.view(-1, 1, 1, 1).expand_as(changed), atol=1e-5)
    darkest, lightest = 0.3**1.3, 0.7 ** (1 / 1.3)
    assert darkest - 1e-6 <= levels.min() < darkest + 0.03
    assert lightest - 0.03 < levels.max() <= lightest + 1e-6


def test_two_flat_halves_stay_apart_by_what_contrast_and_gamma_leave():
    halves = torch.cat([torch.full((1000, 1, 64, 32), 0.4), torch.full((1000, 1, 64, 32), 0.6)], 3)
    changed = augmented(halves, seeded())[:, 0, 32]
    assert (changed[:, 60] > changed[:, 3]).all()
    assert (changed[:, 60] - changed[:, 3]).min() < 0.2 / 1.2
    assert (changed[:, 60] - changed[:, 3]).max() > 0.2 * 1.2


def test_a_dot_moves_by_no_more_than_is_said():
    place = torch.arange(61.0) - 30
    dot = torch.exp(-(place[:, None] ** 2 + place**2) / 8).expand(300, 1, 61, 61)
    brightest = augmented(dot, seeded())[:, 0].flatten(1).argmax(1)
    rows, columns = brightest // 61 - 30, brightest % 61 - 30
    for moved in (rows, columns):
        assert 4 <= moved.abs().max() <= 7, "8 % of 61 pixels are 4.9, which zoom and turn carry along"
        assert moved.min() < 0 < moved.max()


def test_a_bar_turns_by_no_more_than_is_said():
    place = torch.arange(61.0) - 30
    bar = torch.exp(-(place[:, None] ** 2) / 8).expand(300, 1, 61, 61)
    turned = augmented(bar, seeded(3))[:, 0]
    slopes = (turned[:, :, 50].argmax(1) - turned[:, :, 10].argmax(1)) / 40
    assert 0.1 < slopes.abs().max() <= 0.14 + 0.04, "the tangent of 8 degrees is 0.14; a pixel in 40 is 0.025"


def test_edges_are_blurred_and_sharpened():
    place = torch.arange(33.0) - 16
    line = torch.exp(-(place**2) / 2).expand(400, 1, 33, 33) * 0.2 + 0.4
    changed = augmented(line, seeded())[:, 0]
    peaks = (changed.amax((1, 2)) - changed.amin((1, 2))) / (line.max() - line.min())
    assert peaks.max() > 1.3 * 1.05
    assert peaks.min() < 0.95 / 1.3
