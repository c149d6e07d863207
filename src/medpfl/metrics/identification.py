"""Re-identification: is a guess nearer to its own image than to all others?"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["distances", "identified", "nearest_other"]


def distances(images: Tensor, gallery: Tensor) -> Tensor:
    """Return mean squared errors (N, M) between images (N, C, H, W) and a gallery (M, C, H, W), both in [0, 1]."""
    a, b = images.flatten(1), gallery.flatten(1)
    # Explicit differences: the expanded square would lose the digits that tell near twins apart.
    rows = [(b - row).square().mean(1) for row in a]
    return torch.stack(rows) if rows else a.new_zeros(0, len(b))


def identified(distance: Tensor, own: Tensor, excluded: Tensor) -> Tensor:
    """Return True for each guess that is nearer to its own image than to every other image in the gallery.

    Args:
        distance: (N, M) from `distances`.
        own: (N,) gallery indices of the guesses' own images.
        excluded: (N, M) booleans, true for images to leave out of the comparison: others of the same patient.

    Returns:
        (N,) booleans; a tie is not a re-identification.
    """
    rows = torch.arange(len(own))
    others = distance.masked_fill(excluded, torch.inf)
    others[rows, own] = torch.inf
    return distance[rows, own] < others.min(1).values


def nearest_other(distance: Tensor, own: Tensor, excluded: Tensor) -> Tensor:
    """Return the index (N,) of each guess's nearest other gallery image, with the same exclusions."""
    others = distance.masked_fill(excluded, torch.inf)
    others[torch.arange(len(own)), own] = torch.inf
    return others.argmin(1)
