"""Small scenes for attack tests: clients with smooth images, observed by the server."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from medpfl.core.plan import Plan
from medpfl.core.threat import ThreatModel
from medpfl.core.types import Batch, Observation, Weights
from medpfl.defenses import NoDefense
from medpfl.federated.client import client_round
from medpfl.federated.ready import prepare
from medpfl.federated.server import observe


def smooth(count: int, channels: int = 1, size: int = 12, seed: int = 0) -> Tensor:
    """Return images in [0, 1] with few frequencies, like medical images."""
    coarse = torch.rand(count, channels, 4, 4, generator=torch.Generator().manual_seed(seed))
    return functional.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False).clamp(0, 1)


def tiny(channels: int = 1, size: int = 12, classes: int = 3, seed: int = 0) -> nn.Module:
    """Return a sigmoid network with two layers."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3, 1, 1), nn.Sigmoid(), nn.Flatten(), nn.Linear(6 * size * size, classes)
    )


def scene(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    plan: Plan,
    *,
    classes: int = 3,
    threat: ThreatModel | None = None,
    defense: object = None,
) -> Observation:
    """Return the server's observation of V client batches (V, N, C, H, W) with labels (V, N)."""
    defense = defense or NoDefense()
    ready, weights = prepare(network, plan), Weights.of(network)
    rounds = [
        client_round(ready, weights, Batch(x, y), plan, defense, defense.init(), torch.Generator().manual_seed(v))
        for v, (x, y) in enumerate(zip(images, labels, strict=True))
    ]
    return observe(
        ready,
        weights,
        plan,
        rounds,
        threat or ThreatModel(),
        defense=defense,
        image_shape=tuple(images.shape[2:]),
        num_classes=classes,
    )
