"""Pairing of guesses with target images, because the update does not show the order in a batch."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["pair"]


def pair(guesses: Tensor, truths: Tensor) -> Tensor:
    """Return the optimal assignment from guesses to target images by mean squared error, for one batch.

    Args:
        guesses: (N, C, H, W); values that are not finite count as 0.
        truths: (N, C, H, W).

    Returns:
        (N,) indices: ``guesses[pair(guesses, truths)][i]`` is the guess for ``truths[i]``.
    """
    if len(guesses) == 1:
        return torch.zeros(1, dtype=torch.long)
    from scipy.optimize import linear_sum_assignment  # slow to import

    flat = guesses.nan_to_num(0.0, 0.0, 0.0).clamp(0, 1).flatten(1).double()
    distance = torch.cdist(truths.flatten(1).double(), flat).square()
    _, columns = linear_sum_assignment(distance.cpu().numpy())
    return torch.as_tensor(columns)
