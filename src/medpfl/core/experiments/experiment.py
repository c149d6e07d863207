"""The options of ``medpfl audit`` as a typed experiment, from the command line or YAML. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass

from medpfl.core.experiments.groups import Criteria, Run, Victims
from medpfl.core.experiments.options import Options, again, group, option
from medpfl.core.plan import Plan
from medpfl.core.threat import ThreatModel

__all__ = ["Demo", "Experiment"]


@dataclass(frozen=True, kw_only=True)
class Experiment(Options):
    """An audit's options as strings and numbers."""

    data: str = option(
        "samples",
        "folder with one subfolder per class, 'samples', or file.py:Name of a data source; or a recorded update; or "
        "several: their folder, or a quoted pattern such as 'updates/site-*/round-*.safetensors'",
    )
    model: str = option(
        "LeNet('dlg')",
        "model: spec from 'medpfl list models', file.py:name, package.module:name, or run directory of 'medpfl train'",
    )
    weights: str | None = option(None, "weights file: safetensors, or a state dict from torch.save")
    attack: list[str] = option(
        [],
        "attack to run, e.g. 'iDLG(steps=300)'; repeat for several; unset: WorstCase, which runs every analytic attack "
        "that applies, and then searches for --minutes",
    )
    defense: list[str] = option(
        [],
        "defense to test, e.g. 'TopK(keep=0.1)'; repeat for several; join parts with |; sweep a number with "
        "geom(first, last, n) or lin(first, last, n)",
    )
    grant: list[str] = option(
        [],
        "extra knowledge for the attacker: labels, order, masks, auxiliary, active, or defense (test only attacks that "
        "know the defense); repeat for several",
    )
    gray: bool | None = option(
        None,
        "tell the attacker if all images are gray although they have several channels, a fact about the modality; "
        "unset: yes",
    )
    naive: bool = option(
        False, "test only attacks that do not know the defense; if unset: attacks without and with this knowledge"
    )
    rounds: str | None = option(None, "rounds to audit, e.g. 0,1,5, if --model is the run directory of a training")
    realism: bool = option(
        False,
        "audit the most favorable case for an attacker, then drop its assumptions one at a time (1 image, eval mode, "
        "untrained, 1 local step, known labels, no noise), and last all: shows on which ones the leak depends",
    )
    truth: str | None = option(
        None,
        "images behind a recorded update: a folder or a truth file; for several records: a folder with one per site; "
        "unset: the truth file of the record's name in private-truth beside it",
    )
    victims: Victims = group(Victims())
    plan: Plan = group(Plan())
    criteria: Criteria = group(Criteria())
    run: Run = group(Run())

    @property
    def threat(self) -> ThreatModel:
        """The threat model."""
        return ThreatModel(tuple(self.grant), self.naive, self.gray is not False)


@dataclass(frozen=True, kw_only=True)
class Demo(Options):
    """Options of ``medpfl demo``."""

    images: int | None = again(Victims, "images", None, "number of images to attack; unset: 24")
    run: Run = group(
        Run(),
        without=("seed", "device", "memory", "minutes", "isolate", "numbers_only", "engine", "workers", "threads"),
    )
