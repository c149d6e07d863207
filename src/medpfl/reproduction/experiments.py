"""The experiments as files, each in a full, a quick and a faithful form (the notebooks' settings). Free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from pydantic import BaseModel, ConfigDict

from medpfl.core.errors import InputError, nearest
from medpfl.core.experiments.experiment import Experiment

__all__ = ["EXPERIMENTS", "SAMPLES", "SETS", "Study", "StudyPart", "study"]

EXPERIMENTS = ("attacks", "noise", "gaussian", "compression", "defenses", "modalities", "models", "separation")
"""Names of the experiments; each is a YAML file in this package."""

SETS = ("melanoma", "brain_mri", "covid_xray")
"""The paper's data sets, by folder name."""

SAMPLES = "samples"
"""Name for the embedded images, which can replace all sets."""


class StudyPart(BaseModel):
    """One of a study's audits, run on each set.

    Attributes:
        name: name in the tables.
        audit: options that differ from the audit's defaults, by option name.
        images: number of images to attack; `per_class` gives a number per class instead.
        needs_weights: true if it needs a trained network; the user gives its weights.
        training: options for training a network on the attacked images beforehand, if the user gives no weights.
        masks: true if the network segments and learns masks made by `medpfl.data.Thresholded`.
        explained: true if image features are stored beside the rows and related to the results.
        quick, faithful: replacements for the entries above in the quick form, and in the notebooks' form; see
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
        """Return the audit's ``data`` for the images at a place: the place, or a spec that makes masks from them."""
        shape = {name: self.audit[name] for name in ("size", "fit", "channels") if name in self.audit}
        words = [repr(place), *(f"{name}={value!r}" for name, value in shape.items())]
        return f"Thresholded({', '.join(words)})" if self.masks else place

    def experiment(self, data: str, classes: int, held: int, seed: int, device: str = "cpu") -> Experiment:
        """Return the audit of a folder with `held` images in `classes` classes."""
        images = self.images if self.per_class is None else self.per_class * classes
        own = {"data": data, "seed": seed, "device": device, "images": min(images or held, held), "iterates": True}
        return Experiment.of(**{**self.audit, **own})


class Study(BaseModel):
    """One of the paper's experiments.

    Attributes:
        title: the table's title.
        source: where the experiment comes from, and its setting.
        parts: the audits.
        accuracy: options for training a network under each defense, to measure the accuracy it costs; empty to skip
            this.
        accuracy_quick: replacements for some of these options in the quick form.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str
    source: str
    parts: list[StudyPart]
    accuracy: dict[str, Any] = {}
    accuracy_quick: dict[str, Any] = {}

    def only(self, names: Sequence[str]) -> Study:
        """Return the study with only the named parts, or with all parts if none is named."""
        return self.model_copy(update={"parts": [p for p in self.parts if not names or p.name in names]})


def study(name: str) -> Study:
    """Read an experiment.

    Raises:
        InputError: if there is none with this name.
    """
    import yaml

    if name not in EXPERIMENTS:
        raise InputError(f"there is no experiment '{name}'; {nearest(name, EXPERIMENTS)}")
    return Study(**yaml.safe_load((files("medpfl.reproduction") / f"{name}.yaml").read_text()))
