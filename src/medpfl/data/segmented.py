"""Images with segmentation masks: a folder of images beside a folder of masks, or an ``.npz`` file with both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from medpfl.core.errors import InputError
from medpfl.data.images import LabelledImages
from medpfl.data.nifti import Plane, check_plane
from medpfl.data.reading.decode import pillow_quiet, reason
from medpfl.data.reading.file_labels import labels_given
from medpfl.data.reading.image_mask_pairs import (
    IMAGES,
    MASKS,
    Pair,
    case_of,
    folders_of,
    owner_of,
    paired,
    places_in,
    read_pairs,
)
from medpfl.data.reading.index import read_patients
from medpfl.data.reading.intensity import unit
from medpfl.data.reading.listing import first, printable, spread
from medpfl.data.reading.masks import class_of, fitted_mask, numbered
from medpfl.data.reading.npz import Npz
from medpfl.data.reading.resize import fitted, fitted_volume, stacked
from medpfl.data.reading.volumes import MisplacedError, common_spacing
from medpfl.data.target import LimitedTarget, Located

__all__ = ["Segmented", "is_segmented"]

_PATIENTS = "patients"
_UNUSED = "The labels in index.csv are not used: segmented images take their classes from their masks."
Unit = tuple[Path, int | None]
"""A file and a slice position in it."""


@dataclass(frozen=True, repr=False)
class Segmented(LimitedTarget, Located):
    """Images, each with a mask that gives every pixel's class; 0 is the background.

    The path is a folder or an ``.npz`` file. A folder holds ``images`` and ``masks``. The mask for ``images/a.png`` is
    ``masks/a.png`` (or ``a_mask.png``, ``a_segmentation.png``, ``a_seg.png``). Patients come from ``index.csv`` (its
    ``file`` column is relative to ``images``); without an entry there, the patient is the PatientID, or a volume's
    subject or file. ``imagesTr`` and ``labelsTr``, as in the Medical Segmentation Decathlon and nnU-Net, are read in
    the same way. Images are pictures or single-frame DICOM files with PNG, BMP or TIFF masks; or NIfTI volumes, read
    like `Nifti`, with NIfTI masks on the same voxel grid.

    An ``.npz`` file holds arrays ``images`` (M, H, W), (M, H, W, 3) or (M, C, H, W), ``masks`` (M, H, W) or (M, H, W,
    1) and optionally ``patients`` (M,), integers or strings. If masks are (M, D, H, W), images are volumes.

    The sorted values of all masks are the classes, so 0 and 255 are two classes. Images without any structure count
    too. Pairs with an unreadable file are skipped and listed.

    Attributes:
        path: a folder or file.
        size, fit, channels: as in `medpfl.data.target.Target`, and for volumes as in `Nifti`; masks are resized with
            their images.
        limit: maximum number of images, sampled evenly.
        plane: for NIfTI volumes, ``"axial"``, ``"coronal"`` or ``"sagittal"`` slices, or ``"volume"``.
        frame: index of the volume to read from a NIfTI image that holds a series.

    Raises:
        InputError: an argument is out of range.
    """

    plane: Plane = "axial"
    frame: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_plane(self.plane, self.frame)

    def load(self) -> LabelledImages:
        """Return the images in the order of their names or positions.

        Raises:
            InputError: the folder or file does not exist, an image has no mask, an image and its mask differ in size,
                or a mask is invalid.
        """
        root = Path(self.path).expanduser()
        return self._of_file(root) if root.is_file() else self._of_folder(root)

    def _of_folder(self, root: Path) -> LabelledImages:
        if (folders := folders_of(root)) is None:
            raise InputError(f"'{root}' must hold a folder 'images' and a folder 'masks', or be an .npz file with both")
        folder, unread = folders[0], dict[Path, str]()
        files, notes = paired(*folders, unread)
        inside = {image: printable(image.relative_to(folder)) for image in files}
        units = self._units(list(files), unread)
        chosen = spread(units, lambda _: 0, self.limit)
        pairs = self._read(chosen, files, inside, unread)
        skipped = tuple(f"{inside.get(path) or printable(path.relative_to(root))}: {w}" for path, w in unread.items())
        if not pairs:
            raise InputError(f"no image in '{root}' could be read: {first(skipped)}")
        known = read_patients(root, list(inside.values()), folder, "their patients come from the files, if known")
        unused = [_UNUSED] if labels_given(root) else []
        owners = {image: known.of(name) or owner_of(image, case_of(name, folder)) for image, name in inside.items()}
        return self._made(
            list(pairs.values()),
            tuple(inside[image] + ("" if place is None else f"#{self.plane}{place}") for image, place in pairs),
            tuple(owners[image] for image, _ in pairs),
            skipped,
            len(units) - len(chosen),
            (*notes, *known.notes, *unused),
        )

    def _units(self, files: Sequence[Path], unread: dict[Path, str]) -> list[Unit]:
        units: list[Unit] = []
        for image in files:
            try:
                units += [(image, place) for place in places_in(image, self.plane, self.frame)]
            except Exception as error:  # a broken file makes nibabel raise almost anything
                unread[image] = reason(error, image)
        return units

    def _read(
        self, chosen: Sequence[Unit], files: Mapping[Path, Path], inside: Mapping[Path, str], unread: dict[Path, str]
    ) -> dict[Unit, Pair]:
        """Return the image-mask pairs. Read one file at a time, because volumes are large."""
        wanted: dict[Path, list[int | None]] = {}
        for image, place in chosen:
            wanted.setdefault(image, []).append(place)
        pairs: dict[Unit, Pair] = {}
        for image, places in wanted.items():
            try:
                with pillow_quiet():
                    found = read_pairs(image, files[image], places, self.plane, self.frame)
            except MisplacedError as error:
                raise InputError(f"image '{inside[image]}' {error}") from None
            except Exception as error:  # a broken file makes Pillow, nibabel and pydicom raise almost anything
                unread[image] = reason(error, image)
                continue
            pairs |= {(image, place): pair for place, pair in found.items()}
        if self.plane == "volume" and len({pair.mask.ndim for pair in pairs.values()}) > 1:
            raise InputError(f"'{self.path}' holds pictures and volumes: separate them, or use slices (plane='axial')")
        return pairs

    def _of_file(self, path: Path) -> LabelledImages:
        file = Npz.open(path)
        if missing := {IMAGES, MASKS} - set(file.names):
            raise InputError(f"'{path}' has no array {' and '.join(sorted(missing))}: it has {', '.join(file.names)}")
        count, own = file.shape(IMAGES)[0], file.shape(MASKS)
        masks = own[: len(own) - (len(own) > 3 and own[-1] == 1)]  # without the channel axis that Keras adds
        if len(masks) not in (3, 4) or masks[0] != count:
            raise InputError(f"'masks' in '{path}' has shape {own}: expected ({count}, H, W) or ({count}, D, H, W)")
        chosen = spread(range(count), lambda _: 0, self.limit)
        pixels = unit(file.rows(IMAGES, chosen), f"the images in '{path}'")
        axes = len(masks) - 1
        cells = (1.0,) * axes
        values = file.rows(MASKS, chosen).reshape(len(chosen), *masks[1:])
        pairs = [Pair(_first(p, axes, path), m, cells) for p, m in zip(pixels, values, strict=True)]
        owners = file.rows(_PATIENTS, chosen) if _PATIENTS in file.names else [None] * len(chosen)
        patients = tuple(None if p is None else str(p) for p in owners)
        return self._made(pairs, tuple(map(str, chosen)), patients, (), count - len(chosen))

    def _made(
        self,
        pairs: Sequence[Pair],
        names: tuple[str, ...],
        patients: tuple[str | None, ...],
        skipped: tuple[str, ...],
        left_out: int,
        notes: tuple[str, ...] = (),
    ) -> LabelledImages:
        for name, (image, mask, _) in zip(names, pairs, strict=True):
            if tuple(image.shape[1:]) != mask.shape:
                raise InputError(f"image '{name}' has size {tuple(image.shape[1:])}, but its mask has {mask.shape}")
        masks, classes = numbered([pair.mask for pair in pairs])
        cells = [pair.spacing for pair in pairs]
        whole = [fitted_mask(m, classes, self.size, self.fit, c) for m, c in zip(masks, cells, strict=True)]
        images, spacings = zip(*map(self._fitted, pairs), strict=True)
        return LabelledImages(
            images=stacked(images, self.channels),
            labels=class_of(torch.stack(whole)),
            classes=("background", *(f"structure {label}" for label in range(1, classes))),
            names=names,
            patients=patients,
            skipped=skipped,
            left_out=left_out,
            masks=torch.stack(whole),
            notes=notes,
            spacing=common_spacing(spacings),
        )

    def _fitted(self, pair: Pair) -> tuple[Tensor, tuple[float, ...] | None]:
        """Return the resized image and, for a volume, its voxel size."""
        if pair.mask.ndim == 2:
            return fitted(pair.pixels, self.size, self.fit, (pair.spacing[0], pair.spacing[1])), None
        depth, height, width = pair.spacing
        return fitted_volume(pair.pixels, self.size, self.fit, (depth, height, width))


def is_segmented(place: Path) -> bool:
    """Return True if a folder or an ``.npz`` file holds images and masks."""
    if place.is_file():
        return place.suffix.lower() == ".npz" and {IMAGES, MASKS} <= set(Npz.open(place).names)
    return folders_of(place) is not None


def _first(pixels: Tensor, axes: int, path: Path) -> Tensor:
    """Return an image with its channels first."""
    if pixels.ndim == axes:
        return pixels[None]
    if pixels.ndim == axes + 1 and pixels.shape[0] in (1, 3):
        return pixels
    if pixels.ndim == axes + 1 and pixels.shape[-1] in (1, 3):
        return pixels.movedim(-1, 0)
    raise InputError(
        f"an image in '{path}' has shape {tuple(pixels.shape)}, its mask {axes} axes: see 'medpfl list Segmented'"
    )
