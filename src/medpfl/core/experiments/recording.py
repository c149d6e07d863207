"""The options of ``medpfl record``, ``inspect`` and ``forget`` as typed experiments. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from medpfl.core.experiments import limits
from medpfl.core.experiments.experiment import Experiment
from medpfl.core.experiments.groups import Reading
from medpfl.core.experiments.inspection import Inspection
from medpfl.core.experiments.options import Options, again, group, option
from medpfl.core.plan import Plan

__all__ = ["Forgetting", "Looking", "Recording"]


@dataclass(frozen=True, kw_only=True)
class Recording(Options):
    """Two states of a model, and the local training between them, as strings and numbers."""

    before: str = option("", "state before the local training: state dict from torch.save, safetensors, or checkpoint")
    after: str = option("", "state after the local training, in any of these formats")
    out: str = option("records", "folder for the record")
    truth: str | None = again(
        Experiment,
        "truth",
        text="folder with the images of the training; they are also kept in private-truth inside --out",
    )
    model: str | None = option(
        None, "model: spec, file.py:name or package.module:name; unset: parameters are told from buffers by their names"
    )
    batch_size: int = again(Plan, "batch_size", 1)
    local_images: int | None = again(
        Plan, "local_images", text="number of images that the client trained on; unset: those of --truth, or one batch"
    )
    epochs: int = again(Plan, "epochs", text="number of local epochs")
    learning_rate: float = again(Plan, "learning_rate", text="local learning rate")
    momentum: float = again(Plan, "momentum", text="local momentum")
    weight_decay: float = again(Plan, "weight_decay", text="local weight decay")
    dampening: float = again(Plan, "dampening", text="dampening of local momentum")
    nesterov: bool = again(Plan, "nesterov", text="Nesterov's form of local momentum")
    loss: Literal["cross_entropy", "dice"] = again(Plan, "loss")
    label_smoothing: float = again(Plan, "label_smoothing")
    mode: Literal["train", "eval"] = again(Plan, "mode")
    mean: str | None = option(
        None, "mean that the client's loader subtracts from pixels in [0, 1], per channel, e.g. 0.485,0.456,0.406"
    )
    std: str | None = option(None, "standard deviation by which the loader then divides, per channel")
    round: int | None = option(None, "round of the federation, for the record's name", least=0, most=limits.ROUNDS)
    defense: str | None = option(None, "spec of the client's defense, e.g. 'Clipping(1.0) | GaussianNoise(0.01)'")
    clients: int = option(
        1,
        "number of clients whose updates are averaged in the second state, as under secure aggregation",
        least=1,
        most=limits.CLIENTS,
    )
    days: int = option(30, "days for which the images in private-truth may be kept", least=0, most=36_500)
    reading: Reading = group(Reading())


@dataclass(frozen=True, kw_only=True)
class Looking(Options):
    """A record to look at, with its truth and model, as strings and numbers."""

    record: str = option("", "record of an update")
    truth: str | None = again(
        Experiment,
        "truth",
        text="truth file, or folder with the images behind the update; unset: the truth file of its name in "
        "private-truth beside the record",
    )
    model: str | None = option(None, "model: spec from 'medpfl list models', file.py:name or package.module:name")
    raw: str | None = option(None, "record of the same update before the client's filters; what they changed is shown")
    page: str | None = again(Inspection, "page")
    json: bool = again(Inspection, "json")
    reading: Reading = group(Reading())


@dataclass(frozen=True, kw_only=True)
class Forgetting(Options):
    """A folder whose truth files are deleted."""

    folder: str = option("", "folder of records; truth files in it are deleted, records stay")
