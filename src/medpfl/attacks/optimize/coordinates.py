"""Coordinates in which images are optimized.

An optimizer that knows only gradients moves first where the objective is steep, and an update depends most on whatever
its layers happen to amplify. In coordinates scaled like natural images, it moves first where images have most of their
energy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from medpfl.core.errors import InputError
from medpfl.core.spec import Part

__all__ = ["Basis", "Blocks", "Pixels", "Spectral"]


@dataclass(frozen=True, repr=False)
class Basis(Part):
    """A linear map between coordinates and images (..., N, C, H, W) or (..., N, C, D, H, W)."""

    def images(self, coordinates: Tensor, axes: int) -> Tensor:
        """Return the images for the coordinates. The last `axes` axes are the channel and the pixels."""
        raise NotImplementedError

    def coordinates(self, images: Tensor, axes: int) -> Tensor:
        """Return the coordinates of the images.

        Where coordinates do not reach every image, return those of a nearby image.
        """
        raise NotImplementedError


@dataclass(frozen=True, repr=False)
class Pixels(Basis):
    """The pixels themselves."""

    def images(self, coordinates: Tensor, axes: int) -> Tensor:
        """Return the coordinates."""
        return coordinates

    def coordinates(self, images: Tensor, axes: int) -> Tensor:
        """Return the images."""
        return images


@dataclass(frozen=True, repr=False)
class Blocks(Basis):
    """Images at a lower resolution: block means, interpolated linearly between the block centers.

    Coordinates have the images' shape, so the result at one resolution can start the next. The coordinates within a
    block move as one. An image at a higher resolution is mapped to the nearest one at this resolution. Along an axis
    that `edge` does not divide, blocks are approximately that long.

    Attributes:
        edge: block edge in pixels.
    """

    edge: int = 2

    def __post_init__(self) -> None:
        if self.edge < 1:
            raise InputError(f"edge is {self.edge}: it must be at least 1")

    def images(self, coordinates: Tensor, axes: int) -> Tensor:
        """Return the interpolated block means."""
        return self._along(coordinates, axes, 0)

    def coordinates(self, images: Tensor, axes: int) -> Tensor:
        """Return the block values whose interpolation is nearest to the images.

        For images made from blocks, this is the inverse of `images`.
        """
        return self._along(images, axes, 1)

    def _along(self, values: Tensor, axes: int, way: int) -> Tensor:
        for axis in range(1 - axes, 0):
            matrix = _blocks(values.shape[axis], self.edge, values.dtype, values.device)[way]
            values = torch.movedim(torch.movedim(values, axis, -1) @ matrix.T, -1, axis)
        return values


@dataclass(frozen=True, repr=False)
class Spectral(Basis):
    """Orthonormal cosine transform over channels and pixels, scaled like the spectrum of natural images.

    The amplitude at frequency f (in half periods per image, Euclidean norm over axes) is
    ``(1 + f / corner) ** -exponent``: natural images have amplitudes of about 1 / f (Field 1987). For a color image,
    the transform over channels gives the brightness and two color differences, which are weaker.

    Attributes:
        exponent: decay exponent; 0: no scaling.
        corner: frequency at which the decay begins.
        color: amplitude for color differences relative to the brightness.
    """

    exponent: float = 1.0
    corner: float = 8.0
    color: float = 0.3

    def __post_init__(self) -> None:
        if not (self.corner > 0 and self.color > 0 and self.exponent >= 0):
            raise InputError("corner and color must be above 0, exponent at least 0")

    def images(self, coordinates: Tensor, axes: int) -> Tensor:
        """Return the pixels for scaled amplitudes."""
        return _transform(coordinates * self._scale(coordinates, axes), axes, inverse=True)

    def coordinates(self, images: Tensor, axes: int) -> Tensor:
        """Return the scaled amplitudes for pixels."""
        return _transform(images, axes, inverse=False) / self._scale(images, axes)

    def transposed(self, images: Tensor, axes: int) -> Tensor:
        """Apply the transpose of the linear map `images`."""
        return _transform(images, axes, inverse=False) * self._scale(images, axes)

    def _scale(self, like: Tensor, axes: int) -> Tensor:
        return _amplitudes(self, tuple(like.shape[-axes:]), like.dtype, like.device)


@lru_cache(maxsize=16)
def _amplitudes(basis: Spectral, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the amplitude (C, ...) of every coordinate."""
    grids = torch.meshgrid(*(torch.arange(edge, dtype=dtype) for edge in shape[1:]), indexing="ij")
    frequency = torch.stack(grids).square().sum(0).sqrt()
    colors = torch.full((shape[0], *[1] * (len(shape) - 1)), basis.color, dtype=dtype)
    colors[0] = 1
    return (colors * (1 + frequency / basis.corner) ** -basis.exponent).to(device)


@lru_cache(maxsize=16)
def _cosines(edge: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the orthonormal DCT-II matrix (edge, edge), with one frequency per row."""
    row, place = torch.arange(edge, dtype=torch.float64)[:, None], torch.arange(edge, dtype=torch.float64)
    matrix = torch.cos(math.pi * row * (place + 0.5) / edge) * math.sqrt(2 / edge)
    matrix[0] /= math.sqrt(2)
    return matrix.to(device, dtype)


@lru_cache(maxsize=32)
def _blocks(size: int, edge: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return two matrices (size, size): from coordinates to an image axis, and back."""
    count = max(size // edge, 1)
    means = functional.adaptive_avg_pool1d(torch.eye(size, dtype=torch.float64), count).T
    between = functional.interpolate(torch.eye(count, dtype=torch.float64)[None], size, mode="linear")[0].T
    back = torch.linalg.pinv(means) @ torch.linalg.pinv(between)
    return (between @ means).to(device, dtype), back.to(device, dtype)


def _transform(values: Tensor, axes: int, *, inverse: bool) -> Tensor:
    """Apply the transform along each of the last `axes` axes."""
    for axis in range(-axes, 0):
        matrix = _cosines(values.shape[axis], values.dtype, values.device)
        values = torch.movedim(torch.movedim(values, axis, -1) @ (matrix if inverse else matrix.T), -1, axis)
    return values
