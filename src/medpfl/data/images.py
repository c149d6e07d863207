"""What every data source gives: labelled images of one shape, and names that only the key file may hold."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from medpfl.core.errors import InputError
from medpfl.core.experiments.limits import CLASSES

__all__ = ["LabelledImages", "check_numbered"]


def check_numbered(classes: int, what: str) -> None:
    """Check how many classes labels stand for that are numbers from 0 on: a model has an output for each.

    Raises:
        InputError: more than `CLASSES`.
    """
    if classes > CLASSES:
        raise InputError(
            f"{what} go up to {classes - 1}, and labels are the numbers of classes, counted from 0: at most "
            f"{CLASSES} classes are read"
        )


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """M images of one shape.

    Attributes:
        images: (M, C, H, W), or (M, C, D, H, W) for volumes; float32 in [0, 1].
        labels: (M,) int64 indices of `classes`.
        classes: names; a label is a place among them.
        names: M, relative to the source; for the terminal and the key file only.
        patients: M, the source's own patient ids, ``None`` where unknown; for the key file only.
        skipped: ``"name: reason"`` of each file that could not be read; for the terminal only.
        left_out: images of the source that its own limit left unopened.
        notes: what to doubt of how the source was read; for the terminal only.
        masks: (M, H, W) or (M, D, H, W) int64 indices of `classes`, where the images are segmented; 0 is the
            background. `labels` then hold, for each image, its commonest class above 0, or 0.
        spacing: of the voxels of volumes along D, H and W in mm, where it is known and the same for all.
    """

    images: Tensor
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
        """(C, H, W) or (C, D, H, W) of every image."""
        return tuple(self.images.shape[1:])

    @cached_property
    def copies(self) -> Tensor:
        """(M,) for each image the index of the first one with exactly the same pixels, which may be itself."""
        first: dict[bytes, int] = {}
        return torch.tensor([first.setdefault(image.numpy().tobytes(), i) for i, image in enumerate(self.images)])
