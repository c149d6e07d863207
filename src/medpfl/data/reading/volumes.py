"""Reading of NIfTI and other files that nibabel supports, as volumes and slices in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from medpfl.core.atomic_files import oddity_of
from medpfl.data.reading.dicom_pixels import between_percentiles, quiet
from medpfl.data.reading.masks import MOST

__all__ = [
    "PLANES", "MisplacedError", "Plane", "Volume", "common_spacing", "is_mask_volume", "read_labels", "read_volume",
    "slice_of", "stack_of", "upright_shape", "volume",
]  # fmt: skip

Plane = Literal["sagittal", "coronal", "axial"]
PLANES = ("sagittal", "coronal", "axial")
"""Planes in the order of the axis (X, Y, Z) that they cut across."""
_LONGEST_AXIS = 2**15
_MOST_VOXELS = 2**31
_EXPANDED = 1100
"""Most bytes that one compressed byte can expand to with deflate."""
_APART = 0.1
"""Largest distance between the corners of an image and its mask, in voxels: affines are rounded."""


class Volume(NamedTuple):
    """An upright volume.

    Attributes:
        voxels: (X, Y, Z) float32 in [0, 1]; X grows to the patient's right, Y to the front, Z to the head.
        spacing: voxel size along these axes, in mm.
    """

    voxels: Tensor
    spacing: tuple[float, float, float]


class MisplacedError(ValueError):
    """Error for a mask that is not on its image's voxel grid. Its message continues after the image's name."""


def volume(path: str | PathLike[str]) -> Tensor:
    """Return a file's voxels (the first volume of a series); see `read_volume`."""
    return read_volume(path, 0).voxels


def read_volume(path: str | PathLike[str], frame: int | None = None) -> Volume:
    """Read a volume, turn it to right-anterior-superior, and window it between its 1st and 99th percentiles.

    Args:
        path: path of the file.
        frame: index of the volume in a series; ``None`` if the file must hold one volume.

    Raises:
        ValueError: the file's shape, affine or values are invalid; the message says what to do.
        Exception: any error from nibabel for a file that it cannot read.
    """
    import nibabel

    with quiet():
        upright: Any = nibabel.as_closest_canonical(_checked(path, frame))  # type: ignore[attr-defined]  (untyped)
        values = np.asarray(upright.dataobj)
    if values.dtype.names or np.iscomplexobj(values):
        raise ValueError("its voxels are colors or complex numbers: save one number per voxel")
    values = values.reshape(*values.shape[:3], -1)[..., frame or 0]
    if not np.isfinite(values).all():
        raise ValueError("holds voxels that are not finite (NaN): replace them, for example with numpy.nan_to_num")
    right, front, head = np.linalg.norm(upright.affine[:3, :3], axis=0).tolist()
    return Volume(torch.from_numpy(between_percentiles(values)), (right, front, head))


def read_labels(path: str | PathLike[str], image: str | PathLike[str], frame: int | None = None) -> np.ndarray:
    """Return a volume's mask, turned like its image by `read_volume`; (X, Y, Z) int64.

    Args:
        path: path of the mask.
        image: path of the image.
        frame: index of the volume in the image's file.

    Raises:
        MisplacedError: image and mask do not have the same voxel grid.
        ValueError: the mask's shape, affine or values are invalid.
        Exception: any error from nibabel for a file that it cannot read.
    """
    import nibabel

    with quiet():
        own, other = _checked(path, None), _checked(image, frame)
        _check_places(own, other)
        upright: Any = nibabel.as_closest_canonical(own)  # type: ignore[attr-defined]  (untyped)
        values = np.asarray(upright.dataobj)
    values = values.reshape(values.shape[:3])
    if values.dtype.kind not in "uibf" or not (np.isfinite(values).all() and (values == values.round()).all()):
        raise ValueError("its mask holds values that are not integers: save one class per voxel, not probabilities")
    if values.min() < 0:
        raise ValueError(f"its mask holds the value {values.min():g}: classes are 0 or more")
    return values.astype(np.int64)


def is_mask_volume(path: str | PathLike[str]) -> bool:
    """Return True if a file holds only a few integer values, as masks do; False if it cannot be read.

    Call it within `medpfl.data.reading.dicom_pixels.quiet`.
    """
    try:
        values = np.asarray(_checked(path, None).dataobj)
        return values.dtype.kind in "uibf" and len(kinds := np.unique(values)) <= MOST and bool((kinds % 1 == 0).all())
    except Exception:  # a broken file makes nibabel raise almost anything; reading it will say why
        return False


