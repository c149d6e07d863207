"""The typed frontier: what ``medpfl frontier`` and a YAML file say. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medpfl.core.errors import InputError
from medpfl.core.experiments import limits
from medpfl.core.experiments.experiment import Experiment
from medpfl.core.experiments.groups import Criteria, Run, Victims
from medpfl.core.experiments.options import again, group, option
from medpfl.core.experiments.training import Training
from medpfl.core.yaml_files import read_text

__all__ = ["RECOMMENDED", "RECOMMENDED_FILE", "Frontier", "is_recommendation"]

RECOMMENDED, RECOMMENDED_FILE = "# Recommended by medpfl frontier", "recommended.yaml"
"""How a recommendation begins, and what it is called: either tells it from a YAML file that a person wrote."""


def is_recommendation(path: str | Path) -> bool:
    """Whether a YAML file is what a frontier recommended, perhaps another party's."""
    beginning = read_text(path)[:2000]
    return Path(path).name == RECOMMENDED_FILE or RECOMMENDED in beginning


@dataclass(frozen=True, kw_only=True)
class Frontier(Training):
    """Trainings and audits under several defenses as strings and numbers; the training is as of ``medpfl train``."""

    defense: list[str] = option([], "spec; once for each; parts joined by |, strengths by geom() and lin()")
    limit: list[str] = option(
        [],
        "'asr<=0.05', of asr, ssim, identified or recognized (identified above chance); repeat for several; the upper "
        "end of the 95 % interval must not exceed it; unset: --tolerance on asr and on recognized",
    )
    tolerance: float = again(Criteria, "tolerance")
    accept_leak: bool = option(False, "recommend a setting even if its own audit says that it leaks, within the limits")
    seeds: int = option(1, "trainings of each setting, seeds counted from --seed on", least=1, most=limits.SEEDS)
    round: int = option(
        0, "whose model is audited; 0: untrained, the same under every defense", least=0, most=limits.ROUNDS
    )
    attack: list[str] = again(Experiment, "attack")
    grant: list[str] = option([], "what the adversary is told: labels, order, ...")
    images: int | None = again(
        Victims,
        "images",
        None,
        "images to attack, evenly over classes; unset: 32, or more where the limits need more updates",
    )
    images_per_update: int = option(1, "images behind an update that is attacked", least=1, most=limits.IMAGES)
    draws: int = again(Victims, "draws", text="draws of untrained weights that are audited")
    run: Run = group(Run())

    @property
    def out(self) -> Path:
        """The run directory.

        Raises:
            InputError: none was named.
        """
        if self.run.out is None:
            raise InputError("a frontier is kept as it goes on: --out names a directory for its runs and its figure")
        return Path(self.run.out)
