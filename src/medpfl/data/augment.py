"""Random augmentation that imitates another patient position, exposure or scanner."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["augmented"]

_SHIFT, _TURN = 0.08, math.radians(8)
"""Largest shift, as a fraction of a side, and largest rotation, both in either direction."""
_ZOOM, _CONTRAST, _GAMMA = 1.1, 1.3, 1.3
"""Largest factors. The smallest are their inverses."""
_BRIGHTNESS, _SHARPNESS = 0.2, 0.5
_POOLS = {2: functional.avg_pool2d, 3: functional.avg_pool3d}


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Change each image at random: position, sharpness, contrast, brightness and gamma.

    An image is shifted (up to 8 % of a side), rotated (8 degrees) and zoomed (by a factor of up to 1.1), with edge
    pixels repeated beyond the border. It is then moved up to half the way to its 3-pixel local mean, or away from it,
    and its contrast (factor 1.3), brightness (0.2) and gamma (1.3) change. Factors lie between 1/f and f.

    Args:
        images: (N, C, H, W), or volumes (N, C, D, H, W), which rotate within their slices; in [0, 1].
        generator: random generator on the CPU, like the images.

    Returns:
        Images of the same shape, in [0, 1].
    """
    axes = images.ndim - 2

    def even() -> Tensor:
        """Return one random value in [-1, 1] per image."""
        return (2 * torch.rand(len(images), generator=generator) - 1).view(-1, *[1] * (axes + 1))

    moves = _moves(torch.cat([even().flatten(1) for _ in range(axes)], 1), even().flatten(), even().flatten())
    grid = functional.affine_grid(moves, list(images.shape), align_corners=False)
    moved = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    smooth = _POOLS[axes](moved, 3, stride=1, padding=1, count_include_pad=False)
    moved = moved + _SHARPNESS * even() * (smooth - moved)
    mean = moved.flatten(1).mean(1).view(-1, *[1] * (axes + 1))
    shaded = mean + (moved - mean) * _CONTRAST ** even() + _BRIGHTNESS * even()
    return shaded.clamp(0, 1) ** (_GAMMA ** even())


def _moves(shifts: Tensor, turns: Tensor, zooms: Tensor) -> Tensor:
    """Return affine maps (N, axes, axes + 1) from output to input coordinates, both in [-1, 1]."""
    turns, zooms = _TURN * turns, _ZOOM**zooms
    whole = torch.diag_embed(zooms[:, None].expand_as(shifts)).clone()
    cosine, sine = zooms * turns.cos(), zooms * turns.sin()
    whole[:, 0, 0], whole[:, 0, 1], whole[:, 1, 0], whole[:, 1, 1] = cosine, -sine, sine, cosine
    return torch.cat([whole, 2 * _SHIFT * shifts[..., None]], 2)  # [-1, 1] is two units wide
