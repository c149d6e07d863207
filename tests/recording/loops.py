"""Training loops as a stranger writes them, and small data for them."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

IMAGES = torch.rand(10, 1, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 2, 1, 0, 0])


def network(norm: bool = True, drop: float = 0.0, seed: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    middle = [nn.BatchNorm2d(4)] if norm else []
    last = [nn.Dropout(drop)] if drop else []
    return nn.Sequential(nn.Conv2d(1, 4, 3), *middle, nn.Tanh(), nn.Flatten(), *last, nn.Linear(4 * 36, 3))


def loader(images=IMAGES, labels=LABELS, batch=4, seed=5) -> DataLoader:
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(TensorDataset(images, labels), batch, shuffle=True, generator=generator)


def train(model, data=None, *, optimizer=None, epochs=2, loss=None, between=None, **settings) -> None:
    """Train with SGD and cross entropy, and score the model after every epoch."""
    data = loader() if data is None else data
    optimizer = optimizer or torch.optim.SGD(model.parameters(), **{"lr": 0.1, "momentum": 0.9, **settings})
    loss = loss or nn.CrossEntropyLoss()
    for _ in range(epochs):
        model.train()
        for images, labels in data:
            optimizer.zero_grad()
            loss(model(images), labels).backward()
            if between is not None:
                between(model)
            optimizer.step()
        model.eval()
        with torch.no_grad():
            loss(model(IMAGES), LABELS)
        loss(model(IMAGES), LABELS)  # a careless evaluation, with gradients that nobody uses
