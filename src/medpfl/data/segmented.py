"""Images with masks: a folder of images beside a folder of masks, or the arrays of an ``.npz`` file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medpfl.core.errors import InputError, listed
from medpfl.core.roles import DataSource
from medpfl.data.decode import decode, pillow_quiet, reason
from medpfl.data.images import LabelledImages
from medpfl.data.index import read_patients
from medpfl.data.listing import files_in, first, is_image, printable, spread
from medpfl.data.masks import class_of, fitted_mask, numbered, read_mask
from medpfl.data.npz import Npz
from medpfl.data.resize import Fit, check_limit, check_target, fitted, fitted_volume, stacked
from medpfl.data.unit import unit

__all__ = ["Segmented", "is_segmented"]

_IMAGES, _MASKS, _PATIENTS = "images", "masks", "patients"
_ENDINGS = ("", "_mask", "_segmentation", "_seg")
Pair = tuple[Tensor, np.ndarray]


@dataclass(frozen=True, repr=False)
class Segmented(DataSource):
    """Images, and for each a mask that says which class every pixel is of; 0 is the background.

    A folder that holds ``images`` and ``masks``, with the mask of ``images/a.png`` in ``masks/a.png`` (or
    ``a_mask.png``, ``a_segmentation.png``, ``a_seg.png``; PNG, BMP or TIFF), and patients from ``index.csv`` (``file``
    relative to ``images``). Or an ``.npz`` file with arrays ``images`` (M, H, W), (M, H, W, 3) or (M, C, H, W),
    ``masks`` (M, H, W) and, if known, ``patients`` (M,) of numbers or texts; with masks (M, D, H, W), images are
    volumes.

    The values of all masks, in their order, are the classes: 0 and 255 are two.

    Attributes:
        path: of the folder or file.
        size, fit, channels: as in `ImageFolder`; masks go with their images.
        limit: at most this many, spread evenly.

    Raises:
        InputError: an argument is out of range.
    """

    path: str | os.PathLike[str] = field(repr=False)
    size: int = 32
    fit: Fit = "crop"
    channels: int | None = None
    limit: int = 2000

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", os.fspath(self.path))
        check_target(self.size, self.fit, self.channels)
        check_limit(self.limit)

    def load(self) -> LabelledImages:
        """The images in the order of their names or places.

        Raises:
            InputError: no such folder or file, images without a mask, images and masks of different sizes, or masks
                that are none.
        """
        root = Path(self.path).expanduser()
        return self._of_file(root) if root.is_file() else self._of_folder(root)

    def _of_folder(self, root: Path) -> LabelledImages:
        files = _paired(root)
        chosen = spread(list(files), lambda _: 0, self.limit)
        read = {path: _read(path, files[path]) for path in chosen}
        pairs = {path: pair for path, pair in read.items() if not isinstance(pair, str)}
        inside = {path: path.relative_to(root / _IMAGES) for path in chosen}
        skipped = tuple(f"{printable(inside[path])}: {why}" for path, why in read.items() if isinstance(why, str))
        if not pairs:
            raise InputError(f"no image in '{root}' could be read: {first(skipped)}")
        patients = read_patients(root / "index.csv")
        return self._made(
            list(pairs.values()),
            tuple(printable(inside[path]) for path in pairs),
            tuple(patients.get(inside[path].as_posix()) for path in pairs),
            skipped,
            len(files) - len(chosen),
        )

    def _of_file(self, path: Path) -> LabelledImages:
        file = Npz.open(path)
        if missing := {_IMAGES, _MASKS} - set(file.names):
            raise InputError(f"'{path}' has no array {' and '.join(sorted(missing))}: it has {', '.join(file.names)}")
        count, masks = file.shape(_IMAGES)[0], file.shape(_MASKS)
        if len(masks) not in (3, 4) or masks[0] != count:
            raise InputError(f"'masks' in '{path}' has shape {masks}: ({count}, H, W) or ({count}, D, H, W) is needed")
        chosen = spread(range(count), lambda _: 0, self.limit)
        pixels = unit(file.rows(_IMAGES, chosen), f"the images in '{path}'")
        pairs = [(_first(p, len(masks) - 1, path), m) for p, m in zip(pixels, file.rows(_MASKS, chosen), strict=True)]
        own = file.rows(_PATIENTS, chosen) if _PATIENTS in file.names else [None] * len(chosen)
        patients = tuple(None if p is None else str(p) for p in own)
        return self._made(pairs, tuple(map(str, chosen)), patients, (), count - len(chosen))

    def _made(
        self,
        pairs: Sequence[Pair],
        names: tuple[str, ...],
        patients: tuple[str | None, ...],
        skipped: tuple[str, ...],
        left_out: int,
    ) -> LabelledImages:
        for name, (image, mask) in zip(names, pairs, strict=True):
            if tuple(image.shape[1:]) != mask.shape:
                raise InputError(f"image '{name}' has sides {tuple(image.shape[1:])}, its mask {mask.shape}")
        masks, classes = numbered([mask for _, mask in pairs])
        fit = [self._fitted(image) for image, _ in pairs]
        whole = torch.stack([fitted_mask(mask, classes, self.size, self.fit) for mask in masks])
        return LabelledImages(
            images=stacked(fit, self.channels),
            labels=class_of(whole),
            classes=("background", *(f"structure {label}" for label in range(1, classes))),
            names=names,
            patients=patients,
            skipped=skipped,
            left_out=left_out,
            masks=whole,
        )

    def _fitted(self, image: Tensor) -> Tensor:
        return fitted(image, self.size, self.fit) if image.ndim == 3 else fitted_volume(image, self.size, self.fit)[0]


def is_segmented(place: Path) -> bool:
    """Whether a folder or an ``.npz`` file holds images and masks."""
    if place.is_file():
        return place.suffix.lower() == ".npz" and {_IMAGES, _MASKS} <= set(Npz.open(place).names)
    return all((place / name).is_dir() for name in (_IMAGES, _MASKS))


def _paired(root: Path) -> dict[Path, Path]:
    """The mask of each image."""
    if not is_segmented(root):
        raise InputError(f"'{root}' must hold a folder 'images' and a folder 'masks', or be an .npz file with both")
    images, masks = ([f for f in files_in(root / name, {}) if is_image(f.name)] for name in (_IMAGES, _MASKS))
    by_name = {file.relative_to(root / _MASKS).with_suffix(""): file for file in masks}
    found = {}
    for image in images:
        stem = image.relative_to(root / _IMAGES).with_suffix("")
        own = (by_name.get(stem.with_name(stem.name + ending)) for ending in _ENDINGS)
        found[image] = next((mask for mask in own if mask), None)
    if not found:
        raise InputError(f"no image in '{root / _IMAGES}'")
    if missing := [printable(image.relative_to(root)) for image, mask in found.items() if mask is None]:
        raise InputError(
            f"{len(missing)} image(s) have no mask of the same name in '{root / _MASKS}':{listed(missing)}"
        )
    return {image: mask for image, mask in found.items() if mask is not None}


def _read(image: Path, mask: Path) -> Pair | str:
    try:
        with pillow_quiet():
            return decode(image), read_mask(mask)
    except Exception as error:  # a broken file makes Pillow raise almost anything
        return reason(error)


def _first(pixels: Tensor, axes: int, path: Path) -> Tensor:
    """An image with its channels first."""
    if pixels.ndim == axes:
        return pixels[None]
    if pixels.ndim == axes + 1 and pixels.shape[0] in (1, 3):
        return pixels
    if pixels.ndim == axes + 1 and pixels.shape[-1] in (1, 3):
        return pixels.movedim(-1, 0)
    raise InputError(f"an image in '{path}' has shape {tuple(pixels.shape)}, and its mask {axes} axes: see 'Segmented'")
