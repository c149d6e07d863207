"""The options of ``medpfl train`` as a typed experiment. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass

from medpfl.core.experiments.groups import Cohort, Run
from medpfl.core.experiments.options import Options, group, option
from medpfl.core.experiments.schedule import Schedule
from medpfl.core.plan import Plan

__all__ = ["Training"]


@dataclass(frozen=True, kw_only=True)
class Training(Options):
    """The options of a federated training as strings and numbers."""

    data: str = option(
        "samples", "folder with one subfolder per class, .npz of MedMNIST, 'samples', or file.py:Name of a data source"
    )
    model: str = option(
        "ConvNet(width=16, depth=3, norm='batch')",
        "model: spec from 'medpfl list models', file.py:name or package.module:name",
    )
    weights: str | None = option(None, "initial weights file: safetensors, or a state dict from torch.save")
    defense: list[str] = option(
        [], "defense, e.g. 'TopK(keep=0.1)'; repeat the option, or join with |, to combine several"
    )
    cohort: Cohort = group(Cohort())
    plan: Plan = group(
        Plan("FedAvg", batch_size=32, learning_rate=0.05),
        without=("loss",),
        texts={
            "local_images": "number of images that a client uses per round; unset: all",
            "learning_rate": "learning rate of the clients (FedAvg) or the server (FedSGD)",
        },
    )
    schedule: Schedule = group(Schedule())
    run: Run = group(
        Run(),
        without=("memory", "minutes", "isolate", "numbers_only"),
        texts={
            "engine": "where clients are trained: in this process (inline), in several (processes), or on a cluster "
            "(ray: RAY_ADDRESS, or one started here); unset: processes if --workers is above 1",
            "workers": "number of clients that are trained at the same time; unset: 1, or with --engine as many as "
            "there are cores",
            "threads": "torch threads for each client; several speed up large models and change the last digits",
        },
    )
