"""Deep networks for the benchmark, and the images that are attacked under them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from benchmarks.scenes import SETS, available, held_out
from medpfl.models import ResNet

CHEST = SETS / "pneumonia_mnist" / "pneumoniamnist.npz"


@dataclass(frozen=True)
class Case:
    """A network in eval mode, and images (M, 3, size, size) with labels (M,) to attack under it."""

    name: str
    network: nn.Module
    images: Tensor
    labels: Tensor
    classes: int


def untrained(size: int, count: int, seed: int, name: str | None = None) -> Case:
    """Return a ResNet-18 with fresh weights, and images from a set (by default the first available one)."""
    name = name or available()[0]
    images, labels, classes = held_out(name, count, size)
    network = ResNet(18).build((3, size, size), classes, seed).eval()
    return Case(f"untrained, {name}", network, images, labels, classes)


def trained(size: int, count: int, seed: int, steps: int, batch: int = 64) -> Case:
    """Return a ResNet-18 after `steps` steps of Adam on the chest X-rays, and X-rays it has not seen.

    The test images' even rows measure the network's accuracy, stated in the case's name. Their odd rows are attacked.
    Without the X-rays, the network learns the embedded samples, and the same samples are attacked.
    """
    source, (x, y), (test_x, test_y), (seen_x, seen_y) = _chest(size) if CHEST.is_file() else _samples(size)
    classes = int(y.max()) + 1
    network = ResNet(18).build((3, size, size), classes, seed)
    _train(network, x, y, steps, batch, seed)
    with torch.no_grad():
        hits = torch.cat([network(part).argmax(1) for part in test_x.split(batch)]) == test_y
    share = [count // classes + (k < count % classes) for k in range(classes)]
    chosen = torch.cat([(seen_y == k).nonzero()[: share[k], 0] for k in range(classes)])
    name = f"trained on {source}, accuracy {hits.float().mean():.2f}"
    return Case(name, network, seen_x[chosen], seen_y[chosen], classes)


def _train(network: nn.Module, x: Tensor, y: Tensor, steps: int, batch: int, seed: int) -> None:
    """Train the network, and leave it in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    network.train()
    for _ in range(steps):
        chosen = torch.randint(len(x), (batch,), generator=generator)
        optimizer.zero_grad()
        cross_entropy(network(x[chosen]), y[chosen]).backward()
        optimizer.step()
    network.eval().zero_grad()


def train_until(network: nn.Module, x: Tensor, y: Tensor, loss: float, seed: int, batch: int = 16) -> nn.Module:
    """Train the network by Adam until an epoch's mean loss is below `loss`; return it in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    network.train()
    for _ in range(40):
        total = 0.0
        order = torch.randperm(len(x), generator=generator)
        for rows in order[: len(x) // batch * batch].view(-1, batch):
            optimizer.zero_grad()
            value = cross_entropy(network(x[rows]), y[rows])
            value.backward()
            optimizer.step()
            total += float(value.detach()) * batch
        if total / (len(x) // batch * batch) < loss:
            break
    network.eval().zero_grad()
    return network


Labelled = tuple[Tensor, Tensor]


def _chest(size: int) -> tuple[str, Labelled, Labelled, Labelled]:
    """Return training images, then even and odd rows of the test images, enlarged from 28 px, in three channels."""
    with np.load(CHEST) as file:
        arrays = {part: (file[f"{part}_images"], file[f"{part}_labels"]) for part in ("train", "test")}
    (x, y), (test_x, test_y) = ((_enlarged(i, size), torch.from_numpy(k[:, 0]).long()) for i, k in arrays.values())
    return "pneumonia_mnist", (x, y), (test_x[::2], test_y[::2]), (test_x[1::2], test_y[1::2])


def _enlarged(images: np.ndarray, size: int) -> Tensor:
    pixels = torch.from_numpy(images).float()[:, None] / 255
    return interpolate(pixels, (size, size), mode="bilinear", antialias=True).clamp(0, 1).expand(-1, 3, -1, -1)


def _samples(size: int) -> tuple[str, Labelled, Labelled, Labelled]:
    images, labels, _ = held_out("samples", 1000, size)
    return "the samples", (images, labels), (images, labels), (images, labels)
