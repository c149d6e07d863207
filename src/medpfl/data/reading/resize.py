"""Any picture to the size and the number of channels that a model takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate

__all__ = ["Fit", "fitted", "fitted_volume", "stacked"]

Fit = Literal["crop", "squash"]
"""How a picture becomes a square: its middle is cut out, or both sides are scaled."""

_LUMA = (0.299, 0.587, 0.114)
_LONGEST = 8


def fitted(image: Tensor, size: int, fit: str = "crop", spacing: tuple[float, float] = (1, 1)) -> Tensor:
    """The picture as a square, with antialiasing.

    Args:
        image: (C, H, W) in [0, 1].
        size: of both sides of the result.
        fit: ``"crop"`` scales the shorter side to `size` and cuts out the middle; ``"squash"`` scales
            both sides, whatever the proportions.
        spacing: height and width of a pixel, in any unit: after ``"crop"``, pixels are square.

    Returns:
        (C, size, size) in [0, 1].
    """
    if fit == "squash":
        return _scaled(image, size, size)
    sides = [side * step for side, step in zip(image.shape[-2:], spacing, strict=True)]
    shorter = min(sides)
    # A strip of one pixel by millions would be scaled up to a picture that fits no memory: what the
    # middle cannot hold goes first.
    most = [max(1, _whole(_LONGEST * shorter / step)) for step in spacing]
    image = _middle(image, *map(min, image.shape[-2:], most))
    sides = [side * step for side, step in zip(image.shape[-2:], spacing, strict=True)]
    height, width = (_length(size, side, shorter) for side in sides)
    return _middle(_scaled(image, height, width), size, size)


def _length(size: int, side: float, shorter: float) -> int:
    """Of a side after scaling; one pixel may be many times as tall as wide."""
    return min(max(size, _whole(size * side / shorter)), _LONGEST * size)


def _whole(length: float) -> int:
    """Rounded down, but for what the unit of a spacing has rounded off: 47.9999999 is 48."""
    return int(length + 1e-6)


def _scaled(image: Tensor, height: int, width: int) -> Tensor:
    if image.shape[-2:] == (height, width):
        return image
    # The call that torchvision's resize makes; importing torchvision would add a second to every start.
    scaled = interpolate(image[None], (height, width), mode="bilinear", align_corners=False, antialias=True)
    return scaled[0].clamp(0, 1)


def fitted_volume(
    volume: Tensor, size: int, fit: str = "crop", spacing: tuple[float, float, float] = (1, 1, 1)
) -> tuple[Tensor, tuple[float, float, float]]:
    """A volume as a cube, with antialiasing.

    Args:
        volume: (C, D, H, W) in [0, 1].
        size: of all sides of the result.
        fit: ``"crop"`` makes voxels cubic, scales the shortest side to `size` and cuts out the middle;
            ``"squash"`` scales all sides, whatever the proportions.
        spacing: of the voxels along D, H and W.

    Returns:
        (C, size, size, size) in [0, 1], and the spacing of its voxels.
    """
    sides = [side * step for side, step in zip(volume.shape[1:], spacing, strict=True)]
    if fit == "squash":
        depth, height, width = (side / size for side in sides)
        return _scaled_volume(volume, size, size, size), (depth, height, width)
    shorter = min(sides)
    most = [max(1, _whole(_LONGEST * shorter / step)) for step in spacing]
    volume = _middle(volume, *map(min, volume.shape[1:], most))
    sides = [side * step for side, step in zip(volume.shape[1:], spacing, strict=True)]
    scaled = _scaled_volume(volume, *(_length(size, side, shorter) for side in sides))
    edge = shorter / size
    return _middle(scaled, size, size, size), (edge, edge, edge)


def _scaled_volume(volume: Tensor, depth: int, height: int, width: int) -> Tensor:
    """Slice by slice first, then along the depth: antialiasing is there for pictures only."""
    slices = torch.stack([_scaled(part, height, width) for part in volume.unbind(1)], 1)
    return _scaled(slices.flatten(2), depth, height * width).unflatten(2, (height, width))


def _middle(image: Tensor, *sides: int) -> Tensor:
    """The middle of the last axes."""
    for axis, want in enumerate(sides, 1):
        image = image.narrow(axis, round((image.shape[axis] - want) / 2), want)
    return image


def stacked(images: Sequence[Tensor], channels: int | None = None) -> Tensor:
    """One tensor of gray and color pictures.

    Args:
        images: M of (1, H, W) or (3, H, W), at least one.
        channels: 1, 3, or ``None``: 1 if all are gray, else 3. Gray is repeated to RGB, and RGB is
            weighted to gray (ITU-R 601 luma, as Pillow does). Volumes (1, D, H, W) too.

    Returns:
        (M, channels, H, W).
    """
    channels = channels or max(len(image) for image in images)
    return torch.stack([_with_channels(image, channels) for image in images])


def _with_channels(image: Tensor, channels: int) -> Tensor:
    if len(image) == channels:
        return image
    if channels == 3:
        return image.expand(3, *image.shape[1:])
    return torch.tensordot(torch.tensor(_LUMA), image, dims=1)[None].clamp(0, 1)
