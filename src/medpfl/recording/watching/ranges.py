"""The mapping by which pixels enter a watched model, inferred from their values: the loader itself is not seen."""

from __future__ import annotations

import torch
from torch import Tensor

from medpfl.core.records.origin import Pixels

__all__ = ["Ranges"]

_BYTES = 255.0
_USUAL = ((0.0, 1.0), (-1.0, 1.0), (0.0, _BYTES))
"""Usual ranges of pixels, the narrowest first."""
_DARK = 0.1 * _BYTES
"""Brightest pixel up to which images are not taken for bytes: they would be black."""

_LOADERS = (
    ((0.5,), (0.5,)),
    ((0.5,), (0.25,)),
    ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ((0.449,), (0.226,)),
    ((0.5,), (0.225,)),
    ((0.5,), (0.2,)),
    ((0.5,), (1.0,)),
    ((0.1307,), (0.3081,)),
    ((0.2860,), (0.3530,)),
    ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
)
"""Means and deviations of usual loaders: simple ones, and those of ImageNet (in color, gray), MNIST, CIFAR and CLIP."""

_GRAY_LEVELS = 255
_EXACT = 0.02
"""Largest distance of a value from a gray level, in gray levels, that rounding explains."""
_NEAR = 0.05
"""Largest part of a loader's range that images may leave empty at either end, if their values are no gray levels."""
_LOOKED_AT = 4096
"""Values of an image's channel that are compared with gray levels."""


class Ranges:
    """The values that entered a model: their range in each channel, and the loaders under which all are gray levels."""

    def __init__(self) -> None:
        self._low: Tensor | None = None
        self._high: Tensor | None = None
        self._levels = dict.fromkeys(range(len(_LOADERS)), True)

    def take(self, images: Tensor) -> None:
        """Note the values of a batch (N, C, ...) of floating-point numbers."""
        values = images.transpose(0, 1).flatten(1)
        if not values.numel():
            return
        low, high = values.amin(1), values.amax(1)
        self._low = low if self._low is None else torch.minimum(self._low, low)
        self._high = high if self._high is None else torch.maximum(self._high, high)
        some = images.flatten(2)
        some = some[..., :: max(some.shape[-1] // _LOOKED_AT, 1)]
        for place in [place for place, held in self._levels.items() if held]:
            self._levels[place] = _are_levels(some, *_LOADERS[place])

    @property
    def pixels(self) -> Pixels | None:
        """The mapping that explains the values, or ``None`` before any; see docs/records.md.

        It is the first of: a range of 0 to 1; a usual loader under which all values are gray levels of 8 bits; another
        usual range; a usual loader whose range they nearly fill; their own range.
        """
        if self._low is None or self._high is None:
            return None
        low, high = float(self._low.min()), float(self._high.max())
        usual = [(a, b) for a, b in _USUAL if a <= low and high <= b and (b < _BYTES or high > _DARK)]
        if usual[:1] == [(0.0, 1.0)]:
            return Pixels(0.0, 1.0, inferred=True)
        of_levels = [pair for place, pair in enumerate(_LOADERS) if self._levels[place]]
        if of_levels:
            return _stated(*of_levels[0])
        if usual:
            return Pixels(*usual[0], inferred=True)
        filled = [pair for pair in _LOADERS if self._fills(*pair)]
        if filled:
            return _stated(*min(filled, key=lambda pair: 1 / min(pair[1])))
        return Pixels(low, high, inferred=True) if low < high else None

    def _fills(self, mean: tuple[float, ...], std: tuple[float, ...]) -> bool:
        """Return True if each channel lies in a loader's range, and nearly fills it."""
        assert self._low is not None
        assert self._high is not None
        if len(mean) not in (1, len(self._low)):
            return False
        low = self._low.double() * torch.tensor(std) + torch.tensor(mean)
        high = self._high.double() * torch.tensor(std) + torch.tensor(mean)
        inside = bool((low > -1e-4).all() and (high < 1 + 1e-4).all())
        return inside and bool((low < _NEAR).all() and (high > 1 - _NEAR).all())


def _are_levels(values: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> bool:
    """Return True if values (N, C, L) are gray levels of 8 bits under a loader's mean and deviation."""
    if len(mean) not in (1, values.shape[1]):
        return False
    scale, offset = (torch.tensor(one, dtype=torch.float64).view(1, -1, 1) for one in (std, mean))
    levels = (values.double() * scale + offset) * _GRAY_LEVELS
    if float(levels.min()) < -_EXACT or float(levels.max()) > _GRAY_LEVELS + _EXACT:
        return False
    return float((levels - levels.round()).abs().max()) <= _EXACT


def _stated(mean: tuple[float, ...], std: tuple[float, ...]) -> Pixels:
    return Pixels(mean=mean, std=std, inferred=True)
