"""Pixel metrics against scikit-image, under the package's one definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import metrics as skimage
from skimage.feature import match_template as skimage_match

from medpfl import metrics
from medpfl.core.errors import InputError
from medpfl.core.roles import Metric, metric
from medpfl.metrics import mse, ncc, psnr, ssim
from tests.metrics.phantoms import phantom, ssim_of_skimage

SIZES = st.tuples(st.integers(1, 3), st.sampled_from([1, 3]), st.integers(11, 30), st.integers(11, 30))


REFERENCES = {
    "ssim": ssim_of_skimage,
    "mse": lambda guess, truth: skimage.mean_squared_error(guess.double().numpy(), truth.double().numpy()),
    "psnr": lambda guess, truth: skimage.peak_signal_noise_ratio(
        truth.double().numpy(), guess.double().numpy(), data_range=1
    ),
    "ncc": lambda guess, truth: np.corrcoef(guess.double().flatten(), truth.double().flatten())[0, 1],
}


def pairs(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    truth = torch.rand(shape, generator=generator)
    noise = torch.randn(shape, generator=generator)
    levels = torch.logspace(-3, 0, shape[0])[:, None, None, None]
    return (truth + levels * noise).clamp(0, 1), truth


@pytest.mark.parametrize("name", REFERENCES)
@settings(max_examples=20, deadline=None)
@given(shape=SIZES, seed=st.integers(0, 1000))
def test_as_scikit_image_on_noise(name, shape, seed):
    guess, truth = pairs(shape, seed)
    found = getattr(metrics, name)(guess, truth)
    assert found.shape == (shape[0],)
    expected = [REFERENCES[name](g, t) for g, t in zip(guess, truth, strict=True)]
    assert found.tolist() == pytest.approx(expected, abs=1e-4, rel=1e-6)


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(48, 48), (33, 64), (80, 11)])
def test_as_scikit_image_on_phantoms(name, channels, size):
    truth = torch.cat([phantom(*size, channels, seed) for seed in range(4)])
    blurred = torch.nn.functional.avg_pool2d(truth, 3, 1, 1)
    flat = [] if name == "ncc" else [torch.full_like(truth, 0.3)]  # undefined by the reference
    for guess in (blurred, truth.flip(0), 1 - truth, *flat, truth * 0.9 + 0.05):
        expected = [REFERENCES[name](g, t) for g, t in zip(guess, truth, strict=True)]
        assert getattr(metrics, name)(guess, truth).tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", ["mse", "ncc", "psnr", "ssim"])
def test_each_image_has_its_own_number(name):
    metric, (guess, truth) = getattr(metrics, name), pairs((5, 3, 16, 20), 0)
    whole = metric(guess, truth)
    assert whole.shape == (5,)
    alone = torch.cat([metric(guess[i : i + 1], truth[i : i + 1]) for i in range(5)])
    assert torch.allclose(whole, alone, rtol=1e-12)
    assert len(set(whole.tolist())) == 5


@pytest.mark.parametrize("name", ["mse", "ncc", "psnr", "ssim"])
def test_guesses_are_clamped_truths_are_not(name):
    metric, (guess, truth) = getattr(metrics, name), pairs((2, 1, 16, 16), 0)
    wild = 3 * guess - 1
    assert torch.equal(metric(wild, truth), metric(wild.clamp(0, 1), truth))
    assert not torch.equal(metric(guess, 2 * truth), metric(guess, (2 * truth).clamp(0, 1)))


@pytest.mark.parametrize("name", ["mse", "ncc", "psnr", "ssim"])
def test_single_and_double_precision_agree(name):
    metric, (guess, truth) = getattr(metrics, name), pairs((3, 1, 24, 24), 1)
    single, double = metric(guess, truth), metric(guess.double(), truth.double())
    assert single.dtype == double.dtype == torch.float64
    assert torch.allclose(single, double, atol=1e-7)


def test_equal_images():
    truth = phantom()
    assert mse(truth, truth).tolist() == [0]
    assert ssim(truth, truth).tolist() == pytest.approx([1])
    assert psnr(truth, truth).tolist() == pytest.approx([200])
    nearly = truth.clone().double()
    nearly[0, 0, 20, 20] += 1e-6
    assert 150 < psnr(nearly, truth).item() < 200


def test_known_values():
    black, white = torch.zeros(1, 1, 16, 16), torch.ones(1, 1, 16, 16)
    assert mse(black, white).item() == 1
    assert psnr(black, white).item() == 0
    assert psnr(black + 0.1, black).item() == pytest.approx(20, abs=1e-5)
    assert ssim(black, white).item() == pytest.approx(0.01**2 / (1 + 0.01**2))
    assert ssim(black, black).item() == 1


def test_ncc_ignores_brightness_and_contrast():
    truth = phantom()
    assert ncc(0.3 * truth + 0.2, truth).item() == pytest.approx(1)
    assert ncc(1 - truth, truth).item() == pytest.approx(-1)
    assert abs(ncc(torch.rand(truth.shape, generator=torch.Generator().manual_seed(0)), truth).item()) < 0.1


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_ncc_of_a_constant_image_is_0(value):
    truth = torch.cat([phantom(), torch.full((1, 1, 48, 48), 0.7)])
    assert ncc(torch.full_like(truth, value), truth).tolist() == [0, 0]
    assert ncc(truth.flip(0), truth).tolist() == [0, 0], "also if only one is"


def test_ncc_is_that_of_scikit_image_at_shift_zero():
    guess, truth = (t[0, 0].double().numpy() for t in (0.7 * phantom(seed=1) + 0.3 * phantom(seed=2), phantom(seed=1)))
    expected = skimage_match(truth, guess)
    assert expected.shape == (1, 1)
    assert ncc(torch.tensor(guess)[None, None], torch.tensor(truth)[None, None]).item() == pytest.approx(expected[0, 0])


@pytest.mark.parametrize("size", [(10, 32), (32, 10), (1, 1)])
@pytest.mark.parametrize("name", ["ssim", "legacy_ssim_range0", "legacy_ssim_range255"])
def test_images_smaller_than_the_window(name, size):
    with pytest.raises(InputError, match=rf"11 x 11 pixels or more, these are \({size[0]}, {size[1]}\)"):
        getattr(metrics, name)(torch.rand(2, 1, *size), torch.rand(2, 1, *size))


def test_nothing_to_differentiate_and_nothing_changed():
    guess, truth = pairs((2, 1, 16, 16), 0)
    before = guess.clone()
    assert not ssim(guess.requires_grad_(), truth).requires_grad
    assert torch.equal(guess, before)


@pytest.mark.parametrize("name", metrics.__all__)
def test_every_metric_keeps_what_the_role_promises(name):
    metric = getattr(metrics, name)
    truth = torch.cat([phantom(seed=s) for s in range(3)])
    near = (truth + 0.01 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    far = torch.rand(truth.shape, generator=torch.Generator().manual_seed(1))
    assert isinstance(metric, Metric)
    assert metric.legacy == name.startswith("legacy_")
    assert metric.data_range == {"legacy_ssim_range0": 0, "legacy_ssim_range255": 255}.get(name, 1)
    better = metric(near, truth) > metric(far, truth)
    assert better.shape == (3,)
    assert better.all() if metric.leak == "higher" else not better.any()


# --- volumes --------------------------------------------------------------------------------------------------


def volumes(depth):
    generator = torch.Generator().manual_seed(depth)
    truth = torch.rand(2, 1, depth, 13, 14, generator=generator)
    guess = (truth + 0.3 * torch.randn(truth.shape, generator=generator)).clamp(0, 1)
    guess[:, :, 0] = 1 - truth[:, :, 0]  # an outer slice that is all wrong
    return guess, truth


def of_skimage(guess, truth):
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1}
    return skimage.structural_similarity(guess.double().numpy(), truth.double().numpy(), **options)


@pytest.mark.parametrize("depth", [11, 12, 20])
def test_volumes_have_a_window_of_three_axes(depth):
    guess, truth = volumes(depth)
    expected = [of_skimage(g[0], t[0]) for g, t in zip(guess, truth, strict=True)]
    assert ssim(guess, truth).tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("depth", [1, 3, 10])
def test_thin_volumes_are_scored_slice_by_slice(depth):
    guess, truth = volumes(depth)
    for i in range(2):
        slices = [of_skimage(g, t) for g, t in zip(guess[i, 0], truth[i, 0], strict=True)]
        assert ssim(guess, truth)[i].item() == pytest.approx(sum(slices) / depth, abs=1e-5)


def test_slices_that_are_smaller_than_the_window():
    with pytest.raises(InputError, match="11 x 11"):
        ssim(torch.zeros(1, 1, 12, 10, 12), torch.zeros(1, 1, 12, 10, 12))


def test_ncc_of_volumes_counts_all_voxels():
    guess, truth = volumes(12)
    expected = [REFERENCES["ncc"](g, t) for g, t in zip(guess, truth, strict=True)]
    assert ncc(guess, truth).tolist() == pytest.approx(expected)


def test_a_metric_says_what_it_must_state():
    bare = (lambda: metric(lambda guess, truth: guess), metric, lambda: metric(unit=""), lambda: metric(leak="lower"))
    for wrong in (*bare, lambda: metric(unit="", leak="more")):
        with pytest.raises(InputError, match=r'write @metric\(unit="", leak="higher"\)'):
            wrong()
