"""A small residual network to attack."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class Residual(nn.Module):
    """A small ResNet: a stem with optional pooling, two blocks, the second with a stride, and a 2 x 2 average.

    `last` adds a third block, whose maps have 2 x 2 positions for images of 12 pixels.
    """

    def __init__(self, pool=None, channels=1, width=32, activation=None, classes=3, norm=nn.BatchNorm2d, last=False):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 5, 3, 1, bias=False), norm(width))
        self.pool, self.activation = pool or nn.Identity(), activation or nn.ReLU()
        self.one, self.two = Block(width, width, 1, norm), Block(width, 2 * width, 2, norm)
        self.last = Block(2 * width, 2 * width, 1, norm) if last else nn.Identity()
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x):
        h = self.pool(self.activation(self.stem((x - 0.4) / 0.2)))
        return self.head(self.last(self.two(self.one(h))).mean((2, 3)))


class Block(nn.Module):
    """Two convolutions with a shortcut."""

    def __init__(self, width, out, stride, norm):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(width, out, 3, stride, 1, bias=False), norm(out))
        self.second = nn.Sequential(nn.Conv2d(out, out, 3, 1, 1, bias=False), norm(out))
        self.skip = nn.Conv2d(width, out, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x):
        return functional.relu(self.skip(x) + self.second(functional.relu(self.first(x))))


def built(*args, seed: int = 0, **options) -> nn.Module:
    """Return a `Residual` in eval mode whose batch norms have collected statistics."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Residual(*args, **options)
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                nn.init.uniform_(layer.weight, 0.5, 1.5)
                nn.init.uniform_(layer.bias, -0.3, 0.3)
                nn.init.uniform_(layer.running_mean, -0.3, 0.3)
                nn.init.uniform_(layer.running_var, 0.5, 2.0)
    return network.eval()
