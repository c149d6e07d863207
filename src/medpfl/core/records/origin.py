"""The origin of a record: the framework that made it, and how pixels enter the client's model. No torch import."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from medpfl.core.errors import InputError
from medpfl.core.experiments.limits import CLASSES, NAME, ROUNDS, check_whole, shortened

__all__ = ["CHECKPOINTS", "Pixels", "Source"]

CHECKPOINTS = "two checkpoints"
"""Framework of a record that was made from two states of a model, so that nobody watched the training."""

_MOST_VERSIONS = 40


@dataclass(frozen=True)
class Source:
    """The framework that made a record. It names neither site nor path.

    Attributes:
        framework: name, such as ``Flower``; ``torch`` for a plain loop.
        versions: versions of packages by name.
        round: the federation's round, if known.
        place: ``client`` or ``server``, where the update was recorded.
    """

    framework: str = "torch"
    versions: Mapping[str, str] = field(default_factory=dict)
    round: int | None = None
    place: Literal["client", "server"] = "client"

    def __post_init__(self) -> None:
        _check_text("framework", self.framework)
        if not isinstance(self.versions, Mapping) or len(self.versions) > _MOST_VERSIONS:
            raise InputError(f"versions is {shortened(self.versions)}: it must be an object with few entries")
        for name, version in self.versions.items():
            _check_text("a package in versions", name)
            _check_text("a version", version)
        if self.round is not None:
            check_whole("round", self.round, 0, ROUNDS)
        if self.place not in ("client", "server"):
            raise InputError(f"place is {shortened(self.place)}: choose client or server")

    @classmethod
    def from_dict(cls, told: Any) -> Source:
        """Return the source in a JSON object; raise `InputError` if it is not valid."""
        return cls(**_object("source", told, cls))


@dataclass(frozen=True)
class Pixels:
    """The mapping from an image in [0, 1] to what enters the client's model.

    A pixel x enters as ``(x - mean) / std`` with the numbers of its channel if these are known, and otherwise as
    ``low + x * (high - low)``.

    Attributes:
        low, high: the range of pixels that enter the model.
        mean, std: per channel, or one number for all; both or none.
        inferred: True if a watch inferred the mapping from the images' values, since nobody stated it.
    """

    low: float = 0.0
    high: float = 1.0
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    inferred: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.inferred, bool):
            raise InputError(f"pixels: inferred is {shortened(self.inferred)}: it must be true or false")
        for name in ("low", "high"):
            _check_number(name, getattr(self, name))
        if not self.low < self.high:
            raise InputError(f"pixels range from {self.low} to {self.high}: low must be below high")
        if (self.mean is None) != (self.std is None):
            raise InputError("pixels have a mean without a std, or the reverse: give both or none")
        for name in ("mean", "std"):
            object.__setattr__(self, name, _numbers(name, getattr(self, name)))
        if self.std is not None and (len(self.std) != len(self.mean or ()) or min(self.std) <= 0):
            raise InputError("pixels: std needs as many numbers as mean, all above 0")

    @property
    def plain(self) -> bool:
        """True if images enter the model as they are, in [0, 1]."""
        return self.offset == (0.0,) and self.scale == (1.0,)

    @property
    def offset(self) -> tuple[float, ...]:
        """Mean per channel, or one for all: an image x enters the model as ``(x - offset) / scale``."""
        return self.mean if self.mean is not None else ((0.0 - self.low) / (self.high - self.low),)

    @property
    def scale(self) -> tuple[float, ...]:
        """Standard deviation per channel, or one for all; see `offset`."""
        return self.std if self.std is not None else (1 / (self.high - self.low),)

    def to_dict(self) -> dict[str, Any]:
        """Return the mapping as a JSON object, with `inferred` only if it is."""
        told = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}
        return told if self.inferred else {name: v for name, v in told.items() if name != "inferred"}

    @classmethod
    def from_dict(cls, told: Any) -> Pixels:
        """Return the mapping in a JSON object; raise `InputError` if it is not valid."""
        return cls(**_object("pixels", told, cls))


def _object(what: str, told: Any, kind: type) -> dict[str, Any]:
    if not isinstance(told, dict) or not set(told) <= set(kind.__dataclass_fields__):  # type: ignore[attr-defined]
        raise InputError(f"{what} is {shortened(told)}: it must be an object with the fields of docs/records.md")
    return told


def _check_text(what: str, text: Any) -> None:
    if not isinstance(text, str) or len(text) > NAME:
        raise InputError(f"{what} is {shortened(text)}: it must be a short text")


def _check_number(what: str, value: Any) -> None:
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not abs(value) < 1e9
        or not math.isfinite(value)
    ):
        raise InputError(f"pixels: {what} is {shortened(value)}: it must be a finite number")


def _numbers(what: str, told: Any) -> tuple[float, ...] | None:
    if told is None:
        return None
    if not isinstance(told, list | tuple) or not 1 <= len(told) <= CLASSES:
        raise InputError(f"pixels: {what} is {shortened(told)}: it must be a list of numbers, one per channel")
    for value in told:
        _check_number(what, value)
    return tuple(float(value) for value in told)
