"""In which form a study is made: in full, briefly, as the notebooks had it; how much of it. Free of torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medpfl.core.errors import InputError
from medpfl.core.spec import construct, with_argument
from medpfl.reproduction.experiments import Part

__all__ = ["Form"]

_UNWRITTEN = ("device", "weights")
"""Of a form, what is kept by its runs: a device in every row, of weights that they were given, and no path."""
_COUNTS = ("images", "per_class")
"""How many images are attacked is said by one of these: a form that gives the one takes the other away."""


@dataclass(frozen=True)
class Form:
    """What is asked of every part of a study.

    Attributes:
        quick: few images and steps, to see that it works; the numbers mean little.
        faithful: the notebooks' own settings where they differ from the corrected ones.
        seed: of every random draw.
        images: to attack of each set, at least 1, in place of the experiments' own numbers.
        per_class: the same, of each class of each set.
        steps: of every attack, at least 1, in place of the experiments' own.
        device: ``"cpu"``, ``"cuda"``, ...
        weights: of the trained ResNet-18; without them, one is trained briefly on each set, and the tables say so.

    Raises:
        InputError: a number below 1, or images both of a set and of a class.
    """

    quick: bool = False
    faithful: bool = False
    seed: int = 0
    images: int | None = None
    per_class: int | None = None
    steps: int | None = None
    device: str = "cpu"
    weights: str | Path | None = None

    def __post_init__(self) -> None:
        for name in ("images", "per_class", "steps"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise InputError(f"{name} is {value!r}: it must be a whole number, at least 1")
        if self.images is not None and self.per_class is not None:
            raise InputError("images are counted of each set or of each class: leave out one of images and per_class")

    @classmethod
    def of(cls, options: dict[str, Any]) -> Form:
        """From options by name; an unknown one gets an `InputError` that names the nearest."""
        return construct(cls, "Form", [], options, "study")

    def settings(self) -> dict[str, Any]:
        """What tells two forms apart, for JSON: neither paths nor defaults."""
        default = asdict(Form())
        return {k: v for k, v in asdict(self).items() if k not in _UNWRITTEN and v != default[k]}

    def __str__(self) -> str:
        words = ["quick"] * self.quick + ["faithful"] * self.faithful or ["full"]
        numbers = {"images of each set": self.images, "of each class": self.per_class, "steps": self.steps}
        counted = [f"{number} {what}" for what, number in numbers.items() if number is not None]
        return ", ".join([*words, f"seed {self.seed}", *counted])

    def part(self, part: Part) -> Part:
        """A part in this form: the brief one goes before the notebooks', numbers that were asked for before both."""
        for wanted, other in ((self.faithful, part.faithful), (self.quick, part.quick)):
            if wanted:
                audit = {**part.audit, **other.get("audit", {})}
                counted = dict.fromkeys(_COUNTS) if other.keys() & set(_COUNTS) else {}
                part = part.model_copy(update={**counted, **other, "audit": audit})
        if self.images is not None or self.per_class is not None:
            part = part.model_copy(update={"images": self.images, "per_class": self.per_class})
        if self.steps is not None:
            attacks = [with_argument(attack, "steps", self.steps) for attack in part.audit["attack"]]
            part = part.model_copy(update={"audit": {**part.audit, "attack": attacks}})
        return part
