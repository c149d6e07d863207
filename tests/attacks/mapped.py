"""Test defenses that map an update publicly and disclose the map, and attacks on them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from medpfl.core.roles import Defense


def flat(tensors):
    return torch.cat([t.flatten() for t in tensors.values()])


def shaped(values, like):
    parts = values.split([t.numel() for t in like.values()])
    return {name: part.view(t.shape) for part, (name, t) in zip(parts, like.items(), strict=True)}


def drawn(size: int, seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(1000 * seed + size)


@dataclass(frozen=True, repr=False)
class Mapped(Defense):
    """A defense that sends ``map`` applied to the update's coordinates, and discloses exactly that."""

    seed: int = 0

    def mapped(self, values: Tensor, tensors) -> Tensor:
        raise NotImplementedError

    def apply(self, tensors):
        return shaped(self.mapped(flat(tensors), tensors), tensors)

    def update(self, value, state, generator):
        return value.replace(self.apply(value.tensors)), state

    def disclose(self, sent, plan=None, before=None):
        from medpfl.core.channels.channel import Channel

        return (before or Channel()).then(self.apply)


class Permuted(Mapped):
    """All coordinates in a public order, across tensors."""

    def mapped(self, values, tensors):
        return values[torch.randperm(len(values), generator=drawn(len(values), self.seed))]


class Flipped(Mapped):
    """Signs flipped by a public seed."""

    def mapped(self, values, tensors):
        return values * (2.0 * torch.randint(2, values.shape, generator=drawn(len(values), self.seed)) - 1).to(values)


class Negated(Mapped):
    """All signs flipped."""

    def mapped(self, values, tensors):
        return -values


class Shifted(Mapped):
    """A different public constant added to each coordinate."""

    def mapped(self, values, tensors):
        return values + 0.01 * torch.randn(values.shape, generator=drawn(len(values), self.seed)).to(values)


class Scaled(Mapped):
    """Each coordinate times a public factor with either sign."""

    def mapped(self, values, tensors):
        return values * (torch.randn(values.shape, generator=drawn(len(values), self.seed)).to(values) * 3).exp()


class Masked(Mapped):
    """Half the coordinates, chosen by a public seed."""

    def mapped(self, values, tensors):
        return values * torch.randint(2, values.shape, generator=drawn(len(values), self.seed)).to(values)


class Rotated(Mapped):
    """A public rotation of all coordinates together: reflections at random planes."""

    def mapped(self, values, tensors):
        generator = drawn(len(values), self.seed)
        for _ in range(4):
            axis = torch.randn(values.shape, generator=generator).to(values)
            values = values - axis * (2 * (axis @ values) / axis.square().sum())
        return values


class Last(Mapped):
    """The last layer only, zeros for all others."""

    layers = 2

    def apply(self, tensors):
        kept = list(tensors)[-self.layers :]
        return {name: t if name in kept else torch.zeros_like(t) for name, t in tensors.items()}


class NoBias(Mapped):
    """Everything except the last bias."""

    def apply(self, tensors):
        *_, last = tensors
        return {name: torch.zeros_like(t) if name == last else t for name, t in tensors.items()}


class Silent(Mapped):
    """No map at all."""

    def apply(self, tensors):
        return dict(tensors)
