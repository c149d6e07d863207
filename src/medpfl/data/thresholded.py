"""Images with automatic masks, for segmentation models without annotated data."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from medpfl.core.errors import InputError
from medpfl.data.choose import source_at
from medpfl.data.images import LabelledImages
from medpfl.data.reading.masks import class_of
from medpfl.data.samples import Samples
from medpfl.data.target import Located, Target

__all__ = ["Thresholded", "otsu"]

_BINS = 256


@dataclass(frozen=True, repr=False)
class Thresholded(Target, Located):
    """Images, each with a mask that separates its bright part from its dark part.

    The threshold is Otsu's (1979, IEEE Trans. SMC 9(1), 62-66), computed on the resized image's gray values. The side
    that covers most of the border is the background. This finds the head in an MR slice and a lesion on skin. Such
    masks replace annotations when leakage is measured; they are no anatomical ground truth.

    Attributes:
        path: a folder or file of images in any format that is recognized automatically; or ``"samples"``.
        size, fit, channels: as in `medpfl.data.target.Target`.

    Raises:
        InputError: an argument is out of range.
    """

    def load(self) -> LabelledImages:
        """Return the images as their own source reads them, with classes from the masks.

        Raises:
            InputError: the source raises it, or no image has two gray values.
        """
        options = {"size": self.size, "fit": self.fit, "channels": self.channels}
        place = str(self.path)
        data = (Samples(**options) if place == "samples" else source_at(place, **options)).load()
        masks = torch.stack([_mask(image.mean(0)) for part in data.parts() for image in part])
        if not masks.any():
            raise InputError(f"no image in '{place}' has both a bright and a dark part: there is nothing to segment")
        return replace(data, masks=masks, labels=class_of(masks), classes=("background", "structure"))


def _mask(gray: Tensor) -> Tensor:
    """Return a mask, (H, W) or (D, H, W) int64, with 1 on the side of the threshold that covers less of the border."""
    above = gray >= otsu(gray)
    inside = above[(slice(1, -1),) * gray.ndim]
    border = (above.sum() - inside.sum()) / (above.numel() - inside.numel())
    return (~above if border > 0.5 else above).long()


def otsu(values: Tensor) -> float:
    """Return Otsu's threshold for values in [0, 1], of any shape: it maximizes the variance between the two groups.

    The threshold is the lower end of the upper group: the edge between two of 256 bins.
    """
    counts = torch.histc(values.double(), _BINS, 0, 1)
    centers = (torch.arange(_BINS, dtype=torch.float64) + 0.5) / _BINS
    below, sums = counts.cumsum(0), (counts * centers).cumsum(0)
    above, rest = below[-1] - below, sums[-1] - sums
    between = below * above * (sums / below - rest / above).square()
    return (int(between.nan_to_num(-1).argmax()) + 1) / _BINS
