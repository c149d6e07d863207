"""Pixel metrics for images (N, C, H, W) in [0, 1]. Their data range is 1."""

from __future__ import annotations

import torch
from torch import Tensor

from medpfl.core.errors import InputError
from medpfl.core.roles import metric

__all__ = ["SUCCESS", "mse", "psnr", "ssim"]

SUCCESS = 0.9
"""SSIM from which an image counts as reconstructed (Das, Amini and Wu, arXiv:2409.18907)."""


@metric(unit="", leak="lower")
def mse(guess: Tensor, truth: Tensor) -> Tensor:
    """Compute the mean squared error over channels and pixels."""
    return (guess.double() - truth.double()).square().flatten(1).mean(1)


@metric(unit="dB", leak="higher")
def psnr(guess: Tensor, truth: Tensor) -> Tensor:
    """Compute the peak signal-to-noise ratio, -10 log10(MSE), at most 200 dB (an MSE below 1e-20 counts as 1e-20)."""
    return -10 * mse(guess, truth).clamp(min=1e-20).log10()


@metric(unit="", leak="higher")
def ssim(guess: Tensor, truth: Tensor) -> Tensor:
    """Compute structural similarity (Wang et al. 2004), averaged over channels and pixels with a whole window.

    The window is Gaussian with sigma 1.5 and 11 x 11 pixels; the covariance is the population's, C1 = 0.01^2, C2 =
    0.03^2. This equals ``skimage.metrics.structural_similarity`` with
    ``gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1``. For volumes the window is 11 x 11
    x 11; with fewer than 11 slices, the result is the mean over slices.

    Raises:
        InputError: if images or slices are smaller than the window.
    """
    return structural_similarity(guess, truth, data_range=1.0)


def structural_similarity(guess: Tensor, truth: Tensor, data_range: float) -> Tensor:
    """Compute SSIM for a data range; see `ssim`."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    if min(truth.shape[-2:]) < 11:
        raise InputError(f"SSIM needs images of 11 x 11 pixels or more, these are {tuple(truth.shape[-2:])}")
    if truth.ndim == 5 and truth.shape[2] < 11:
        guess, truth = (t.transpose(1, 2).flatten(1, 2) for t in (guess, truth))  # slices as channels
    with torch.no_grad():
        _, whole = structural_similarity_index_measure(
            guess.double(), truth.double(), sigma=1.5, reduction="none", data_range=data_range, return_full_image=True
        )
    # Scikit-image leaves the padded border out; torchmetrics' own mean counts it since its pull request 2721.
    inside = (..., *[slice(5, -5)] * (truth.ndim - 2))
    return whole[inside].flatten(1).mean(1)
