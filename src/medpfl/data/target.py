"""Arguments shared by data sources: path, image size and shape, and the number of images."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import get_args

from medpfl.core.errors import InputError, nearest
from medpfl.core.experiments.limits import SIDE
from medpfl.core.roles import DataSource
from medpfl.data.reading.resize import Fit

__all__ = ["LimitedTarget", "Located", "Target"]

_SMALLEST = 8

# Dataclasses collect fields from the last base to the first, so `Source(Target, Located)` has the arguments path,
# size, fit, channels. Bases compare by identity, sources by value.


@dataclass(frozen=True, repr=False, eq=False)
class Located(DataSource):
    """A source at a path. The path is not part of its spec.

    Attributes:
        path: a folder or file.
    """

    path: str | os.PathLike[str] = field(repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "path", os.fspath(self.path))


@dataclass(frozen=True, repr=False, eq=False)
class Target(DataSource):
    """A source that converts all images to one size and one number of channels.

    Attributes:
        size: length of all sides in pixels, from 8 to 4096.
        fit: ``"crop"`` (scale the shorter side to `size`, keep the center) or ``"squash"`` (scale all sides to `size`).
        channels: 1 (gray), 3 (RGB), or ``None``: 1 if every image is gray, else 3.

    Raises:
        InputError: an argument is out of range.
    """

    size: int = 32
    fit: Fit = "crop"
    channels: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        size = self.size
        # A class's own default is always valid: for `Arrays` it is None.
        if size is not type(self).size and (type(size) is not int or not _SMALLEST <= size <= SIDE):
            raise InputError(f"size={size!r} must be a whole number of pixels, {_SMALLEST} or more and at most {SIDE}")
        if self.fit not in get_args(Fit):
            raise InputError(f"there is no fit {self.fit!r}; {nearest(str(self.fit), get_args(Fit))}")
        if self.channels is not None and (type(self.channels) is not int or self.channels not in (1, 3)):
            raise InputError(f"channels={self.channels!r} must be None, 1 (gray) or 3 (RGB)")


@dataclass(frozen=True, repr=False, eq=False)
class LimitedTarget(Target):
    """A `Target` with a limit on the number of images.

    Attributes:
        limit: maximum number of images, sampled evenly over classes and over each class's files in order.
    """

    limit: int = 2000

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.limit) is not int or self.limit < 1:
            raise InputError(f"limit={self.limit!r} must be a whole number of images, 1 or more")
