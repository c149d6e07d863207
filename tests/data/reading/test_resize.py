"""Pictures of any size become squares; torchvision and Pillow are the references."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.v2 import functional as tv

from medpfl.data.reading.resize import fitted, fitted_volume, stacked

SIDES = st.integers(1, 200)


def picture(height: int, width: int, channels: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.rand(channels, height, width, generator=torch.Generator().manual_seed(seed))


@given(SIDES, SIDES, st.sampled_from([1, 3]), st.integers(8, 64), st.sampled_from(["crop", "squash"]))
def test_every_size_becomes_a_square_in_range(height, width, channels, size, fit):
    out = fitted(picture(height, width, channels), size, fit)
    assert out.shape == (channels, size, size)
    assert out.dtype == torch.float32
    assert 0 <= out.min() <= out.max() <= 1


@given(st.integers(20, 150), st.integers(20, 150))
def test_crop_is_torchvisions_resize_and_center_crop(height, width):
    image = picture(height, width, 3)
    theirs = tv.center_crop(tv.resize(image, [32], antialias=True), [32, 32])
    torch.testing.assert_close(fitted(image, 32, "crop"), theirs)


@given(SIDES, SIDES)
def test_squash_is_torchvisions_resize(height, width):
    image = picture(height, width)
    torch.testing.assert_close(fitted(image, 24, "squash"), tv.resize(image, [24, 24], antialias=True).clamp(0, 1))


def test_shrinking_is_antialiased_as_pillow_does():
    stripes = (np.indices((90, 90)).sum(0) % 2 * 255).astype(np.uint8)
    pillow = np.asarray(Image.fromarray(stripes).resize((32, 32), Image.Resampling.BILINEAR)) / 255
    ours = fitted(torch.from_numpy(stripes)[None] / 255, 32, "crop")[0].numpy()
    assert abs(ours - pillow).max() < 2 / 255
    assert ours.std() < 0.1  # picking pixels would give 0.5


def test_crop_keeps_the_middle_and_squash_keeps_all():
    wide = torch.zeros(1, 40, 120)
    wide[..., :40] = 1
    assert fitted(wide, 40, "crop").max() == 0
    assert fitted(wide, 40, "squash").mean() == pytest.approx(1 / 3, abs=0.01)


def test_a_strip_of_one_pixel_by_many_takes_no_memory():
    strip = torch.full((1, 1, 2_000_000), 0.5)  # 32 by 64 million, if it were scaled first
    assert torch.equal(fitted(strip, 32, "crop"), torch.full((1, 32, 32), 0.5))


@example(1, 3, 2.00001, 2.00001)
@given(SIDES, SIDES, st.floats(0.1, 10), st.floats(0.1, 10))
def test_pixels_that_are_not_square_fit_too(height, width, tall, wide):
    out = fitted(picture(height, width), 16, "crop", (tall, wide))
    assert out.shape == (1, 16, 16)
    assert out.equal(fitted(picture(height, width), 16, "crop", (3 * tall, 3 * wide)))


def test_a_damaged_spacing_takes_no_memory():
    assert fitted(picture(20, 20), 16, "crop", (1e15, 1)).shape == (1, 16, 16)
    assert fitted_volume(torch.zeros(1, 9, 9, 9), 8, "crop", (1, 1e-15, 1))[0].shape == (1, 8, 8, 8)


def test_spacing_stretches_the_picture():
    tall = torch.rand(1, 20, 40, generator=torch.Generator().manual_seed(0))
    stretched = torch.nn.functional.interpolate(tall[None], (40, 40), mode="bilinear", antialias=True)[0]
    torch.testing.assert_close(fitted(tall, 40, "crop", (2, 1)), stretched)


@given(*[st.integers(1, 24)] * 3, st.integers(8, 12), st.sampled_from(["crop", "squash"]))
def test_every_volume_becomes_a_cube_in_range(depth, height, width, size, fit):
    volume = torch.rand(1, depth, height, width, generator=torch.Generator().manual_seed(0))
    out, spacing = fitted_volume(volume, size, fit, (3.0, 1.0, 2.0))
    assert out.shape == (1, size, size, size)
    assert 0 <= out.min() <= out.max() <= 1
    extents = [3.0 * depth, height, 2.0 * width]
    assert spacing == pytest.approx([min(extents) / size] * 3 if fit == "crop" else [e / size for e in extents])


def test_a_volume_is_scaled_alike_along_all_axes():
    volume = torch.rand(1, 24, 24, 24, generator=torch.Generator().manual_seed(0))
    small, _ = fitted_volume(volume, 12)
    for order in ((0, 2, 3, 1), (0, 3, 2, 1)):
        turned, _ = fitted_volume(volume.permute(order), 12)
        torch.testing.assert_close(turned, small.permute(order))
    assert fitted_volume(volume, 24)[0].equal(volume)


def test_the_middle_of_a_volume_is_cut_out():
    volume = torch.rand(1, 20, 12, 16, generator=torch.Generator().manual_seed(0))
    assert fitted_volume(volume, 12)[0].equal(volume[:, 4:16, :, 2:14])


def test_rgb_becomes_gray_as_in_pillow_and_gray_is_repeated():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    color = torch.from_numpy(pixels).movedim(-1, 0) / 255
    gray = stacked([color], 1)[0, 0].numpy()
    assert abs(gray - np.asarray(Image.fromarray(pixels).convert("L")) / 255).max() <= 1 / 255
    assert torch.equal(stacked([color[:1]], 3)[0], color[:1].repeat(3, 1, 1))


def test_color_among_gray_makes_all_color():
    assert stacked([picture(8, 8), picture(8, 8, 3)]).shape == (2, 3, 8, 8)
    assert stacked([picture(8, 8), picture(8, 8)]).shape == (2, 1, 8, 8)
