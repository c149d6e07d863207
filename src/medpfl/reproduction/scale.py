"""The form and size of a study: full, quick, or faithful to the notebooks. Free of torch."""

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
"""Settings not stored with a form, since its runs record them: the device in every row, and the use of weights."""
_COUNTS = ("images", "per_class")
"""Only one of these sets the number of images: a form that sets one removes the other."""


@dataclass(frozen=True, kw_only=True)
class Scale(Options):
    """The amount of work for each study part.

    Attributes:
        quick: few images and steps, to see that everything works; the numbers mean little.
        faithful: the notebooks' settings where they differ from the corrected ones.
        images: images to attack in each set, at least 1, instead of the experiments' own number.
        images_per_class: images to attack in each class of each set, instead of the experiments' own number.
        steps: steps for every attack, at least 1, instead of the experiments' own number.
        weights: weights file for the trained ResNet-18; without one, the network is trained briefly on each set, and
            the tables say so.

    Raises:
        InputError: if a number is below 1, or both `images` and `images_per_class` are given.
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
            raise InputError("images are counted either per set or per class: leave out images or images_per_class")


@dataclass(frozen=True, kw_only=True)
class Form(Scale):
    """A scale with a seed and a device, applied to each part of a study.

    Attributes:
        seed, device: as in `medpfl.core.experiments.groups.Run`.
        images, images_per_class, steps, weights, quick, faithful: as in `Scale`.
    """

    seed: int = again(Run, "seed")
    device: str = again(Run, "device")

    def settings(self) -> dict[str, Any]:
        """Return the settings that distinguish this form, for JSON, without paths and defaults."""
        default = asdict(Form())
        return {k: v for k, v in asdict(self).items() if k not in _UNWRITTEN and v != default[k]}

    def __str__(self) -> str:
        words = ["quick"] * self.quick + ["faithful"] * self.faithful or ["full"]
        numbers = {"images of each set": self.images, "of each class": self.images_per_class, "steps": self.steps}
        counted = [f"{number} {what}" for what, number in numbers.items() if number is not None]
        return ", ".join([*words, f"seed {self.seed}", *counted])

    def part(self, part: StudyPart) -> StudyPart:
        """Return a part in this form. Quick settings override faithful ones, and explicit numbers override both."""
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
    """The options of ``medpfl reproduce``."""

    experiment: list[str] = option([], f"experiments to run, from {', '.join(EXPERIMENTS)}; if omitted: all")
    data: str = option(".", f"folder that contains the folders {', '.join(SETS)}")
    part: list[str] = option([], "part to run, as named in the tables' attack column; repeat for several; default: all")
    sets: str | None = option(None, "YAML file with other folders, one line per data set: 'melanoma: path'")
    published: str | None = option(None, "CSV file with published values to show beside ours")
    from_: str | None = option(None, "directory of an earlier reproduction: rebuild its tables, run nothing")
    scale: Scale = group(Scale())
    run: Run = group(
        Run(out="runs/reproduction"),
        without=("memory", "isolate", "threads", "numbers_only", "title", "site", "contact", "alias"),
        texts={"out": "directory for runs and tables", "force": "discard results of other settings in --out"},
    )
