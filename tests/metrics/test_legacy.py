"""The notebooks' scores, and why they are legacy: noise passes for a reconstruction."""

from __future__ import annotations

import pytest
import torch

from medpfl.metrics import legacy_ssim_range0, legacy_ssim_range255, ssim
from tests.metrics.phantoms import phantom, ssim_of_skimage

MEAN = torch.tensor([0.4914, 0.4822, 0.4465]).view(-1, 1, 1)
DEVIATION = torch.tensor([0.2023, 0.1994, 0.2010]).view(-1, 1, 1)


def noise(like, seed=0):
    return torch.rand(like.shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("channels", [1, 3])
def test_with_range_255_pure_noise_scores_high(channels):
    truth = torch.cat([phantom(64, 64, channels, seed) for seed in range(5)])
    legacy, real = legacy_ssim_range255(noise(truth), truth), ssim(noise(truth), truth)
    assert (legacy > 0.6).all()
    assert (real < 0.1).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_range_255_is_that_of_cifar_s_normalized_pixels(channels):
    truth = phantom(40, 32, channels)
    for guess in (noise(truth), 2 * noise(truth) - 0.5):  # they did not clamp
        normalized = [((t[0] - MEAN[:channels]) / DEVIATION[:channels]) for t in (guess, truth)]
        assert legacy_ssim_range255(guess, truth).item() == pytest.approx(
            ssim_of_skimage(*normalized, data_range=255), abs=1e-5
        )


@pytest.mark.parametrize("channels", [1, 3])
def test_range_0_has_no_stabilizing_constants(channels):
    truth = noise(torch.empty(1, channels, 32, 40), 1)  # nowhere flat
    for guess in (0.8 * truth + 0.2 * noise(truth, 2), 1.5 * noise(truth, 3)):
        expected = ssim_of_skimage(guess[0], truth[0], data_range=1, K1=1e-7, K2=1e-7)
        assert legacy_ssim_range0(guess, truth).item() == pytest.approx(expected, abs=1e-5)
        assert abs(expected - ssim_of_skimage(guess[0], truth[0], data_range=1)) > 1e-4


def test_range_0_takes_a_trace_of_noise_on_black_for_a_total_loss():
    black = torch.zeros(1, 1, 32, 32)
    trace = 1e-3 * noise(black)
    assert legacy_ssim_range0(trace, black).item() < 0.01
    assert ssim(trace, black).item() > 0.99
    assert legacy_ssim_range0(black, black).item() == pytest.approx(1)
