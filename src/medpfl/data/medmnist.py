"""MedMNIST: 2D and 3D data sets from their ``.npz`` files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from medpfl.core.errors import InputError, nearest
from medpfl.data.download import cached
from medpfl.data.images import LabelledImages, check_numbered
from medpfl.data.medmnist_sums import SUMS, URL
from medpfl.data.reading.intensity import unit
from medpfl.data.reading.listing import spread
from medpfl.data.reading.npz import Npz
from medpfl.data.reading.resize import fitted, fitted_volume, stacked
from medpfl.data.target import LimitedTarget, Located

__all__ = ["MedMNIST"]

Split = Literal["train", "val", "test"]
_CHANNELS = (1, 3)


@dataclass(frozen=True, repr=False, eq=False)
class _File(Located):  # the arguments before those of `LimitedTarget`
    split: Split = "train"
    column: int | None = None
    download: bool = field(default=False, repr=False)


@dataclass(frozen=True, repr=False)
class MedMNIST(LimitedTarget, _File):
    """One of the 18 MedMNIST data sets (Yang et al. 2023), 28 to 224 pixels, from its ``.npz`` file.

    3D data sets give volumes (C, D, H, W). A first or last axis of length 1 or 3 holds channels. Classes are the
    integers in the file, or the columns of one-hot labels. For a data set with several labels per image (ChestMNIST),
    the class is one of these labels, or whether any of them is set. The files do not identify patients.

    Attributes:
        path: a file; with `download`, the name of a data set, such as ``"pneumoniamnist"`` (28 pixels) or
            ``"pneumoniamnist_224"``.
        split: ``"train"``, ``"val"`` or ``"test"``.
        column: with several labels per image, the position from 0 of the label to use; ``None`` asks whether any is
            set.
        download: True to download the file from Zenodo into ``~/.cache/medpfl`` (or below ``$XDG_CACHE_HOME``) if it is
            not there yet. The published checksum is verified every time.
        size, fit, channels, limit: as in `medpfl.data.target.LimitedTarget`.

    Raises:
        InputError: an argument is out of range.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.split not in get_args(Split):
            raise InputError(f"there is no split {self.split!r}; {nearest(str(self.split), get_args(Split))}")
        if self.column is not None and (type(self.column) is not int or self.column < 0):
            raise InputError(f"column={self.column!r} must be None or the position of a label, counted from 0")

    def load(self) -> LabelledImages:
        """Return the split's images in file order; if `limit` applies, sample them evenly over the classes.

        Raises:
            InputError: the file or data set does not exist, the checksum differs, or the file lacks the split's images
                and labels.
        """
        file = Npz.open(self._file())
        images, shape = self._named(file, "images"), file.shape(f"{self.split}_images")
        axis = _channel_axis(shape, f"'{images}' in '{file.path}'")
        labels, classes = self._labels(file, shape[0])
        chosen = spread(range(shape[0]), lambda i: labels[i], self.limit)
        if not chosen:
            raise InputError(f"'{images}' in '{file.path}' holds no image: take another split")
        pixels = unit(file.rows(images, chosen), f"the images in '{file.path}'")
        return LabelledImages(
            images=stacked(
                [self._fitted(image if axis is None else image.movedim(axis, 0), axis) for image in pixels],
                self.channels,
            ),
            labels=torch.tensor([labels[i] for i in chosen]),
            classes=tuple(map(str, range(classes))),
            names=tuple(f"{self.split}/{i}" for i in chosen),
            patients=(None,) * len(chosen),
            left_out=shape[0] - len(chosen),
        )

    def published(self, purpose: str) -> MedMNIST | None:
        """Return the validation or test split, as `purpose` requires; None unless this source reads ``"train"``."""
        return replace(self, split="val" if purpose == "validation" else "test") if self.split == "train" else None

    def _file(self) -> Path:
        place = Path(self.path).expanduser()
        if self.download:
            name = str(self.path)
            if name not in SUMS:
                raise InputError(f"MedMNIST has no data set '{name}'; {nearest(name, SUMS)}")
            return cached(URL.format(name=name), SUMS[name])
        if not place.exists() and str(self.path) in SUMS:
            raise InputError(
                f"there is no file '{place}': give its path, or download it with MedMNIST('{place}', download=True)"
            )
        return place

    def _named(self, file: Npz, what: str) -> str:
        name = f"{self.split}_{what}"
        if name not in file.names:
            known = ", ".join(file.names) or "no array"
            raise InputError(
                f"'{file.path}' has no array '{name}'; it has {known}. A MedMNIST file holds images and labels for "
                "train, val and test"
            )
        return name

    def _labels(self, file: Npz, count: int) -> tuple[list[int], int]:
        """Return the label of each image in the split, and the number of classes in all splits."""
        name = self._named(file, "labels")
        others = [f"{split}_labels" for split in get_args(Split) if f"{split}_labels" in file.names]
        tables = {other: _table(file.rows(other), f"'{other}' in '{file.path}'") for other in others}
        widths = {table.shape[1] for table in tables.values()}
        if self.column is None and len(widths) == 1 and min(widths) > 1 and _are_one_hot(tables.values()):
            columns, classes = {other: table.argmax(1) for other, table in tables.items()}, widths.pop()
        else:
            columns = {other: self._column(table) for other, table in tables.items()}
            classes = 1 + max(int(column.max(initial=0)) for column in columns.values())
        check_numbered(classes, f"the labels in '{file.path}'")
        if len(columns[name]) != count:
            raise InputError(f"'{file.path}' has {count} images and {len(columns[name])} labels in '{self.split}'")
        return columns[name].tolist(), classes

    def _column(self, table: np.ndarray) -> np.ndarray:
        """Return (N,) classes from a table (N, L)."""
        if table.shape[1] == 1:
            return table[:, 0]
        if self.column is None:
            return np.asarray((table != 0).any(1), dtype=np.int64)
        if self.column >= table.shape[1]:
            raise InputError(f"column={self.column}: an image has {table.shape[1]} labels, counted from 0")
        return table[:, self.column]

    def _fitted(self, image: Tensor, axis: int | None) -> Tensor:
        """Resize an image or volume, after moving any channel axis to the front."""
        image = image[None] if axis is None else image
        return fitted(image, self.size, self.fit) if image.ndim == 3 else fitted_volume(image, self.size, self.fit)[0]


