"""The options of ``medpfl evaluate`` as a typed experiment. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from medpfl.core.experiments.experiment import Experiment
from medpfl.core.experiments.groups import Reading, Run
from medpfl.core.experiments.options import Options, again, group, option
from medpfl.core.plan import Plan

__all__ = ["EDITIONS", "FIXED", "Edition", "Evaluating"]


@dataclass(frozen=True)
class Edition:
    """The settings of a standard evaluation, which never change once the edition is published.

    Attributes:
        attack: spec of the attack.
        images: number of images, if there are as many.
        seed: seed of all random draws.
    """

    attack: str
    images: int
    seed: int = 0


EDITIONS = {"standard-2026.1": Edition("WorstCase(evaluations=1000)", images=100)}
"""All editions by name; the last one is the current one."""


FIXED = ("seed", "memory", "minutes", "isolate", "threads")
"""Fields of `Run` that an edition sets: rows depend on them, or they are for other attacks than its own."""


@dataclass(frozen=True, kw_only=True)
class Evaluating(Options):
    """A standard evaluation's options as strings and numbers. What is not an option, the edition sets."""

    data: str = again(
        Experiment, "data", text="folder with one subfolder per class, 'samples', or file.py:Name of a data source"
    )
    model: str = again(Experiment, "model")
    weights: str | None = again(Experiment, "weights")
    defense: list[str] = again(Experiment, "defense")
    edition: Literal["standard-2026.1"] = option("standard-2026.1", "edition of the standard evaluation")
    reading: Reading = group(Reading())
    plan: Plan = group(Plan())
    run: Run = group(Run(), without=FIXED)
