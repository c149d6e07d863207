"""Conversion of images to the size and number of channels that a model takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate

__all__ = ["Fit", "fitted", "fitted_volume", "stacked", "with_channels"]

Fit = Literal["crop", "squash"]
"""Way to make an image square: cut out its middle, or scale both sides."""

_LUMA = (0.299, 0.587, 0.114)
_LONGEST = 8


def fitted(image: Tensor, size: int, fit: str = "crop", spacing: tuple[float, float] = (1, 1)) -> Tensor:
    """Return the image as a square, resized with antialiasing.

    Args:
        image: (C, H, W) in [0, 1].
        size: side length of the result.
        fit: ``"crop"`` scales the shorter side to `size` and cuts out the middle; ``"squash"`` scales both sides
            and ignores the aspect ratio.
        spacing: height and width of a pixel, in any unit; after ``"crop"``, pixels are square.

    Returns:
        (C, size, size) in [0, 1].
    """
    if fit == "squash":
        return _scaled(image, size, size)
    sides = [side * step for side, step in zip(image.shape[-2:], spacing, strict=True)]
    shorter = min(sides)
    # Scaling a strip of one by millions of pixels would exhaust memory, so first cut off what the middle
    # cannot hold.
    most = [max(1, _whole(_LONGEST * shorter / step)) for step in spacing]
    image = _middle(image, *map(min, image.shape[-2:], most))
    sides = [side * step for side, step in zip(image.shape[-2:], spacing, strict=True)]
    height, width = (_length(size, side, shorter) for side in sides)
    return _middle(_scaled(image, height, width), size, size)


def _length(size: int, side: float, shorter: float) -> int:
    """Return a side's length after scaling, limited because a pixel may be many times as tall as it is wide."""
    return min(max(size, _whole(size * side / shorter)), _LONGEST * size)


def _whole(length: float) -> int:
    """Round down, but forgive a spacing's rounding errors: 47.9999999 becomes 48."""
    return int(length + 1e-6)


def _scaled(image: Tensor, height: int, width: int) -> Tensor:
    if image.shape[-2:] == (height, width):
        return image
    # Same call as in torchvision's resize; importing torchvision would add a second to every start.
    scaled = interpolate(image[None], (height, width), mode="bilinear", align_corners=False, antialias=True)
    return scaled[0].clamp(0, 1)


def fitted_volume(
    volume: Tensor, size: int, fit: str = "crop", spacing: tuple[float, float, float] = (1, 1, 1)
) -> tuple[Tensor, tuple[float, float, float]]:
    """Return a volume as a cube, resized with antialiasing.

    Args:
        volume: (C, D, H, W) in [0, 1].
        size: side length of the result.
        fit: ``"crop"`` makes voxels cubic, scales the shortest side to `size` and cuts out the middle;
            ``"squash"`` scales all sides and ignores the aspect ratio.
        spacing: voxel size along D, H and W.

    Returns:
        (C, size, size, size) in [0, 1], and its voxel size.
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
    """Scale each slice, then the depth: torch antialiases only 2D images."""
    slices = torch.stack([_scaled(part, height, width) for part in volume.unbind(1)], 1)
    return _scaled(slices.flatten(2), depth, height * width).unflatten(2, (height, width))


def _middle(image: Tensor, *sides: int) -> Tensor:
    """Return the middle of the image, cut to `sides` along the axes after the channels."""
    for axis, want in enumerate(sides, 1):
        image = image.narrow(axis, round((image.shape[axis] - want) / 2), want)
    return image


def stacked(images: Sequence[Tensor], channels: int | None = None) -> Tensor:
    """Stack gray and color images into one tensor.

    Args:
        images: M images (1, H, W) or (3, H, W), or volumes (1, D, H, W); at least one.
        channels: 1, 3, or ``None``: 1 if all are gray, else 3. Gray is repeated to RGB; RGB is weighted to gray
            (ITU-R 601 luma, like Pillow).

    Returns:
        (M, channels, H, W), or (M, channels, D, H, W) for volumes.
    """
    channels = channels or max(len(image) for image in images)
    return torch.stack([with_channels(image, channels) for image in images])


def with_channels(image: Tensor, channels: int) -> Tensor:
    """Return one image or volume with `channels` channels, as in `stacked`."""
    if len(image) == channels:
        return image
    if channels == 3:
        return image.expand(3, *image.shape[1:])
    return torch.tensordot(torch.tensor(_LUMA), image, dims=1)[None].clamp(0, 1)
