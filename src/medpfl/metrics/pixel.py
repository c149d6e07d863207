"""Pixel metrics for images (N, C, H, W) in [0, 1]. Their data range is 1."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from medpfl.core.errors import InputError
from medpfl.core.roles import metric
from medpfl.core.verdicts import SUCCESS

__all__ = ["SUCCESS", "mse", "ncc", "psnr", "ssim"]

_WINDOW, _SIGMA = 11, 1.5
"""SSIM's window: its side and its standard deviation, in pixels."""

_FLAT = 1e-9
"""Standard deviation of pixels in [0, 1] up to which an image counts as constant: rounding is not structure."""


@metric(unit="", leak="lower")
def mse(guess: Tensor, truth: Tensor) -> Tensor:
    """Compute the mean squared error over channels and pixels."""
    return (guess.double() - truth.double()).square().flatten(1).mean(1)


@metric(unit="dB", leak="higher")
def psnr(guess: Tensor, truth: Tensor) -> Tensor:
    """Compute the peak signal-to-noise ratio, -10 log10(MSE), at most 200 dB (an MSE below 1e-20 counts as 1e-20)."""
    return -10 * mse(guess, truth).clamp(min=1e-20).log10()


@metric(unit="", leak="higher")
def ncc(guess: Tensor, truth: Tensor) -> Tensor:
    """Compute the zero-normalized cross-correlation over all channels and pixels, in [-1, 1].

    This is normalized cross-correlation at shift zero (Lewis 1995, "Fast normalized cross-correlation", equation 2),
    also known as Pearson's correlation coefficient: each image loses its mean and is divided by its norm, then the
    products of pixels are summed. Brightness and contrast do not matter. If one of the images is constant, the
    correlation is undefined and counts as 0.
    """
    x, y = (t.double().flatten(1) for t in (guess, truth))
    x, y = (t - t.mean(1, keepdim=True) for t in (x, y))
    own, other = (t.norm(dim=1) for t in (x, y))
    flat = torch.minimum(own, other) <= _FLAT * x.shape[1] ** 0.5
    return torch.where(flat, 0.0, ((x * y).sum(1) / (own * other).clamp(min=1e-300)).clamp(-1, 1))


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
    return similarity_of(guess, data_range)(truth)


def similarity_of(guess: Tensor, data_range: float = 1.0) -> Callable[[Tensor], Tensor]:
    """Return SSIM of guesses as a function of the target images; what depends on the guesses alone is computed once."""
    if min(guess.shape[-2:]) < _WINDOW:
        raise InputError(f"SSIM needs images of 11 x 11 pixels or more, these are {tuple(guess.shape[-2:])}")
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    with torch.no_grad():
        x = _layered(guess)
        mean_x = _blurred(x)
        variance_x = (_blurred(x * x) - mean_x**2).clamp(min=0)

    def similarity(truth: Tensor) -> Tensor:
        with torch.no_grad():
            y = _layered(truth)
            mean_y = _blurred(y)
            variances = variance_x + (_blurred(y * y) - mean_y**2).clamp(min=0)
            covariance = _blurred(x * y) - mean_x * mean_y
            luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
            return (luminance * (2 * covariance + c2) / (variances + c2)).flatten(1).mean(1)

    return similarity


def _layered(images: Tensor) -> Tensor:
    """Return images in double precision, and volumes with fewer slices than the window with slices as channels."""
    thin = images.ndim == 5 and images.shape[2] < _WINDOW
    return (images.transpose(1, 2).flatten(1, 2) if thin else images).double()


def _blurred(images: Tensor) -> Tensor:
    """Return weighted means (N, C, ..., side - 10) over all whole windows.

    The window is a product of one-dimensional ones, so each axis is averaged on its own. A full window of 11 x 11 x 11
    voxels needs 40 times as many operations, and several GiB for a volume of 64 x 64 x 64 voxels.
    """
    place = torch.arange(_WINDOW, dtype=images.dtype) - _WINDOW // 2
    weights = torch.exp(-((place / _SIGMA) ** 2) / 2)
    for axis in range(2, images.ndim):
        count = images.shape[axis] - _WINDOW + 1
        mean = torch.zeros_like(images.narrow(axis, 0, count))
        for offset, weight in enumerate((weights / weights.sum()).tolist()):
            mean.add_(images.narrow(axis, offset, count), alpha=weight)
        images = mean
    return images
