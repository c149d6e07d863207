"""Real images, models and gradients that everyone gets alike.

Images of a set are split by the row of its ``index.csv``: rows with an even number (from 0) served to tune the
attacks, rows with an odd number are the ones reported here.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from medpfl.core.plan import Plan
from medpfl.core.threat import ThreatModel
from medpfl.core.types import Batch, Observation, Weights
from medpfl.data.folder import ImageFolder
from medpfl.data.samples import Samples
from medpfl.defenses import NoDefense
from medpfl.federated.client import client_round
from medpfl.federated.ready import prepare
from medpfl.federated.server import observe
from medpfl.models import LeNet

SETS = Path(__file__).resolve().parents[2] / "shared" / "data"
NAMES = ("brain_mri", "covid_xray", "melanoma")


@dataclass(frozen=True)
class Scene:
    """One draw of weights, and V single-image gradients under it; updates that are zero are left out."""

    network: nn.Module
    truths: Tensor
    labels: Tensor
    seen: Observation
    classes: int
    zero: int


def held_out(name: str, count: int, size: int) -> tuple[Tensor, Tensor, int]:
    """Images (count, 3, size, size) of odd rows, even over classes, their labels, and the number of classes."""
    if name == "samples":
        data, odd = Samples(size=size, channels=3).load(), None
    else:
        data = ImageFolder(SETS / name, size=size, channels=3).load()
        with (SETS / name / "index.csv").open() as file:
            odd = {row["file"] for i, row in enumerate(csv.DictReader(file)) if i % 2}
    chosen: list[int] = []
    classes = len(data.classes)
    for label in range(classes):
        own = [i for i in (data.labels == label).nonzero()[:, 0].tolist() if odd is None or data.names[i] in odd]
        share = count // classes + (label < count % classes)
        chosen += own[:: max(len(own) // share, 1)][:share]
    return data.images[chosen], data.labels[chosen], classes


def scene(name: str, variant: str, count: int, seed: int, size: int = 32) -> Scene:
    """The gradients of `count` images under one draw of a LeNet's weights."""
    images, labels, classes = held_out(name, count, size)
    network = LeNet(variant).build(tuple(images.shape[1:]), classes, seed)  # type: ignore[arg-type]
    plan, weights = Plan(), Weights.of(network)
    ready = prepare(network, plan)
    rounds = [
        client_round(ready, weights, Batch(x[None], y[None]), plan, NoDefense(), {}, torch.Generator())
        for x, y in zip(images, labels, strict=True)
    ]
    alive = [i for i, r in enumerate(rounds) if r.raw.norm() > 0]
    seen = observe(
        ready,
        weights,
        plan,
        [rounds[i] for i in alive],
        ThreatModel(),
        defense=NoDefense(),
        image_shape=tuple(images.shape[1:]),
        num_classes=classes,
    )
    return Scene(network, images[alive], labels[alive], seen, classes, len(rounds) - len(alive))
