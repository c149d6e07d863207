"""The options of ``medpfl frontier`` as a typed experiment. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medpfl.core.errors import InputError
from medpfl.core.experiments import limits
from medpfl.core.experiments.experiment import Experiment
from medpfl.core.experiments.groups import Criteria, Run, Victims
from medpfl.core.experiments.options import again, group, option
from medpfl.core.experiments.training import Training
from medpfl.core.experiments.yaml_files import read_text

__all__ = ["RECOMMENDED", "RECOMMENDED_FILE", "Frontier", "is_recommendation"]

RECOMMENDED, RECOMMENDED_FILE = "# Recommended by medpfl frontier", "recommended.yaml"
"""First line and file name of a recommendation. Either one distinguishes it from a YAML file written by hand."""


def is_recommendation(path: str | Path) -> bool:
    """Return True if a YAML file is a frontier's recommendation, possibly from another party."""
    beginning = read_text(path)[:2000]
    return Path(path).name == RECOMMENDED_FILE or RECOMMENDED in beginning


@dataclass(frozen=True, kw_only=True)
class Frontier(Training):
    """Trainings and audits under several defenses. The training options are those of ``medpfl train``."""

    defense: list[str] = option(
        [],
        "defense to compare, e.g. 'DPSGD(noise=geom(0.5, 4, 4))'; repeat for several; join parts with |; sweep "
        "strengths with geom(first, last, n) or lin(first, last, n)",
    )
    limit: list[str] = option(
        [],
        "limit on leakage, e.g. 'asr<=0.05'; measures: asr, ssim, identified, recognized (identified above chance); "
        "the upper end of the 95 % interval must not exceed it; repeat for several; unset: --tolerance for asr and "
        "recognized",
    )
    tolerance: float = again(Criteria, "tolerance")
    accept_leak: bool = option(
        False, "allow recommending a setting that keeps the limits although its audit found a leak"
    )
    seeds: int = option(
        1, "trainings per setting, with consecutive seeds starting at --seed", least=1, most=limits.SEEDS
    )
    round: int = option(
        0,
        "round whose global model is audited; 0: the untrained model, the same for every defense",
        least=0,
        most=limits.ROUNDS,
    )
    attack: list[str] = again(Experiment, "attack")
    grant: list[str] = option([], "extra knowledge for the attacker: labels, order, masks, ...; repeat for several")
    images: int | None = again(
        Victims,
        "images",
        None,
        f"number of images to attack, spread evenly over classes; unset: {limits.USUAL_IMAGES}, or more if the limits "
        "need more updates",
    )
    images_per_update: int = option(1, "number of images in each attacked update", least=1, most=limits.IMAGES)
    draws: int = again(Victims, "draws", text="number of random initializations to audit")
    run: Run = group(Run())

    @property
    def out(self) -> Path:
        """The run directory.

        Raises:
            InputError: ``--out`` was not given.
        """
        if self.run.out is None:
            raise InputError("--out is missing: name a directory for the frontier's runs and figure")
        return Path(self.run.out)
