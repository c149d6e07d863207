"""In which form a study is made: in full, briefly, as the notebooks had it; how much of it. Free of torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medpfl.core.errors import InputError
from medpfl.core.experiments import limits
from medpfl.core.experiments.groups import Run
from medpfl.core.experiments.options import Options, again, group, option
from medpfl.core.spec import with_argument
from medpfl.reproduction.experiments import EXPERIMENTS, SETS, StudyPart

__all__ = ["Form", "Scale", "Studies"]

_UNWRITTEN = ("device", "weights")
"""Of a form, what is kept by its runs: a device in every row, of weights that they were given, and no path."""
_COUNTS = ("images", "per_class")
"""How many images are attacked is said by one of these: a form that gives the one takes the other away."""


@dataclass(frozen=True, kw_only=True)
class Scale(Options):
    """How much of every part of a study is run.

    Attributes:
        quick: few images and steps, to see that it works; the numbers mean little.
        faithful: the notebooks' own settings where they differ from the corrected ones.
        images: to attack of each set, at least 1, in place of the experiments' own numbers.
        images_per_class: the same, of each class of each set.
        steps: of every attack, at least 1, in place of the experiments' own.
        weights: of the trained ResNet-18; without them, one is trained briefly on each set, and the tables say so.

    Raises:
        InputError: a number below 1, or images both of a set and of a class.
    """

    images: int | None = option(
        None, "images per data set, instead of the experiment's own number", least=1, most=limits.IMAGES
    )
    images_per_class: int | None = option(
        None,
        "images per class in each data set, instead of the experiment's own number",
        least=1,
        most=limits.IMAGES,
    )
    steps: int | None = option(
        None, "steps of every attack, instead of the attack's own number", least=1, most=limits.STEPS
    )
    weights: str | Path | None = option(None, "weights file of a trained ResNet-18", kind=str | None)
    quick: bool = option(False, "quick trial with few images and steps; its results mean little")
    faithful: bool = option(False, "use the original notebooks' settings where ours differ")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.images is not None and self.images_per_class is not None:
            raise InputError(
                "images are counted of each set or of each class: leave out one of images and images_per_class"
            )


@dataclass(frozen=True, kw_only=True)
class Form(Scale):
    """A scale, under a seed and on a device: what is asked of every part of a study.

    Attributes:
        seed, device: as in `medpfl.core.experiments.groups.Run`.
        images, images_per_class, steps, weights, quick, faithful: as in `Scale`.
    """

    seed: int = again(Run, "seed")
    device: str = again(Run, "device")

    def settings(self) -> dict[str, Any]:
        """What tells two forms apart, for JSON: neither paths nor defaults."""
        default = asdict(Form())
        return {k: v for k, v in asdict(self).items() if k not in _UNWRITTEN and v != default[k]}

    def __str__(self) -> str:
        words = ["quick"] * self.quick + ["faithful"] * self.faithful or ["full"]
        numbers = {"images of each set": self.images, "of each class": self.images_per_class, "steps": self.steps}
        counted = [f"{number} {what}" for what, number in numbers.items() if number is not None]
        return ", ".join([*words, f"seed {self.seed}", *counted])

    def part(self, part: StudyPart) -> StudyPart:
        """A part in this form: the brief one goes before the notebooks', numbers that were asked for before both."""
        for wanted, other in ((self.faithful, part.faithful), (self.quick, part.quick)):
            if wanted:
                audit = {**part.audit, **other.get("audit", {})}
                counted = dict.fromkeys(_COUNTS) if other.keys() & set(_COUNTS) else {}
                part = part.model_copy(update={**counted, **other, "audit": audit})
        if self.images is not None or self.images_per_class is not None:
            part = part.model_copy(update={"images": self.images, "per_class": self.images_per_class})
        if self.steps is not None:
            attacks = [with_argument(attack, "steps", self.steps) for attack in part.audit["attack"]]
            part = part.model_copy(update={"audit": {**part.audit, "attack": attacks}})
        return part


@dataclass(frozen=True, kw_only=True)
class Studies(Options):
    """What ``medpfl reproduce`` is asked for."""

    experiment: list[str] = option([], f"experiments to run, from {', '.join(EXPERIMENTS)}; if omitted: all")
    data: str = option(".", f"folder that contains the folders {', '.join(SETS)}")
    part: list[str] = option([], "part to run, as named in the tables' attack column; repeat for several; default: all")
    sets: str | None = option(None, "YAML file with other folders, one line per data set: 'melanoma: path'")
    published: str | None = option(None, "CSV file with published values to show beside ours")
    from_: str | None = option(None, "directory of an earlier reproduction: rebuild its tables, run nothing")
    scale: Scale = group(Scale())
    run: Run = group(
        Run(out="runs/reproduction"),
        without=("memory", "isolate"),
        texts={"out": "directory for runs and tables", "force": "discard results of other settings in --out"},
    )
