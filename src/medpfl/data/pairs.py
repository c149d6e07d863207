"""Images and their masks as files: which belong together, and what they hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from medpfl.core.errors import InputError, listed
from medpfl.data import dicom_files, nifti
from medpfl.data.decode import decode
from medpfl.data.dicom_files import is_dicom, list_dicom
from medpfl.data.listing import files_in, is_image, printable
from medpfl.data.masks import read_mask
from medpfl.data.viewer import dicom_frames
from medpfl.data.volumes import PLANES, Volume, read_labels, read_volume, slice_of, stack_of, upright_shape

__all__ = ["IMAGES", "MASKS", "Pair", "is_volume", "owner_of", "paired", "places_in", "read_pairs"]

IMAGES, MASKS = "images", "masks"
_ENDINGS = ("", "_mask", "_segmentation", "_seg")


class Pair(NamedTuple):
    """An image and its mask.

    Attributes:
        pixels: (C, H, W) or (C, D, H, W) float32 in [0, 1].
        mask: (H, W) or (D, H, W), the values as stored.
        spacing: of a pixel or voxel along these axes, in any unit.
    """

    pixels: Tensor
    mask: np.ndarray
    spacing: tuple[float, ...]


def paired(root: Path) -> dict[Path, Path]:
    """The mask of each image in the folders ``images`` and ``masks``.

    Raises:
        InputError: there is no image, or one without a mask of its name and kind.
    """
    images = [file for file in files_in(root / IMAGES, {}) if is_image(file.name) or is_volume(file) or _dicom(file)]
    masks = [file for file in files_in(root / MASKS, {}) if is_image(file.name) or is_volume(file)]
    by_name = {_name(file, root / MASKS): file for file in masks}
    found = {}
    for image in images:
        name = _name(image, root / IMAGES)
        found[image] = next((by_name[name + ending] for ending in _ENDINGS if name + ending in by_name), None)
    if not found:
        raise InputError(f"no picture, NIfTI volume or DICOM file in '{root / IMAGES}'")
    if missing := [printable(image.relative_to(root)) for image, mask in found.items() if mask is None]:
        raise InputError(f"{len(missing)} image(s) have no mask of the same name in '{root / MASKS}':{listed(missing)}")
    pairs = {image: mask for image, mask in found.items() if mask is not None}
    if odd := [printable(i.relative_to(root)) for i, m in pairs.items() if is_volume(i) != is_volume(m)]:
        raise InputError(
            f"{len(odd)} image(s) and their masks are of two kinds, a volume and a picture:{listed(odd)}\n"
            "give NIfTI masks to NIfTI images, and pictures to pictures and DICOM files"
        )
    return pairs


def is_volume(file: Path) -> bool:
    """Whether a file is named as NIfTI."""
    return file.name.lower().endswith(nifti.SUFFIXES)


def _dicom(file: Path) -> bool:
    return file.suffix.lower() in dicom_files.SUFFIXES or is_dicom(file)


def _name(file: Path, root: Path) -> str:
    """Relative to the folder, without what tells the kind; DICOM files are often named by numbers with dots."""
    name = file.relative_to(root).as_posix()
    known = (*nifti.SUFFIXES, file.suffix) if is_image(file.name) or is_volume(file) else dicom_files.SUFFIXES
    return next((name[: -len(end)] for end in sorted(known, key=len)[::-1] if name.lower().endswith(end.lower())), name)


def places_in(image: Path, plane: str, frame: int | None) -> Sequence[int | None]:
    """The slices of a volume, by their headers alone; ``None`` for what is one image.

    Raises:
        Exception: whatever is wrong with the file.
    """
    if not is_volume(image):
        return (None,)
    shape = upright_shape(image, frame)
    return (None,) if plane == "volume" else range(shape[PLANES.index(plane)])


def owner_of(image: Path, name: str) -> str | None:
    """Whom an image is of, where the file says so: a DICOM header, the folder ``sub-...`` or the file of a volume."""
    if is_volume(image):
        return nifti.subject(name)
    files = [] if is_image(image.name) else list_dicom(image)[1]
    return files[0].place.patient if files else None


def read_pairs(
    image: Path, mask: Path, places: Sequence[int | None], plane: str, frame: int | None
) -> Mapping[int | None, Pair]:
    """The images at some places of a file with their masks; slices of one value are left out.

    Raises:
        MisplacedError: a volume and its mask are not of the same voxels.
        Exception: whatever is wrong with one of the files.
    """
    if is_volume(image):
        return _of_volume(image, mask, places, plane, frame)
    shown, spacing = (decode(image), (1.0, 1.0)) if is_image(image.name) else _of_dicom(image)
    return {None: Pair(shown, read_mask(mask), spacing)}


def _of_dicom(path: Path) -> tuple[Tensor, tuple[float, float]]:
    _, files, unread = list_dicom(path)
    if not files:
        raise ValueError(next(iter(unread.values()), "is no DICOM image"))
    if files[0].frames > 1:
        raise ValueError(f"holds {files[0].frames} frames, and its mask is of one: save each as a file")
    return dicom_frames(path, [0])[0]


def _of_volume(
    image: Path, mask: Path, places: Sequence[int | None], plane: str, frame: int | None
) -> Mapping[int | None, Pair]:
    whole, labels = read_volume(image, frame), read_labels(mask, image, frame)
    both: Any = whole, Volume(torch.from_numpy(labels), whole.spacing)
    found: dict[int | None, Pair] = {}
    for place in places:
        cuts = [stack_of(part) if place is None else slice_of(part, plane, place) for part in both]
        (pixels, spacing), (own, _) = cuts
        if place is None or pixels.min() < pixels.max():
            found[place] = Pair(pixels, own[0].numpy(), spacing)
    return found
