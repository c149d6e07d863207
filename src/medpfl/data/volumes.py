"""NIfTI files, and what else nibabel reads, to volumes and slices in [0, 1]."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from medpfl.data.viewer import between_percentiles, quiet

__all__ = ["PLANES", "Plane", "Volume", "read_volume", "slice_of", "stack_of", "upright_shape", "volume"]

Plane = Literal["sagittal", "coronal", "axial"]
PLANES = ("sagittal", "coronal", "axial")
"""By the axis (X, Y, Z) that they cut across."""
_LONGEST_AXIS = 2**15


class Volume(NamedTuple):
    """A volume, turned upright.

    Attributes:
        voxels: (X, Y, Z) float32 in [0, 1]; X grows to the patient's right, Y to the front, Z to the head.
        spacing: of the voxels along these axes, in mm.
    """

    voxels: Tensor
    spacing: tuple[float, float, float]


def volume(path: str | PathLike[str]) -> Tensor:
    """The voxels of a file (of a series the first); see `read_volume`."""
    return read_volume(path, 0).voxels


def read_volume(path: str | PathLike[str], frame: int | None = None) -> Volume:
    """A volume, turned to right, anterior, superior and windowed between its 1st and 99th percentile.

    Args:
        path: of the file.
        frame: which volume of a series to take; ``None``: the file must hold one.

    Raises:
        ValueError: what is wrong with the file's shape, affine or values, and what to do.
        Exception: whatever nibabel raises for what it cannot read.
    """
    import nibabel

    with quiet():
        upright: Any = nibabel.as_closest_canonical(_checked(path, frame))  # type: ignore[attr-defined]
        values = np.asarray(upright.dataobj)
    if values.dtype.names or np.iscomplexobj(values):
        raise ValueError("its voxels are colors or complex numbers: save one number a voxel")
    values = values.reshape(*values.shape[:3], -1)[..., frame or 0]
    if not np.isfinite(values).all():
        raise ValueError("holds voxels that are not finite (NaN): replace them, as numpy.nan_to_num does")
    right, front, head = np.linalg.norm(upright.affine[:3, :3], axis=0).tolist()
    return Volume(torch.from_numpy(between_percentiles(values)), (right, front, head))


def upright_shape(path: str | PathLike[str], frame: int | None = None) -> tuple[int, ...]:
    """Of what `read_volume` reads, by the header alone; raises as it does."""
    import nibabel

    with quiet():
        image = _checked(path, frame)
        axes = nibabel.io_orientation(image.affine)[:, 0].tolist()  # type: ignore[attr-defined]
    return tuple(image.shape[axes.index(axis)] for axis in range(3))


def _checked(path: str | PathLike[str], frame: int | None) -> Any:
    """The file, its voxels not read yet."""
    import nibabel

    if not Path(path).stat().st_size:
        raise ValueError("empty file")
    image: Any = nibabel.load(path)  # type: ignore[attr-defined]
    shape, affine = image.shape, getattr(image, "affine", None)
    if affine is None:
        raise ValueError("holds no volume")
    if 0 in shape or len(shape) < 3:
        raise ValueError(f"has shape {shape}: a volume with three axes is needed")
    if max(shape[:3]) > _LONGEST_AXIS:
        raise ValueError(f"damaged header (shape {shape})")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < np.finfo(np.float32).tiny:
        raise ValueError("its affine has no inverse, so which way is up is unknown: save it with a right affine")
    frames = int(np.prod(shape[3:]))
    if frame is None and frames > 1:
        raise ValueError(f"holds a series of {frames} volumes: choose one with frame=0 to frame={frames - 1}")
    if frame is not None and frame >= frames:
        raise ValueError(f"holds {frames} volume(s): frame={frame} is not one of them, they count from 0")
    return image


def slice_of(whole: Volume, plane: str, position: int) -> tuple[Tensor, tuple[float, float]]:
    """A slice with the head or the face upwards, and the height and width of its pixels in mm.

    The patient's right is on the right (as neurologists look), and in a sagittal slice the face.

    Returns:
        (1, H, W) float32 in [0, 1], and (height, width).
    """
    axis = PLANES.index(plane)
    across, up = (step for i, step in enumerate(whole.spacing) if i != axis)
    return whole.voxels.select(axis, position).rot90()[None], (up, across)


def stack_of(whole: Volume) -> tuple[Tensor, tuple[float, float, float]]:
    """The axial slices from the feet upwards, each as `slice_of` turns it.

    Returns:
        (1, D, H, W) float32 in [0, 1], and the size of a voxel along D, H and W in mm.
    """
    right, front, head = whole.spacing
    return whole.voxels.permute(2, 1, 0).flip(1)[None], (head, front, right)
