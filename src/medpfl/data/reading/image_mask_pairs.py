"""Matching of image files with mask files, and reading of both."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from medpfl.core.errors import InputError, listed
from medpfl.core.messages import counted
from medpfl.data import nifti
from medpfl.data.reading import dicom_headers
from medpfl.data.reading.decode import decode
from medpfl.data.reading.dicom_headers import is_dicom, list_dicom
from medpfl.data.reading.dicom_pixels import dicom_frames
from medpfl.data.reading.formats import of_other_formats
from medpfl.data.reading.listing import files_in, is_image, printable
from medpfl.data.reading.masks import read_mask
from medpfl.data.reading.volumes import PLANES, Volume, read_labels, read_volume, slice_of, stack_of, upright_shape

__all__ = [
    "IMAGES",
    "MASKS",
    "Pair",
    "Paired",
    "case_of",
    "folders_of",
    "is_volume",
    "owner_of",
    "paired",
    "places_in",
    "read_pairs",
]

IMAGES, MASKS = "images", "masks"
_LAYOUTS = ((IMAGES, MASKS), ("imagesTr", "labelsTr"))
"""Names of the image and mask folders: MedPFL's own, and those of the Medical Segmentation Decathlon and nnU-Net."""
_CHANNEL = re.compile(r"_\d{4}(?=$|\.nii(\.gz)?$)")  # the channel suffix of an nnU-Net image
_ENDINGS = ("", "_mask", "_segmentation", "_seg")


class Pair(NamedTuple):
    """An image and its mask.

    Attributes:
        pixels: (C, H, W) or (C, D, H, W) float32 in [0, 1].
        mask: (H, W) or (D, H, W), values as stored.
        spacing: pixel or voxel size along these axes, in any unit.
    """

    pixels: Tensor
    mask: np.ndarray
    spacing: tuple[float, ...]


class Paired(NamedTuple):
    """Images with their masks.

    Attributes:
        masks: the mask file of each image file.
        notes: descriptions of what was left out, without file names.
    """

    masks: dict[Path, Path]
    notes: tuple[str, ...]


def folders_of(root: Path) -> tuple[Path, Path] | None:
    """Return the image folder and the mask folder, or None if they do not exist."""
    both = ((root / images, root / masks) for images, masks in _LAYOUTS)
    return next(((images, masks) for images, masks in both if images.is_dir() and masks.is_dir()), None)


def paired(images: Path, masks: Path, unread: dict[Path, str]) -> Paired:
    """Return the mask of each image in a folder.

    Args:
        images: the image folder.
        masks: the mask folder, beside it.
        unread: receives the folders that could not be searched, with the reason.

    Raises:
        InputError: there is no image, or an image has no mask with the same name and kind.
    """
    all_images, all_masks = files_in(images, unread), files_in(masks, unread)
    by_name = {_name(file, masks): file for file in all_masks if _is_picture(file) or is_volume(file)}
    found = {}
    for image in filter(_is_image, all_images):
        name = _name(image, images)
        names = *(name + ending for ending in _ENDINGS), case_of(name, images)
        found[image] = next((by_name[own] for own in names if own in by_name), None)
    if not found:
        raise InputError(f"no picture, NIfTI volume or DICOM file in '{images}'")
    if missing := [printable(image.relative_to(images)) for image, mask in found.items() if mask is None]:
        raise InputError(f"{len(missing)} image(s) have no mask with the same name in '{masks}':{listed(missing)}")
    pairs = {image: mask for image, mask in found.items() if mask is not None}
    if odd := [printable(i.relative_to(images)) for i, m in pairs.items() if is_volume(i) != is_volume(m)]:
        raise InputError(
            f"{len(odd)} image(s) are volumes and their masks pictures, or the reverse:{listed(odd)}\n"
            "use NIfTI masks for NIfTI images, and picture masks for pictures and DICOM files"
        )
    return Paired(pairs, _notes(images.parent, all_images, all_masks, len(by_name) - len({*pairs.values()})))


def case_of(name: str, images: Path) -> str:
    """Return an image's name without the channel suffix that nnU-Net adds: all channels show one patient."""
    return name if images.name == IMAGES else _CHANNEL.sub("", name)


def _notes(root: Path, images: Sequence[Path], masks: Sequence[Path], alone: int) -> tuple[str, ...]:
    """Return notes about files that belong to no pair."""
    without = sum(map(_is_image, files_in(root / "imagesTs", {}))) if (root / "imagesTs").is_dir() else 0
    return (
        *([f"Left out {counted(alone, 'mask')} without an image of the same name."] if alone else []),
        *([f"Left out {counted(without, 'image')} in 'imagesTs', which have no masks."] if without else []),
        *of_other_formats(images, _is_image, "pictures, NIfTI and DICOM"),
        *of_other_formats(masks, lambda file: _is_picture(file) or is_volume(file), "masks as PNG, BMP, TIFF or NIfTI"),
    )


def _is_image(file: Path) -> bool:
    return _is_picture(file) or is_volume(file) or _dicom(file)


def _is_picture(file: Path) -> bool:
    return is_image(file.name)


def is_volume(file: Path) -> bool:
    """Return True if a file has a NIfTI name."""
    return file.name.lower().endswith(nifti.SUFFIXES)


def _dicom(file: Path) -> bool:
    return file.suffix.lower() in dicom_headers.SUFFIXES or is_dicom(file)


def _name(file: Path, root: Path) -> str:
    """Return the path relative to the folder without the suffix; DICOM files are often named by numbers with dots."""
    name = file.relative_to(root).as_posix()
    known = (*nifti.SUFFIXES, file.suffix) if is_image(file.name) or is_volume(file) else dicom_headers.SUFFIXES
    return next((name[: -len(end)] for end in sorted(known, key=len)[::-1] if name.lower().endswith(end.lower())), name)


def places_in(image: Path, plane: str, frame: int | None) -> Sequence[int | None]:
    """Return a volume's slice positions, read from its header alone, or ``(None,)`` if the file is one image.

    Raises:
        Exception: any error in the file.
    """
    if not is_volume(image):
        return (None,)
    shape = upright_shape(image, frame)
    return (None,) if plane == "volume" else range(shape[PLANES.index(plane)])


def owner_of(image: Path, name: str) -> str | None:
    """Return an image's patient, if the file names one.

    The patient comes from the DICOM header, or for a volume from the folder ``sub-...`` or the file name.
    """
    if is_volume(image):
        return nifti.subject(name)
    files = [] if is_image(image.name) else list_dicom(image).files
    return files[0].place.patient if files else None


def read_pairs(
    image: Path, mask: Path, places: Sequence[int | None], plane: str, frame: int | None
) -> Mapping[int | None, Pair]:
    """Return the images at some positions in a file, with their masks; slices with a single value are left out.

    Raises:
        MisplacedError: a volume and its mask have different voxel grids.
        Exception: any error in one of the files.
    """
    if is_volume(image):
        return _of_volume(image, mask, places, plane, frame)
    shown, spacing = (decode(image), (1.0, 1.0)) if is_image(image.name) else _of_dicom(image)
    return {None: Pair(shown, read_mask(mask), spacing)}


def _of_dicom(path: Path) -> tuple[Tensor, tuple[float, float]]:
    _, files, unread, _ = list_dicom(path)
    if not files:
        raise ValueError(next(iter(unread.values()), "is not a DICOM image"))
    if files[0].frames > 1:
        raise ValueError(f"holds {files[0].frames} frames, but its mask has one: save each frame as a file")
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
