"""NIfTI volumes, as 2D slices or whole."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from medpfl.core.errors import InputError, nearest
from medpfl.data.images import LabelledImages
from medpfl.data.on_disk import gathered
from medpfl.data.reading.decode import reason
from medpfl.data.reading.dicom_pixels import quiet
from medpfl.data.reading.file_labels import Place, label_files
from medpfl.data.reading.formats import of_other_formats
from medpfl.data.reading.index import read_patients
from medpfl.data.reading.listing import files_in, first, printable, spread
from medpfl.data.reading.masks_among_images import without_masks
from medpfl.data.reading.resize import fitted, fitted_volume
from medpfl.data.reading.volumes import (
    PLANES,
    Volume,
    common_spacing,
    is_mask_volume,
    read_volume,
    slice_of,
    stack_of,
    upright_shape,
)
from medpfl.data.target import LimitedTarget, Located

__all__ = ["SUFFIXES", "Nifti", "Plane", "check_plane", "subject"]

SUFFIXES = (".nii", ".nii.gz")
"""Suffixes of NIfTI files, in lower case."""

Plane = Literal["axial", "coronal", "sagittal", "volume"]
"""Conversion of a volume into images: slices in one plane, or the whole volume."""


@dataclass(frozen=True, repr=False, eq=False)
class _Volumes(Located):  # the arguments before those of `LimitedTarget`
    plane: Plane = "axial"
    labels: str | None = field(default=None, repr=False)
    frame: int | None = None


@dataclass(frozen=True, repr=False)
class Nifti(LimitedTarget, _Volumes):
    """NIfTI volumes, turned upright by their affine and read as slices in one plane or as whole volumes.

    Each volume is windowed between its 1st and 99th percentiles. Slices show the head or face at the top and the
    patient's right on the right. Slices with a single value are left out. Unreadable files are skipped and listed.
    Files that are named like another file's mask and hold few values are left out.

    Attributes:
        path: a folder, searched recursively, or one file.
        plane: ``"axial"``, ``"coronal"`` or ``"sagittal"`` slices; or ``"volume"``: (1, D, H, W), axial slices
            from the feet upward.
        labels: Source of the labels if there is no ``index.csv``; see `medpfl.data.reading.file_labels.label_files`.
            Unlabeled images all belong to one class. A patient is the ``patient_id`` in ``index.csv``, or else a
            ``sub-...`` folder (BIDS), or else a file.
        frame: index of the volume to read from files that hold a series; ``None`` requires files with one volume.
        size, fit, channels: as in `medpfl.data.target.Target`; voxels are made cubic unless `fit` is ``"squash"``.
        limit: maximum number of images, sampled evenly over classes and over files and slices in order.

    Raises:
        InputError: an argument is out of range.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        check_plane(self.plane, self.frame)

    def load(self) -> LabelledImages:
        """Return the images, ordered by file and slice.

        Raises:
            InputError: the path does not exist, it holds no readable volume, or the labels do not match the files.
        """
        given = Path(self.path).expanduser()
        root = given if given.is_dir() else given.parent
        unread: dict[Path, str] = {}
        files, notes = _files(given, unread)
        shapes = _shapes(files, self.frame, unread)
        names = {file: printable(file.relative_to(root)) for file in shapes}
        known = read_patients(root, [printable(file.relative_to(root)) for file in files], otherwise=_OTHERWISE)
        owners = {file: known.of(name) or subject(name) for file, name in names.items()}
        labels, classes = label_files([Place(name, owners[file]) for file, name in names.items()], root, self.labels)
        units = [
            _Unit(file, label, position)
            for file, label in zip(names, labels, strict=True)
            for position in self._positions(shapes[file])
        ]
        chosen = spread(units, lambda unit: unit.label, self.limit)
        spacings: dict[_Unit, tuple[float, ...] | None] = {}
        read = gathered(chosen, lambda units: self._read(units, spacings), self.channels)
        unread |= {unit.file: why for unit, why in read.unread.items()}
        lines = tuple(f"{printable(path.relative_to(root))}: {why}" for path, why in sorted(unread.items()))
        if not read.units:
            raise InputError(f"no NIfTI volume in '{given}' could be read: {first(lines) or 'it holds none'}")
        return LabelledImages(
            images=read.images,
            labels=torch.tensor([unit.label for unit in read.units]),
            classes=classes,
            names=tuple(names[unit.file] + self._part(unit.position) for unit in read.units),
            patients=tuple(owners[unit.file] for unit in read.units),
            skipped=lines,
            left_out=len(units) - len(chosen),
            notes=(*notes, *known.notes),
            spacing=common_spacing(list(spacings.values())),
        )

    def _positions(self, shape: Sequence[int]) -> range:
        return range(1 if self.plane == "volume" else shape[PLANES.index(self.plane)])

    def _part(self, position: int) -> str:
        return "" if self.plane == "volume" else f"#{self.plane}{position}"

    def _read(
        self, chosen: Sequence[_Unit], spacings: dict[_Unit, tuple[float, ...] | None]
    ) -> Generator[tuple[_Unit, Tensor | str | None], None, None]:
        """Yield the images, one file at a time, because volumes are large; None for a slice with a single value.

        Args:
            chosen: what to read.
            spacings: receives the voxel size of each image.
        """
        for file, units in groupby(chosen, lambda unit: unit.file):
            try:
                whole = read_volume(file, self.frame)
            except Exception as error:  # a broken file makes nibabel raise almost anything
                yield from ((unit, reason(error, file)) for unit in units)
                continue
            for unit in units:
                if (image := self._fitted(whole, unit.position)) is None:
                    yield unit, None
                else:
                    spacings[unit] = image.spacing
                    yield unit, image.pixels

    def _fitted(self, whole: Volume, position: int) -> _Fitted | None:
        """Return a slice or the volume, resized; None for a slice with a single value."""
        if self.plane == "volume":
            voxels, spacing = stack_of(whole)
            return _Fitted(*fitted_volume(voxels, self.size, self.fit, spacing))
        pixels, (height, width) = slice_of(whole, self.plane, position)
        if pixels.min() == pixels.max():
            return None
        return _Fitted(fitted(pixels, self.size, self.fit, (height, width)), None)


