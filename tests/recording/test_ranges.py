"""The mapping by which pixels enter a watched model: inferred equally in all rounds, and told as inferred."""

from __future__ import annotations

import pytest
import torch

import medpfl
from medpfl.core.records.origin import Pixels
from medpfl.models import LeNet
from medpfl.models.entering import Entering, entering, leaving
from medpfl.recording.view import view_of
from medpfl.recording.watching.ranges import _LOADERS, Ranges


def levels(seed: int, channels: int = 1, low: int = 0, high: int = 256) -> torch.Tensor:
    """Return images in [0, 1] as ToTensor makes them from 8 bits."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, (4, channels, 16, 16), generator=generator).float() / 255


def inferred(*batches: torch.Tensor) -> Pixels | None:
    seen = Ranges()
    for batch in batches:
        seen.take(batch)
    return seen.pixels


@pytest.mark.parametrize(("mean", "std"), _LOADERS)
def test_the_loader_is_found_by_gray_levels_whatever_the_range_of_the_images(mean, std):
    stated = Pixels(mean=mean, std=std)
    for seed, (low, high) in enumerate(((0, 256), (3, 240), (40, 200))):
        images = levels(seed, max(len(mean), 1), low, high)
        found = inferred(entering(images, stated))
        assert found is not None
        assert found.inferred
        torch.testing.assert_close(leaving(entering(images, stated), found), images, atol=1e-5, rtol=0)


def test_without_gray_levels_a_loader_whose_range_is_nearly_filled():
    """Images that were resized as floating-point numbers are no gray levels, and rarely black and white."""
    stated = Pixels(mean=(0.5,), std=(0.25,))
    for seed in range(3):
        images = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(seed)) * 0.97 + 0.02
        assert inferred(entering(images, stated)) == stated


def test_other_values_keep_their_range():
    images = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 5
    found = inferred(images[:2], images[2:])
    assert found is not None
    assert (found.low, found.high, found.mean) == (float(images.min()), float(images.max()), None)
    assert inferred(levels(0)) == Pixels(0, 1)
    assert inferred(levels(0) * 255) == Pixels(0, 255)
    assert inferred(levels(0) * 3) == Pixels(0, float((levels(0) * 3).max())), "as bytes, they would be black"
    assert inferred(torch.zeros(0, 1, 4, 4)) is None


def test_what_is_inferred_is_told(tmp_path):
    model = LeNet("idlg").build((1, 16, 16), 2, seed=4)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    stated = Pixels(mean=(0.5,), std=(0.25,))
    for pixels in (None, stated):
        with medpfl.record(tmp_path / f"{pixels is None}", model, pixels=pixels):
            optimizer.zero_grad()
            images = entering(levels(0), stated)
            torch.nn.functional.cross_entropy(model(images), torch.tensor([0, 1, 0, 1])).backward()
            optimizer.step()
        (path,) = (tmp_path / f"{pixels is None}").glob("*.safetensors")
        held = medpfl.Record.load(path).pixels
        assert held == stated
        assert held is not None
        assert held.inferred == (pixels is None)
        assert ("inferred" in view_of(path).contents["pixels"]) == held.inferred
        assert ("inferred" in repr(Entering(LeNet("idlg"), held))) == held.inferred
        assert ("inferred" in held.to_dict()) == held.inferred, "older versions read what was stated"
