"""The typed frontier: what ``medpfl frontier`` and a YAML file say. Free of torch."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from medpfl.core.experiments import limits
from medpfl.core.experiments.experiment import STANDARD
from medpfl.core.experiments.training import Training
from medpfl.core.verdicts import TOLERANCE
from medpfl.core.yaml_files import read_text

__all__ = ["RECOMMENDED", "RECOMMENDED_FILE", "Frontier", "is_recommendation"]

RECOMMENDED, RECOMMENDED_FILE = "# Recommended by medpfl frontier", "recommended.yaml"
"""How a recommendation begins, and what it is called: either tells it from a YAML file that a person wrote."""


def is_recommendation(path: str | Path) -> bool:
    """Whether a YAML file is what a frontier recommended, perhaps another party's."""
    beginning = read_text(path)[:2000]
    return Path(path).name == RECOMMENDED_FILE or RECOMMENDED in beginning


class Frontier(Training):
    """Trainings and audits under several defenses as strings and numbers; the training is as of ``medpfl train``."""

    defense: list[str] = Field(
        default=[], description="spec; once for each; parts joined by |, strengths by geom() and lin()"
    )
    limit: list[str] = Field(
        default=[],
        description="'asr<=0.05', of asr, ssim, identified or recognized (identified above chance); repeat for "
        "several; the upper end of the 95 % interval must not exceed it; unset: --tolerance on asr and on recognized",
    )
    tolerance: float = Field(
        default=TOLERANCE,
        gt=0,
        lt=1,
        description="share of images, as for 'medpfl audit': the default limit",
    )
    accept_leak: bool = Field(
        default=False, description="recommend a setting even if its own audit says that it leaks, within the limits"
    )
    seeds: int = Field(
        default=1, ge=1, le=limits.SEEDS, description="trainings of each setting, seeds counted from --seed on"
    )
    round: int = Field(
        default=0,
        ge=0,
        le=limits.ROUNDS,
        description="whose model is audited; 0: untrained, the same under every defense",
    )
    attack: list[str] = Field(
        default=list(STANDARD),
        description="spec; once for each attack; as it is, those that are made for the model too",
    )
    grant: list[str] = Field(default=[], description="what the adversary is told: labels, order, ...")
    images: int | None = Field(
        default=None,
        ge=1,
        le=limits.IMAGES,
        description="images to attack, evenly over classes; unset: 32, or more where the limits need more updates",
    )
    images_per_update: int = Field(
        default=1, ge=1, le=limits.IMAGES, description="images behind an update that is attacked"
    )
    draws: int = Field(default=1, ge=1, le=limits.DRAWS, description="draws of untrained weights that are audited")
    memory: float = Field(default=2.0, gt=0, le=limits.MEMORY, description="GiB that a stack of victims may take")
    isolate: bool | None = Field(
        default=None,
        description="run attacks in a process that no private image enters; no sandbox: same user, same files; "
        "unset: those given as file.py:Name or package.module:Name",
    )
