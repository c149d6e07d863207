"""Images already in memory: arrays, a PyTorch ``Dataset``, or (image, label) pairs."""

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
    """Images in memory: arrays or tensors with labels, a PyTorch data set, or (image, label) pairs.

    uint8 is divided by 255 and uint16 by 65535. Floats must lie in [0, 1], without normalization. An image is
    (H, W), (C, H, W), (H, W, C), or a volume (C, D, H, W), where C is 1 or 3; or a Pillow image.

    Attributes:
        images: N images as one array; or a data set or iterable that yields (image, label) pairs or batches of them.
        labels: N integers; ``None`` if `images` contains the labels.
        classes: class names, indexed by label; ``None`` uses the labels themselves.
        patients: N patient ids, written only to the key file; ``None`` if unknown.
        size: length of every side; ``None`` keeps the images' own size, which must then be the same for all.
        fit, channels: as in `medpfl.data.target.Target`.
        limit: Maximum number of images. Arrays are sampled evenly over classes, and data sets evenly over
            positions. From any other iterable, the first images are taken.

    Raises:
        InputError: an argument is out of range.
    """

    size: int | None = None  # pyright: ignore[reportIncompatibleVariableOverride]  (here only, images may stay as they are)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.images, str) or (not isinstance(self.images, Iterable) and not _is_dataset(self.images)):
            raise InputError("Arrays needs arrays, a data set or (image, label) pairs: it works only from Python")

    def load(self) -> LabelledImages:
        """Return the images in their given order.

        Raises:
            InputError: the images have an unsupported shape, type or range; labels are not integers; or the numbers
                of images, labels, patients and classes do not match.
        """
        places, pairs, left_out = self._chosen()
        if not pairs:
            raise InputError("there are no images")
        labels = torch.tensor([_label(label, place) for place, (_, label) in zip(places, pairs, strict=True)])
        images = [self._fitted(_picture(image, place)) for place, (image, _) in zip(places, pairs, strict=True)]
        if len({image.shape[1:] for image in images}) > 1:
            raise InputError("the images have different sizes: set one for all, such as size=32")
        return LabelledImages(
            images=stacked(images, self.channels),
            labels=labels,
            classes=self._names(labels),
            names=tuple(map(str, places)),
            patients=tuple(None if self.patients is None else self.patients[place] for place in places),
            left_out=left_out,
        )

    def _chosen(self) -> tuple[list[int], list[tuple[Any, Any]], int]:
        """Return the positions and (image, label) pairs to load, and the number of images left out."""
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
            raise InputError(f"there are {len(names)} class names, but labels go up to {needed - 1}: they start at 0")
        return names


def _is_dataset(images: Any) -> bool:
    """Return True if (image, label) pairs can be indexed. An array does not count: its items have no labels."""
    return hasattr(images, "__getitem__") and hasattr(images, "__len__") and not hasattr(images, "dtype")


def _pairs(images: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """Yield single pairs; split batches such as those from a ``DataLoader``."""
    for item in images:
        image, label = _pair(item)
        if np.ndim(label):
            yield from zip(image, label, strict=True)
        else:
            yield image, label


def _pair(item: Any) -> tuple[Any, Any]:
    if isinstance(item, tuple | list) and len(item) == 2:
        return item[0], item[1]
    raise InputError(f"an item is a {type(item).__name__}, not a pair (image, label): give pairs, or pass labels=...")


def _label(label: Any, place: int) -> int:
    value = np.asarray(label)
    if value.size != 1 or value.dtype.kind not in "uib" or not 0 <= value.item() < 2**63:
        raise InputError(f"the label of image {place} is {label!r}: it must be a whole number, 0 or more")
    return int(value.item())


def _picture(image: Any, place: int) -> Tensor:
    """Return an image as (C, H, W) or (C, D, H, W), channels first."""
    values = image.detach().cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
    pixels = unit(values, f"the pixels of image {place}")
    if pixels.ndim == 2:
        return pixels[None]
    if pixels.ndim in (3, 4) and pixels.shape[0] in _CHANNELS:
        return pixels
    if pixels.ndim == 3 and pixels.shape[-1] in _CHANNELS:
        return pixels.movedim(-1, 0)
    raise InputError(
        f"image {place} has shape {tuple(pixels.shape)}: expected (H, W), (C, H, W), (H, W, C) or (C, D, H, W), "
        "where C is 1 or 3"
    )
