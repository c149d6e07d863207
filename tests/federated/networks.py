"""Small networks and batches for the federation's tests, in float64 so that oracles agree to the last digits."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from medpfl.core.plan import Plan
from medpfl.core.types import Batch, Weights
from medpfl.federated.draws import Draws
from medpfl.models import LeNet, ResNet


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().double()


def plain(channels: int = 1, size: int = 8, classes: int = 3) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, 3, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(3 * (size - 2) ** 2, classes))


def batch_normed(momentum: float | None = 0.1) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, 2),
        nn.BatchNorm2d(4, momentum=momentum),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(36, 5),
        nn.BatchNorm1d(5, momentum=momentum),
        nn.Tanh(),
        nn.Linear(5, 3),
    )


def group_normed() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(), nn.Linear(144, 3))


def dropping(rate: float = 0.5) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3),
        nn.Dropout2d(rate / 2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(216, 40),
        nn.Dropout(rate),
        nn.Tanh(),
        nn.Linear(40, 3),
    )


class Tied(nn.Module):
    """One matrix used twice, under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.inside, self.last = nn.Linear(64, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.last.weight = self.inside.weight
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.last(torch.tanh(self.inside(torch.tanh(self.enter(x.flatten(1))))))))


NETWORKS = {
    "plain": plain,
    "group norm": group_normed,
    "batch norm": batch_normed,
    "tied": Tied,
    "LeNet": lambda: LeNet("dlg").build((1, 8, 8), 3, seed=0),
    "ResNet-18": lambda: ResNet(18).build((1, 32, 32), 3, seed=0),
}


def network(name: str) -> nn.Module:
    return seeded(NETWORKS[name])


def batch(count: int, size: int = 8, seed: int = 0, classes: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 1, size, size, dtype=torch.float64, generator=generator)
    return Batch(images, torch.randint(classes, (count,), generator=generator))


def size_of(name: str) -> int:
    return 32 if name == "ResNet-18" else 8


def trained(model: nn.Module, batch: Batch, plan: Plan, draws: Draws) -> nn.Module:
    """Train a client with ``torch.optim`` and a plain loop: the slow oracle."""
    model = copy.deepcopy(model).train(plan.mode == "train")
    optimizer = torch.optim.SGD(
        model.parameters(), lr=plan.learning_rate, momentum=plan.momentum, weight_decay=plan.weight_decay
    )
    for epoch in range(plan.epochs):
        order = torch.arange(plan.images) if draws.order is None else draws.order[epoch]
        for chosen in order.split(plan.batch_size):
            optimizer.zero_grad()
            functional.cross_entropy(model(batch.images[chosen]), batch.labels[chosen]).backward()
            optimizer.step()
    return model


def gap(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Return the largest difference; the names must match."""
    assert one.keys() == other.keys()
    assert all(one[k].shape == other[k].shape and one[k].dtype == other[k].dtype for k in one)
    return max(float((one[k] - other[k]).abs().max()) for k in one)


def minus(after: nn.Module, before: nn.Module) -> dict[str, Tensor]:
    one, other = Weights.of(after).parameters, Weights.of(before).parameters
    return {k: one[k] - other[k] for k in one}
