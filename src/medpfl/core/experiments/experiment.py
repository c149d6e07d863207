"""The typed experiment: what ``medpfl audit`` and a YAML file say. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass

from medpfl.core.experiments.groups import Criteria, Run, Victims
from medpfl.core.experiments.options import Options, group, option
from medpfl.core.plan import Plan
from medpfl.core.threat import ThreatModel

__all__ = ["STANDARD", "Demo", "Experiment"]

STANDARD = ("DLG", "iDLG", "CPL", "GradInv", "Posterior")
"""The attacks of an audit that names none. Those that are made for few models, its own among them, are added, and
for deep ones attacks with settings for these."""


@dataclass(frozen=True, kw_only=True)
class Experiment(Options):
    """An audit as strings and numbers."""

    data: str = option("samples", "folder of class folders, record of an update, or 'samples'")
    model: str = option(
        "LeNet('dlg')",
        "spec from 'medpfl list models', file.py:name, package.module:name, or directory of a training",
    )
    weights: str | None = option(None, "weights file: safetensors, or a state dict of torch.save")
    attack: list[str] = option(
        list(STANDARD), "spec; once for each attack; as it is, those that are made for the model too"
    )
    defense: list[str] = option([], "spec; once for each; parts joined by |, sweeps by geom() and lin()")
    grant: list[str] = option([], "what the adversary is told: labels, order, ...; defense: only attacks that know it")
    naive: bool = option(
        False, "only attacks that are not told what a defense discloses of itself; else without and with"
    )
    rounds: str | None = option(None, "with a training as --model: rounds whose models are audited, as 0,1,5")
    truth: str | None = option(None, "for a record: folder of the images that it was made from")
    victims: Victims = group(Victims())
    plan: Plan = group(Plan())
    criteria: Criteria = group(Criteria())
    run: Run = group(Run())

    @property
    def threat(self) -> ThreatModel:
        """The adversary."""
        return ThreatModel(tuple(self.grant), self.naive)


@dataclass(frozen=True, kw_only=True)
class Demo(Options):
    """What ``medpfl demo`` is asked for."""

    run: Run = group(Run(), without=("seed", "device", "memory", "isolate"))
