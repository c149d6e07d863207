"""Metrics: pure functions of (guess, truth), one value per image. ``__all__`` is the registry."""

from medpfl.metrics.legacy import legacy_ssim_range0, legacy_ssim_range255
from medpfl.metrics.pixel import mse, ncc, psnr, ssim

__all__ = ["legacy_ssim_range0", "legacy_ssim_range255", "mse", "ncc", "psnr", "ssim"]