def _table(table: np.ndarray, what: str) -> np.ndarray:
    """Return labels (N,) or (N, L) as (N, L) int64."""
    if table.dtype.kind not in "ui" or table.ndim > 2 or (table.size and table.min() < 0):
        raise InputError(f"{what} have type {table.dtype} and shape {table.shape}: expected integers of shape (N, 1)")
    if table.size and table.max() > np.iinfo(np.int64).max:
        raise InputError(f"{what} go up to {table.max()}: that is no class number")
    return (table if table.ndim == 2 else table[:, None]).astype(np.int64)


def _channel_axis(shape: tuple[int, ...], what: str) -> int | None:
    """Return the channel axis of an image in an array (N, ...), or None if it has no channel axis.

    A first or last axis of length 1 or 3 holds channels: no volume has so short a side. A last axis of length 2 or 4
    may hold channels too (gray or color with transparency), but these are not supported.

    Raises:
        InputError: the axes fit neither an image nor a volume.
    """
    own = shape[1:]
    last, first = (own[-1] in _CHANNELS, own[0] in _CHANNELS) if own else (False, False)
    if len(own) == 2:
        return None
    if len(own) in (3, 4) and (last or first):
        return -1 if last else 0
    if len(own) == 3 and own[-1] > max(_CHANNELS) + 1:
        return None
    raise InputError(f"{what} has shape {shape}: expected (N, H, W[, C]) or (N, D, H, W[, C]), where C is 1 or 3")


def _are_one_hot(tables: Iterable[np.ndarray]) -> bool:
    """Return True if every row of every table holds a single 1 and otherwise zeros, as Keras writes classes."""
    return all(bool(((table == 1).sum(1) == 1).all() and ((table != 0).sum(1) == 1).all()) for table in tables)
