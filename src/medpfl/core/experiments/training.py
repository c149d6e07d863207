"""The typed training: what ``medpfl train`` and a YAML file say. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass

from medpfl.core.experiments.groups import Cohort, Run
from medpfl.core.experiments.options import Options, group, option
from medpfl.core.experiments.schedule import Schedule
from medpfl.core.plan import Plan

__all__ = ["Training"]


@dataclass(frozen=True, kw_only=True)
class Training(Options):
    """A federated training as strings and numbers."""

    data: str = option("samples", "folder of class folders, .npz of MedMNIST, or 'samples'")
    model: str = option(
        "ConvNet(width=16, depth=3, norm='batch')",
        "spec from 'medpfl list models', file.py:name or package.module:name",
    )
    weights: str | None = option(None, "weights file to start from: safetensors, or a state dict of torch.save")
    defense: list[str] = option([], "spec; once for each part, or parts joined by |")
    cohort: Cohort = group(Cohort())
    plan: Plan = group(
        Plan("FedAvg", batch_size=32, learning_rate=0.05),
        without=("loss",),
        texts={
            "local_images": "images of a client in a round; unset: all",
            "learning_rate": "of the clients (FedAvg) or the server (FedSGD)",
        },
    )
    schedule: Schedule = group(Schedule())
    run: Run = group(Run(), without=("memory", "isolate"))
