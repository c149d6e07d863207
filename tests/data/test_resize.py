"""Pictures of any size become squares; references are torchvision's and Pillow's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.v2 import functional as tv

from medpfl.core.errors import InputError
from medpfl.data.resize import check_target, fitted, stacked

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


def test_rgb_becomes_gray_as_in_pillow_and_gray_is_repeated():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    color = torch.from_numpy(pixels).movedim(-1, 0) / 255
    gray = stacked([color], 1)[0, 0].numpy()
    assert abs(gray - np.asarray(Image.fromarray(pixels).convert("L")) / 255).max() <= 1 / 255
    assert torch.equal(stacked([color[:1]], 3)[0], color[:1].repeat(3, 1, 1))


def test_color_among_gray_makes_all_color():
    assert stacked([picture(8, 8), picture(8, 8, 3)]).shape == (2, 3, 8, 8)
    assert stacked([picture(8, 8), picture(8, 8)]).shape == (2, 1, 8, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((7, "crop", None), "size=7 .* 8 or more"),
        ((32.0, "crop", None), "size=32.0"),
        ((True, "crop", None), "size=True"),
        (("32", "crop", None), "size='32'"),
        ((32, "crops", None), "did you mean 'crop'"),
        ((32, None, None), "known: crop, squash"),
        ((32, "crop", 2), "channels=2"),
        ((32, "crop", True), "channels=True"),
        ((32, "crop", "3"), "channels='3'"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        check_target(*arguments)