class _Unit(NamedTuple):
    file: Path
    label: int
    position: int


class _Fitted(NamedTuple):
    pixels: Tensor
    spacing: tuple[float, ...] | None


def check_plane(plane: str, frame: int | None) -> None:
    """Check that `plane` is known and that `frame` is None or a valid index.

    Raises:
        InputError: one of them is not.
    """
    if plane not in get_args(Plane):
        raise InputError(f"there is no plane {plane!r}; {nearest(str(plane), get_args(Plane))}")
    if frame is not None and (type(frame) is not int or frame < 0):
        raise InputError(f"frame={frame!r} must be None or the position of a volume, counted from 0")


_OTHERWISE = "their patient is the folder 'sub-...' or the file"


def _files(given: Path, unread: dict[Path, str]) -> tuple[list[Path], tuple[str, ...]]:
    """Return a folder's volumes, or the single file, with notes about files left out."""
    if not given.exists():
        raise InputError(f"there is no file or folder '{given}'")
    if not given.is_dir():
        return [given], ()
    files = files_in(given, unread)
    with quiet():
        volumes = without_masks([path for path in files if _is_nifti(path)], given, is_mask_volume)
    return volumes.images, (*volumes.notes, *of_other_formats(files, _is_nifti, "NIfTI (.nii, .nii.gz)"))


def _is_nifti(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES)


def _shapes(files: Sequence[Path], frame: int | None, unread: dict[Path, str]) -> dict[Path, tuple[int, ...]]:
    """Return the upright shapes of the volumes, read from their headers alone."""
    shapes = {}
    for file in files:
        try:
            shapes[file] = upright_shape(file, frame)
        except Exception as error:  # a broken file makes nibabel raise almost anything
            unread[file] = reason(error, file)
    return shapes


def subject(name: str) -> str:
    """Return a volume's patient, derived from its path: the subject folder in a BIDS tree, or else the file."""
    return next((part for part in Path(name).parts[:-1] if part.startswith("sub-")), name)
