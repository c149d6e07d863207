"""Images that Python already holds: arrays, a PyTorch ``Dataset``, or pairs of image and label."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medpfl.core.errors import InputError
from medpfl.core.roles import DataSource
from medpfl.data.images import LabelledImages, check_numbered
from medpfl.data.reading.intensity import unit
from medpfl.data.reading.listing import spread
from medpfl.data.reading.resize import fitted, fitted_volume, stacked
from medpfl.data.target import LimitedTarget

__all__ = ["Arrays"]

_CHANNELS = (1, 3)


@dataclass(frozen=True, repr=False, eq=False)
class _Images(DataSource):  # the arguments before those of `LimitedTarget`
    images: Any = field(repr=False)
    labels: Any = field(default=None, repr=False)
    classes: Sequence[str] | None = field(default=None, repr=False)
    patients: Sequence[str | None] | None = field(default=None, repr=False)


@dataclass(frozen=True, repr=False, eq=False)
class Arrays(LimitedTarget, _Images):
    """Images in memory: arrays or tensors with labels, a PyTorch data set, or pairs (image, label).

    uint8 and uint16 are divided by 255 and 65535; floats must lie in [0, 1], without normalization. An image
    is (H, W), (C, H, W), (H, W, C), or a volume (C, D, H, W), C being 1 or 3; or a Pillow image.

    Attributes:
        images: N images as one array; or a data set or an iterable of (image, label) or of batches of them.
        labels: N whole numbers; ``None`` if `images` gives them.
        classes: names in the order of the numbers; ``None``: the numbers.
        patients: N ids, for the key file only; ``None``: unknown.
        size: of all sides; ``None``: as they are, if all are alike.
        fit, channels: as in `medpfl.data.target.Target`.
        limit: at most this many images: of arrays evenly over the classes, of a data set evenly over its
            places, of another iterable the first.

    Raises:
        InputError: an argument is out of range.
    """

    size: int | None = None  # pyright: ignore[reportIncompatibleVariableOverride]  (here only, images may stay as they are)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.images, str) or (not isinstance(self.images, Iterable) and not _is_dataset(self.images)):
            raise InputError("Arrays takes arrays, a data set or pairs (image, label): give it from Python")

    def load(self) -> LabelledImages:
        """The images, in their order.

        Raises:
            InputError: images of an unknown shape, type or range, labels that are no whole numbers, or numbers
                of images, labels, patients and classes that do not fit.
        """
        places, pairs, left_out = self._chosen()
        if not pairs:
            raise InputError("there are no images")
        labels = torch.tensor([_label(label, place) for place, (_, label) in zip(places, pairs, strict=True)])
        images = [self._fitted(_picture(image, place)) for place, (image, _) in zip(places, pairs, strict=True)]
        if len({image.shape[1:] for image in images}) > 1:
            raise InputError("the images are of different sizes: give one, such as size=32")
        return LabelledImages(
            images=stacked(images, self.channels),
            labels=labels,
            classes=self._names(labels),
            names=tuple(map(str, places)),
            patients=tuple(None if self.patients is None else self.patients[place] for place in places),
            left_out=left_out,
        )

    def _chosen(self) -> tuple[list[int], list[tuple[Any, Any]], int]:
        """Places, pairs, and how many were left out."""
        if self.labels is not None:
            self._check_count(len(self.images), len(self.labels), "labels")
            places = spread(range(len(self.images)), lambda i: _label(self.labels[i], i), self.limit)
            pairs, count = [(self.images[i], self.labels[i]) for i in places], len(self.images)
        elif _is_dataset(self.images):
            count = len(self.images)
            places = spread(range(count), lambda _: 0, self.limit)
            pairs = [_pair(self.images[i]) for i in places]
        else:
            pairs = list(itertools.islice(_pairs(self.images), self.limit))
            places, count = list(range(len(pairs))), len(pairs)
        if self.patients is not None:
            self._check_count(count, len(self.patients), "patients")
        return places, pairs, count - len(places)

    @staticmethod
    def _check_count(images: int, others: int, what: str) -> None:
        if images != others:
            raise InputError(f"there are {images} images and {others} {what}: give one for each image")

    def _fitted(self, image: Tensor) -> Tensor:
        if self.size is None:
            return image
        return fitted(image, self.size, self.fit) if image.ndim == 3 else fitted_volume(image, self.size, self.fit)[0]

    def _names(self, labels: Tensor) -> tuple[str, ...]:
        needed = int(labels.max()) + 1
        check_numbered(needed, "the labels")
        names = tuple(map(str, range(needed) if self.classes is None else self.classes))
        if len(names) < needed:
            raise InputError(f"there are {len(names)} classes and a label {needed - 1}: labels count from 0")
        return names


def _is_dataset(images: Any) -> bool:
    """Whether pairs can be had by their place: not an array, whose items are images without labels."""
    return hasattr(images, "__getitem__") and hasattr(images, "__len__") and not hasattr(images, "dtype")


def _pairs(images: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """Single pairs; batches, as a ``DataLoader`` gives them, are taken apart."""
    for item in images:
        image, label = _pair(item)
        if np.ndim(label):
            yield from zip(image, label, strict=True)
        else:
            yield image, label


def _pair(item: Any) -> tuple[Any, Any]:
    if isinstance(item, tuple | list) and len(item) == 2:
        return item[0], item[1]
    raise InputError(
        f"an item is a {type(item).__name__}, not a pair (image, label): give pairs, or the labels as labels=..."
    )


def _label(label: Any, place: int) -> int:
    value = np.asarray(label)
    if value.size != 1 or value.dtype.kind not in "uib" or not 0 <= value.item() < 2**63:
        raise InputError(f"the label of image {place} is {label!r}: it must be a whole number, 0 or more")
    return int(value.item())


def _picture(image: Any, place: int) -> Tensor:
    """(C, H, W) or (C, D, H, W), channels first."""
    values = image.detach().cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
    pixels = unit(values, f"the pixels of image {place}")
    if pixels.ndim == 2:
        return pixels[None]
    if pixels.ndim in (3, 4) and pixels.shape[0] in _CHANNELS:
        return pixels
    if pixels.ndim == 3 and pixels.shape[-1] in _CHANNELS:
        return pixels.movedim(-1, 0)
    raise InputError(
        f"image {place} has shape {tuple(pixels.shape)}: (H, W), (C, H, W), (H, W, C) or (C, D, H, W) is needed, "
        "with C of 1 or 3"
    )
