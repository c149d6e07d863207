"""Scores as the paper's released notebooks computed them, only for comparison with old figures.

Both call SSIM with a data range that does not fit the pixels. SSIM's constants C1 and C2 then vanish (range 0) or
swamp the image (range 255); with the latter, pure noise scores about 0.75.
"""

from __future__ import annotations

import torch
from torch import Tensor

from medpfl.core.roles import metric
from medpfl.metrics.pixel import structural_similarity

__all__ = ["legacy_ssim_range0", "legacy_ssim_range255"]

_MEAN = torch.tensor([0.4914, 0.4822, 0.4465])
_DEVIATION = torch.tensor([0.2023, 0.1994, 0.2010])


@metric(unit="", leak="higher", data_range=0.0, legacy=True)
def legacy_ssim_range0(guess: Tensor, truth: Tensor) -> Tensor:
    """Compute SSIM with data range 0 (no stabilizing constants), as notebooks for CPL, iDLG and most defenses do."""
    # The library divides by zero where both windows are flat; a tiny range gives the limit instead.
    return structural_similarity(guess, truth, data_range=1e-6)


@metric(unit="", leak="higher", data_range=255.0, legacy=True)
def legacy_ssim_range255(guess: Tensor, truth: Tensor) -> Tensor:
    """Compute SSIM with data range 255 on pixels normalized by CIFAR-10's moments, as notebooks for GradInv do."""
    mean, deviation = (t[: truth.shape[1]].view(-1, 1, 1).to(truth) for t in (_MEAN, _DEVIATION))
    return structural_similarity((guess - mean) / deviation, (truth - mean) / deviation, data_range=255.0)
