"""Images with masks that a rule makes: for models that segment, where no one has drawn any."""

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
    """The images that lie at a place, each with the mask of its own bright or dark part.

    The threshold is Otsu's (1979, IEEE Trans. SMC 9(1), 62-66) of the image's gray values, as it is fitted; the side
    of it that most of the border is on is the background. So the head is found in an MR slice, the lesion on skin.
    Such masks stand in for drawn ones in measurements of what leaks; they are no ground truth of anatomy.

    Attributes:
        path: of a folder or file of images, of any kind that is told by itself; or ``"samples"``.
        size, fit, channels: as in `medpfl.data.target.Target`.

    Raises:
        InputError: an argument is out of range.
    """

    def load(self) -> LabelledImages:
        """The images as their own source has them; their classes are those of the masks.

        Raises:
            InputError: what the source raises, or no image has two gray values.
        """
        options = {"size": self.size, "fit": self.fit, "channels": self.channels}
        place = str(self.path)
        data = (Samples(**options) if place == "samples" else source_at(place, **options)).load()
        masks = torch.stack([_mask(image.mean(0)) for image in data.images])
        if not masks.any():
            raise InputError(f"no image in '{place}' has a bright and a dark part: there is nothing to segment")
        return replace(data, masks=masks, labels=class_of(masks), classes=("background", "structure"))


def _mask(gray: Tensor) -> Tensor:
    """1 on the side of the threshold that less of the border is on; (H, W) or (D, H, W) int64."""
    above = gray >= otsu(gray)
    inside = above[(slice(1, -1),) * gray.ndim]
    border = (above.sum() - inside.sum()) / (above.numel() - inside.numel())
    return (~above if border > 0.5 else above).long()


def otsu(values: Tensor) -> float:
    """The value that splits values in [0, 1], of any shape, into two groups with the most variance between them.

    It is the least of the upper group: the edge between two of 256 bins.
    """
    counts = torch.histc(values.double(), _BINS, 0, 1)
    centers = (torch.arange(_BINS, dtype=torch.float64) + 0.5) / _BINS
    below, sums = counts.cumsum(0), (counts * centers).cumsum(0)
    above, rest = below[-1] - below, sums[-1] - sums
    between = below * above * (sums / below - rest / above).square()
    return (int(between.nan_to_num(-1).argmax()) + 1) / _BINS
