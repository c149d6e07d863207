"""The output of every data source: labeled images of one shape, and names that only the key file may hold."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from medpfl.core.errors import InputError
from medpfl.core.experiments.limits import CLASSES
from medpfl.data.on_disk import OnDisk

__all__ = ["LabelledImages", "check_numbered"]

_PART = 2**26
"""Number of elements in a part of the images, 256 MiB."""


def check_numbered(classes: int, what: str) -> None:
    """Check that integer labels do not imply too many classes: the model has an output for each.

    Raises:
        InputError: there are more than `CLASSES` classes.
    """
    if classes > CLASSES:
        raise InputError(
            f"{what} go up to {classes - 1}, and every label from 0 upward counts as a class: at most "
            f"{CLASSES} classes are supported"
        )


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """M images of one shape.

    Attributes:
        images: (M, C, H, W), or (M, C, D, H, W) for volumes; float32 in [0, 1]. Sets too large to be held in memory
            are read again whenever they are used: index them like a tensor, or take `parts`.
        labels: (M,) int64 indices into `classes`.
        classes: class names.
        names: M image names relative to the source; shown only in the terminal and the key file.
        patients: the source's M patient ids, ``None`` where unknown; written only to the key file.
        skipped: ``"name: reason"`` for each file that could not be read; shown only in the terminal.
        left_out: number of images not opened because of the source's limit.
        notes: possible problems in how the source was read; shown only in the terminal.
        masks: (M, H, W) or (M, D, H, W) int64 indices into `classes` for segmented images. 0 is the background.
            An image's label is then its most common class above 0, or 0 if it has none.
        spacing: voxel size along D, H and W in mm, if it is known and the same for all volumes.
    """

    images: Tensor | OnDisk
    labels: Tensor
    classes: tuple[str, ...]
    names: tuple[str, ...]
    patients: tuple[str | None, ...]
    skipped: tuple[str, ...] = ()
    left_out: int = 0
    spacing: tuple[float, float, float] | None = None
    masks: Tensor | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of each image: (C, H, W) or (C, D, H, W)."""
        return tuple(self.images.shape[1:])

    def parts(self) -> Iterator[Tensor]:
        """Yield all images in order, in parts (m, C, H, W) of a size that depends on their shape alone."""
        step = max(1, _PART // prod(self.shape))
        for start in range(0, len(self), step):
            yield self.images[start : start + step]

    @cached_property
    def gray(self) -> bool:
        """True if the images have several channels, and these are equal in all of them."""
        return self.shape[0] > 1 and all(bool((part == part[:, :1]).all()) for part in self.parts())

    @cached_property
    def copies(self) -> Tensor:
        """Index (M,) of the first image with the same pixels, for each image; it may be the image itself."""
        first: dict[bytes, int] = {}  # by hashes, because the pixels of all images would be held once more
        sums = (hashlib.sha256(image.numpy().tobytes()).digest() for part in self.parts() for image in part)
        return torch.tensor([first.setdefault(sum_, i) for i, sum_ in enumerate(sums)])
