"""Real images, models and gradients, the same for all methods.

Each set is split by row in its ``index.csv``: even rows (counted from 0) tune the attacks, odd rows are reported. The
embedded samples, which stand in if a machine has no sets, are too few to split.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.roles import Defense
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
REPORTED, TUNED = 100, 500
"""First seeds of the weights, for reported results and for tuning."""


def available() -> list[str]:
    """Return the sets on this machine, or else ``["samples"]``, the embedded samples."""
    return [name for name in NAMES if (SETS / name).is_dir()] or ["samples"]


@dataclass(frozen=True)
class Scene:
    """One draw of weights, and V updates under it. Updates that are zero are left out.

    Attributes:
        network: the model with its weights, in the client's mode.
        batches: private images (V, N, C, H, W).
        labels: their labels (V, N).
        seen: the attack's observation.
        classes: number of classes K.
        zero: number of updates left out.
        plan: the client's plan.
    """

    network: nn.Module
    batches: Tensor
    labels: Tensor
    seen: Observation
    classes: int
    zero: int
    plan: Plan

    @property
    def truths(self) -> Tensor:
        """The first image (V, C, H, W) of each update. It is the only one if updates hold one image."""
        return self.batches[:, 0]


def held_out(name: str, count: int, size: int, tune: bool = False) -> tuple[Tensor, Tensor, int]:
    """Return images (count, 3, size, size) from odd rows, balanced over classes, with labels and the number of classes.

    With `tune`, they come from even rows. There are fewer images if a class has too few.
    """
    if name == "samples":
        data, own_rows = Samples(size=size, channels=3).load(), None
    else:
        data = ImageFolder(SETS / name, size=size, channels=3).load()
        with (SETS / name / "index.csv").open() as file:
            own_rows = {row["file"] for i, row in enumerate(csv.DictReader(file)) if i % 2 != tune}
    chosen: list[int] = []
    classes = len(data.classes)
    for label in range(classes):
        own = [i for i in (data.labels == label).nonzero()[:, 0].tolist() if not own_rows or data.names[i] in own_rows]
        share = count // classes + (label < count % classes)
        chosen += own[:: max(len(own) // max(share, 1), 1)][:share]
    return data.images[chosen], data.labels[chosen], classes


def dealt(images: Tensor, labels: Tensor, batch: int, seed: int) -> tuple[Tensor, Tensor]:
    """Shuffle images (M, C, H, W) into full batches (V, batch, C, H, W) with labels (V, batch)."""
    order = shuffled(len(images), batch, seed)
    return images[order], labels[order]


def shuffled(count: int, batch: int, seed: int) -> Tensor:
    """Return the numbers below `count` in random order, in full batches (V, batch)."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[: count // batch * batch].view(-1, batch)


def known_images(name: str, size: int) -> Tensor:
    """Return all images (G, 3, size, size) that an attacker may know: first those of odd rows, then the others."""
    reported = held_out(name, 1000, size)[0]
    return reported if name == "samples" else torch.cat([reported, held_out(name, 1000, size, tune=True)[0]])


def play(
    network: nn.Module,
    batches: Tensor,
    labels: Tensor,
    classes: int,
    *,
    plan: Plan | None = None,
    defense: Defense | None = None,
    threat: ThreatModel | None = None,
) -> Scene:
    """Compute the updates of batches (V, N, C, H, W) with labels (V, N) under a network's weights.

    The default is one gradient, no defense and no grant.

    Raises:
        InputError: every update is zero.
    """
    plan, defense, threat = plan or Plan(), defense or NoDefense(), threat or ThreatModel()
    network, state = defense.model(network, defense.init(), torch.Generator().manual_seed(0))
    ready, weights = prepare(network, plan), Weights.of(network)
    rounds = [
        client_round(ready, weights, Batch(x, y), plan, defense, state, torch.Generator().manual_seed(i))
        for i, (x, y) in enumerate(zip(batches, labels, strict=True))
    ]
    alive = [i for i, r in enumerate(rounds) if r.raw.norm() > 0]
    if not alive:
        raise InputError(f"all {len(rounds)} updates are zero: nothing to attack; take other images or weights")
    shape = tuple(batches.shape[2:])
    sent = [rounds[i] for i in alive]
    seen = observe(ready, weights, plan, sent, threat, defense=defense, image_shape=shape, num_classes=classes)
    return Scene(network, batches[alive], labels[alive], seen, classes, len(rounds) - len(alive), plan)


def scene(
    name: str, variant: str, count: int, seed: int, size: int = 32, tune: bool = False, defense: Defense | None = None
) -> Scene:
    """Compute the gradients of `count` images, one by one, under one draw of a LeNet's weights."""
    images, labels, classes = held_out(name, count, size, tune)
    network = LeNet(variant).build(tuple(images.shape[1:]), classes, seed)  # type: ignore[arg-type]
    return play(network, images[:, None], labels[:, None], classes, defense=defense)
