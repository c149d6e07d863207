import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import fft

from medpfl.attacks.bases import Pixels, Spectral
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
