"""Does a guess point to its image among all the others?"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["distances", "identified", "nearest_other"]


def distances(images: Tensor, gallery: Tensor) -> Tensor:
    """(N, M) mean squared errors between images (N, C, H, W) and a gallery (M, C, H, W), both in [0, 1]."""
    a, b = images.flatten(1), gallery.flatten(1)
    # Explicit differences: the expanded square would lose the digits that tell near twins apart.
    rows = [(b - row).square().mean(1) for row in a]
    return torch.stack(rows) if rows else a.new_zeros(0, len(b))


def identified(distance: Tensor, own: Tensor, excluded: Tensor) -> Tensor:
    """Whether each guess is nearer to its own image than to any other one of the gallery.

    Args:
        distance: (N, M) from `distances`.
        own: (N,) indices of the guesses' own images in the gallery.
        excluded: (N, M) true where an image may not be compared with: another of the same patient.

    Returns:
        (N,) booleans; a tie is not an identification.
    """
    rows = torch.arange(len(own))
    others = distance.masked_fill(excluded, torch.inf)
    others[rows, own] = torch.inf
    return distance[rows, own] < others.min(1).values


def nearest_other(distance: Tensor, own: Tensor, excluded: Tensor) -> Tensor:
    """(N,) indices of the nearest other gallery image, under the same exclusions."""
    others = distance.masked_fill(excluded, torch.inf)
    others[torch.arange(len(own)), own] = torch.inf
    return others.argmin(1)
