"""The no-prior reference: its guesses' error follows the distribution that the paper derives."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from medpfl.metrics.no_prior import no_prior_guess


@pytest.mark.parametrize("noise", [0.05, 1.0])
def test_the_squared_error_over_the_noise_is_chi_squared_with_a_degree_for_each_pixel(noise):
    truth = torch.rand(2, 1, 4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    truth[1] *= 0.3
    many = truth.repeat_interleave(3000, 0)
    guess = no_prior_guess(many, noise, torch.Generator().manual_seed(3))
    for one, own in zip(truth, (guess - many).flatten(1).square().sum(1).chunk(2), strict=True):
        scaled = own / (noise * one.norm()) ** 2
        assert stats.kstest(scaled.numpy(), stats.chi2(20).cdf).pvalue > 1e-3
    assert (guess.mean(0) - many.mean(0)).abs().max() < 5 * noise * float(truth[0].norm()) / 6000**0.5
