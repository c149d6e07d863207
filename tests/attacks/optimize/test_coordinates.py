import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import fft

from medpfl.attacks.optimize.coordinates import Blocks, Pixels, Spectral
from medpfl.core.errors import InputError

EDGES = st.integers(1, 9)


@given(st.integers(1, 3), st.integers(1, 4), EDGES, EDGES, st.sampled_from([Pixels(), Spectral(), Spectral(0.5, 2.0)]))
def test_there_and_back(count, channels, height, width, basis):
    images = torch.rand(2, count, channels, height, width, dtype=torch.float64)
    there = basis.coordinates(images, 3)
    assert there.shape == images.shape
    assert torch.allclose(basis.images(there, 3), images, atol=1e-12)


def test_without_scales_it_is_scipy_s_cosine_transform_also_of_volumes():
    for shape in ((2, 3, 8, 6), (2, 1, 5, 8, 6)):
        images = torch.rand(shape, dtype=torch.float64)
        axes = len(shape) - 1
        found = Spectral(exponent=0.0, color=1.0).coordinates(images, axes)
        expected = fft.dctn(images.numpy(), axes=range(1, len(shape)), norm="ortho")
        assert np.allclose(found.numpy(), expected)


def test_high_frequencies_and_colors_move_less():
    scale = Spectral(exponent=1.0, corner=8.0, color=0.3)
    unit = torch.zeros(3, 16, 16, dtype=torch.float64)
    sizes = []
    for place in ((0, 0, 0), (0, 0, 8), (0, 6, 8), (2, 0, 0)):
        point = unit.clone()
        point[place] = 1
        sizes.append(scale.images(point[None], 3).norm().item())
    assert sizes == pytest.approx([1, 1 / 2, 1 / (1 + 10 / 8), 0.3])


def test_bad_scales():
    for bad in ({"corner": 0.0}, {"color": 0.0}, {"exponent": -1.0}):
        with pytest.raises(InputError, match="above 0"):
            Spectral(**bad)


@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.sampled_from([2, 3]))
def test_images_of_blocks_stay_as_they_are_and_in_range(edge, height, width, axes):
    coordinates = torch.rand(2, 1, 3, *[height, width, 4][:axes], dtype=torch.float64)
    found = Blocks(edge).images(coordinates, axes + 1)
    assert found.shape == coordinates.shape
    assert found.min() >= coordinates.min() - 1e-12
    assert found.max() <= coordinates.max() + 1e-12
    again = Blocks(edge).images(Blocks(edge).coordinates(found, axes + 1), axes + 1)
    assert torch.allclose(again, found, atol=1e-10)


def test_blocks_move_as_one_and_are_linear_between_their_centers():
    ramp = torch.arange(16.0).expand(1, 1, 1, 16, 16)
    inner = Blocks(4).images(ramp, 3)[0, 0, 0]
    assert torch.allclose(inner[:, 2:-2], ramp[0, 0, 0, :, 2:-2])
    z = torch.rand(1, 1, 1, 16, 16, requires_grad=True)
    (slope,) = torch.autograd.grad(Blocks(4).images(z, 3).square().sum(), z)
    blocks = slope.unfold(3, 4, 4).unfold(4, 4, 4).flatten(5)
    assert torch.allclose(blocks, blocks[..., :1].expand_as(blocks))
    assert torch.allclose(Blocks(1).images(ramp, 3), ramp)
    with pytest.raises(InputError, match="edge"):
        Blocks(0)