def _check_places(mask: Any, image: Any) -> None:
    """Check that image and mask have the same voxel grid, however they are stored.

    Raises:
        MisplacedError: they do not.
    """
    (shape, affine), (own_shape, own_affine) = map(_grid, (image, mask))
    if shape != own_shape:
        raise MisplacedError(f"has {_sides(shape)} voxels, its mask {_sides(own_shape)}: resample the mask")
    corners = np.array([[x, y, z, 1] for x in (0, shape[0]) for y in (0, shape[1]) for z in (0, shape[2])]).T
    apart = np.linalg.norm((affine - own_affine) @ corners, axis=0).max()
    if apart > _APART * np.linalg.norm(affine[:3, :3], axis=0).min():
        raise MisplacedError(
            f"and its mask lie up to {apart:.3g} mm apart, according to their affines: resample the mask to the image, "
            "or copy the image's affine to it if it was drawn on the same voxels"
        )


def _grid(image: Any) -> tuple[tuple[int, ...], np.ndarray]:
    """Return shape and affine after turning upright, from the header alone."""
    from nibabel.orientations import inv_ornt_aff, io_orientation

    turn: Any = io_orientation(image.affine)
    shape = tuple(image.shape[turn[:, 0].tolist().index(axis)] for axis in range(3))
    return shape, image.affine @ inv_ornt_aff(turn, image.shape[:3])


def _sides(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def upright_shape(path: str | PathLike[str], frame: int | None = None) -> tuple[int, ...]:
    """Return the shape of the volume that `read_volume` would read, from the header alone; raise the same errors."""
    with quiet():
        return _grid(_checked(path, frame))[0]


def _checked(path: str | PathLike[str], frame: int | None) -> Any:
    """Return the file with its header checked and its voxels not yet read."""
    import nibabel

    if why := oddity_of(Path(path)):
        raise ValueError(why)
    if not (size := Path(path).stat().st_size):
        raise ValueError("empty file")
    image: Any = nibabel.load(path)  # type: ignore[attr-defined]  (untyped)
    shape, affine = image.shape, getattr(image, "affine", None)
    if affine is None:
        raise ValueError("holds no volume")
    if 0 in shape or len(shape) < 3:
        raise ValueError(f"has shape {shape}: expected a volume with three axes")
    if max(shape[:3]) > _LONGEST_AXIS:
        raise ValueError(f"damaged header (shape {shape})")
    needed = math.prod(shape) * image.get_data_dtype().itemsize
    if math.prod(shape) > _MOST_VOXELS or needed > size * _EXPANDED:
        raise ValueError(f"damaged header, or truncated (shape {shape})")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < np.finfo(np.float32).tiny:
        raise ValueError("its affine has no inverse, so its orientation is unknown: save it with a correct affine")
    frames = math.prod(shape[3:])
    if frame is None and frames > 1:
        raise ValueError(f"holds a series of {frames} volumes: choose one with frame=0 to frame={frames - 1}")
    if frame is not None and frame >= frames:
        raise ValueError(f"holds {frames} volume(s), so frame={frame} does not exist: frames count from 0")
    return image


def slice_of(whole: Volume, plane: str, position: int) -> tuple[Tensor, tuple[float, float]]:
    """Return a slice with the head or face at the top, and its pixels' height and width in mm.

    The patient's right is on the right (neurological convention); in a sagittal slice, the face is.

    Returns:
        (1, H, W) float32 in [0, 1], and (height, width).
    """
    axis = PLANES.index(plane)
    across, up = (step for i, step in enumerate(whole.spacing) if i != axis)
    return whole.voxels.select(axis, position).rot90()[None], (up, across)


def stack_of(whole: Volume) -> tuple[Tensor, tuple[float, float, float]]:
    """Return the axial slices from the feet upward, each turned like in `slice_of`.

    Returns:
        (1, D, H, W) float32 in [0, 1], and the voxel size along D, H and W in mm.
    """
    right, front, head = whole.spacing
    return whole.voxels.permute(2, 1, 0).flip(1)[None], (head, front, right)


def common_spacing(spacings: Sequence[tuple[float, ...] | None]) -> tuple[float, float, float] | None:
    """Return the mean voxel size if it is known for all volumes and the same to within 1 %; else None."""
    known = [spacing for spacing in spacings if spacing is not None]
    if len(known) < len(spacings):
        return None
    table = torch.tensor(known)
    depth, height, width = table.mean(0).tolist()
    alike = ((table / table.mean(0) - 1).abs() < 0.01).all()
    return (depth, height, width) if alike else None
