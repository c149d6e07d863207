"""The experiments as files: what is audited, in full, briefly, and as the notebooks had it. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from pydantic import BaseModel, ConfigDict

from medpfl.core.errors import InputError, nearest
from medpfl.core.experiments.experiment import Experiment

__all__ = ["EXPERIMENTS", "SAMPLES", "SETS", "Study", "StudyPart", "study"]

EXPERIMENTS = ("attacks", "noise", "gaussian", "compression", "defenses", "modalities", "models")
"""By name, the files of this package."""

SETS = ("melanoma", "brain_mri", "covid_xray")
"""The paper's data sets, as their folders are called."""

SAMPLES = "samples"
"""In place of all sets: the embedded images."""


class StudyPart(BaseModel):
    """One audit of a study, on each of its sets.

    Attributes:
        name: in the tables.
        audit: what differs from the audit's own defaults, as its options are called.
        images: how many to attack; or `per_class`, so many of each class.
        needs_weights: whether it is of a trained network, whose weights the user gives.
        training: how a network is trained on the images that are attacked before it is, if the user does not give
            the weights that it needs.
        masks: whether the network segments, and learns masks that `medpfl.data.Thresholded` makes of the images.
        explained: whether what its images are like is kept beside the rows, and set against them.
        quick, faithful: what is put in place of the above in the brief form, and in that of the notebooks; see
            `medpfl.reproduction.scale.Form`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    audit: dict[str, Any]
    images: int | None = None
    per_class: int | None = None
    needs_weights: bool = False
    training: dict[str, Any] = {}
    masks: bool = False
    explained: bool = False
    quick: dict[str, Any] = {}
    faithful: dict[str, Any] = {}

    def data(self, place: str) -> str:
        """What an audit of the images at a place is given: the place, or how masks are made of them."""
        shape = {name: self.audit[name] for name in ("size", "fit", "channels") if name in self.audit}
        words = [repr(place), *(f"{name}={value!r}" for name, value in shape.items())]
        return f"Thresholded({', '.join(words)})" if self.masks else place

    def experiment(self, data: str, classes: int, held: int, seed: int, device: str = "cpu") -> Experiment:
        """The audit of a folder that holds so many images of so many classes."""
        images = self.images if self.per_class is None else self.per_class * classes
        own = {"data": data, "seed": seed, "device": device, "images": min(images or held, held), "iterates": True}
        return Experiment.of(**{**self.audit, **own})


class Study(BaseModel):
    """An experiment of the paper: a title, where it is from, and its parts.

    Attributes:
        accuracy: how a network is trained under each defense of the parts, to say what the defense costs; empty: it is
            not said. `accuracy_quick` is put in place of some of it in the brief form.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str
    source: str
    parts: list[StudyPart]
    accuracy: dict[str, Any] = {}
    accuracy_quick: dict[str, Any] = {}

    def only(self, names: Sequence[str]) -> Study:
        """The study with the parts of these names alone; all of them where none is named."""
        return self.model_copy(update={"parts": [p for p in self.parts if not names or p.name in names]})


def study(name: str) -> Study:
    """The experiment of a name.

    Raises:
        InputError: there is none.
    """
    import yaml

    if name not in EXPERIMENTS:
        raise InputError(f"there is no experiment '{name}'; {nearest(name, EXPERIMENTS)}")
    return Study(**yaml.safe_load((files("medpfl.reproduction") / f"{name}.yaml").read_text()))
