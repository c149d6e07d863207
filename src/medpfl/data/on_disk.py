"""Images read from files: held in memory if they are few, else decoded again whenever they are used."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from math import prod
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from medpfl.core.errors import InputError
from medpfl.core.shared_memory import empty
from medpfl.data.reading.resize import with_channels

__all__ = ["HELD", "Gathered", "OnDisk", "batched", "gathered"]

HELD = 2**29
"""Number of float32 elements, 2 GiB, that a source's images may have to be held in memory."""

_TOGETHER = 64
"""Number of images or files that are decoded together."""

T = TypeVar("T")
Read = Callable[[Sequence[T]], Generator[tuple[T, "Tensor | str | None"], None, None]]
"""Function that reads units, one image each. It yields each unit, in order, with its image, (1 or 3, H, W) or (1 or 3,
D, H, W); with the reason why it cannot be read; or with None if it is to be left out without a reason."""


class Gathered(NamedTuple, Generic[T]):
    """The images of a source, and the units that have none.

    Attributes:
        units: the M units with an image, in order.
        images: their images (M, C, H, W) or (M, C, D, H, W).
        unread: the reason for each unit that could not be read.
    """

    units: list[T]
    images: Tensor | OnDisk
    unread: dict[T, str]


class OnDisk:
    """M images of one shape that are read whenever they are used. An index returns a tensor, as for a tensor.

    Args:
        read: function that returns the images at some positions, in ascending order, as they are in their files:
            (1 or 3, H, W) or (1 or 3, D, H, W).
        sums: hash of each image as it was at first.
        shape: shape of each image.
    """

    dtype = torch.float32

    def __init__(
        self, read: Callable[[list[int]], Generator[Tensor, None, None]], sums: list[bytes], shape: tuple[int, ...]
    ) -> None:
        self._read, self._sums = read, sums
        self.shape = torch.Size((len(sums), *shape))

    @property
    def ndim(self) -> int:
        """Number of axes, that of the images included."""
        return len(self.shape)

    def __len__(self) -> int:
        return len(self._sums)

    def __getitem__(self, index: Any) -> Tensor:
        """Read the images at a position, a slice, or a list or tensor of positions or of booleans.

        Raises:
            InputError: a file has changed since it was first read.
        """
        places = torch.arange(len(self))[index]
        needed, order = places.flatten().unique(return_inverse=True)
        images = torch.empty(len(needed), *self.shape[1:])
        with closing(self._read(needed.tolist())) as found:  # at once after an error, since readers mute warnings
            for i, (place, image) in enumerate(zip(needed.tolist(), found, strict=True)):
                if _sum(image) != self._sums[place]:
                    raise InputError(_CHANGED)
                images[i] = with_channels(image, self.shape[1])
        if len(needed) == len(order) and places.ndim == 1 and order.equal(torch.arange(len(order))):
            return images
        return images[order.view(places.shape)]

    def at(self, places: Tensor) -> OnDisk:
        """Return the images at some positions, in ascending order, without reading any."""
        chosen = places.tolist()
        sums = [self._sums[place] for place in chosen]
        return OnDisk(lambda needed: self._read([chosen[place] for place in needed]), sums, tuple(self.shape[1:]))


_CHANGED = "an image file changed while it was in use: repeat the command when the data no longer changes"


def gathered(units: Sequence[T], read: Read[T], channels: int | None) -> Gathered[T]:
    """Read every unit once, and return the images: as a tensor if that has at most `HELD` elements.

    Args:
        units: the images to read.
        read: function that reads them; a larger set is read with it again whenever its images are used.
        channels: 1, 3, or ``None``: 1 if all are gray, else 3, as in `medpfl.data.reading.resize.stacked`.
    """
    kept, sums, unread = list[T](), list[bytes](), dict[T, str]()
    shape: tuple[int, ...] = (channels or 1,)
    held: Tensor | None = torch.empty(0)
    with closing(read(units)) as found:
        for unit, image in found:
            if isinstance(image, Tensor):
                shape = (channels or max(shape[0], len(image)), *image.shape[1:])
                if (held := _room(held, len(kept), (len(units), *shape))) is not None:
                    held[len(kept)] = with_channels(image, shape[0])
                kept.append(unit)
                sums.append(_sum(image))
            elif image is not None:
                unread[unit] = image
    if held is not None:
        return Gathered(kept, held[: len(kept)], unread)

    def again(places: list[int]) -> Generator[Tensor, None, None]:
        with closing(read([kept[place] for place in places])) as found:
            for _, image in found:
                if not isinstance(image, Tensor):
                    raise InputError(_CHANGED)
                yield image

    return Gathered(kept, OnDisk(again, sums, shape), unread)


def batched(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Yield the items in batches to decode together, so that decoded images do not pile up."""
    for start in range(0, len(items), _TOGETHER):
        yield items[start : start + _TOGETHER]


def _room(held: Tensor | None, count: int, shape: tuple[int, ...]) -> Tensor | None:
    """Return a tensor of a shape that begins with the `count` images of `held`; None if it or `held` is too large."""
    if held is None or prod(shape) > HELD:
        return None
    if held.shape == shape:
        return held
    room = empty(shape)
    if count:  # gray images, until the first one in color
        room[:count] = held[:count]
    return room


def _sum(image: Tensor) -> bytes:
    return hashlib.sha256(image.contiguous().numpy().data).digest()
