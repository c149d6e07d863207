"""Outpost: pruning and noise where weights and gradients suggest a leak, in ever fewer steps."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor, nn

from medpfl.core.errors import InputError, check_positive
from medpfl.core.roles import Defense, State
from medpfl.core.spec import shown
from medpfl.core.types import Tensors
from medpfl.defenses.compression import flat, largest, unflat

__all__ = ["Outpost"]


@dataclass(frozen=True, repr=False)
class Outpost(Defense):
    """Gradient pruning, and noise on the most informative coordinates, in ever fewer steps.

    Outpost (Wang, Hugunin and Li 2023, INFOCOM, "More than enough is too much"), as its authors implement it in Plato.
    Local step t (from 0) is perturbed with probability ``1 / (1 + decay t)``. First, the share `prune` of each
    tensor's coordinates, those of smallest magnitude, is set to zero. Then normal noise with standard deviation
    ``scale * min(1, variance of the tensor's weights)`` is added to the share `share` of all coordinates, those with
    the largest empirical Fisher information (the mean square of the per-sample gradients).

    Promises less noise than noising every coordinate would add, and no guarantee. Breaks: no dedicated one known to
    us. Deviates: the Fisher information is a mean over the images, as in the paper's text. Nothing is disclosed to an
    attacker, because the server sees neither which steps were perturbed nor the Fisher information. An audit therefore
    treats every attack on it as naive, and a failed attack as inconclusive.

    Attributes:
        scale: noise scale, above 0.
        share: share of coordinates to noise, above 0 and at most 1.
        prune: share of each tensor's coordinates to set to zero, at least 0 and below 1.
        decay: how fast perturbed steps become rare, at least 0; 0 perturbs every step.

    Raises:
        InputError: if a number is out of range. In a round: if the model has batch norm in train mode.
    """

    scale: float = shown(0.8)
    share: float = 0.4
    prune: float = 0.4
    decay: float = 0.1

    def __post_init__(self) -> None:
        check_positive(scale=self.scale)
        if not 0 < self.share <= 1:
            raise InputError(f"share is {self.share}: it must be above 0 and at most 1")
        if not 0 <= self.prune < 1:
            raise InputError(f"prune is {self.prune}: it must be at least 0 and below 1")
        if not 0 <= self.decay < inf:
            raise InputError(f"decay is {self.decay}: it must be at least 0")

    def init(self) -> State:
        """Return the state before the first step, with no weight variances yet."""
        return {"steps": 0, "risk": {}}

    def model(self, value: nn.Module, state: State, generator: torch.Generator) -> tuple[nn.Module, State]:
        """Return the model unchanged, and store its weights' variances, each at most 1."""
        risk = {
            name: p.detach().var(correction=min(1, p.numel() - 1)).clamp(max=1) for name, p in value.named_parameters()
        }
        return value, {**state, "risk": risk}

    def settled(self, first: bool) -> bool:
        """Return False: pruning and noise depend on each update, and are not disclosed."""
        return False

    def gradient(self, value: Tensors, state: State, generator: torch.Generator) -> tuple[Tensors, State]:
        """Prune the per-sample gradients by one mask, and spread one step's noise evenly over them.

        A step that is not drawn for perturbation passes unchanged.
        """
        after = {**state, "steps": state["steps"] + 1}
        lucky = float(torch.rand((), generator=generator)) >= 1 / (1 + self.decay * state["steps"])
        if lucky:
            return value, after
        noised = _informative(value, self.share)
        changed = {}
        for name, samples in value.items():
            kept = 1 - _smallest(samples.mean(0), self.prune)
            noise = torch.randn(kept.shape, generator=generator, dtype=kept.dtype).to(kept)
            noise = noise * noised[name] * self.scale * state["risk"][name].to(kept)
            changed[name] = samples * kept + noise / len(samples)
        return changed, after


def _informative(samples: Tensors, share: float) -> dict[str, Tensor]:
    """Return 1 at the share of coordinates with the largest mean square over samples, else 0."""
    fisher = {name: t.square().mean(0) for name, t in samples.items()}
    (group,) = flat(fisher, "global")
    return unflat([largest(group, share).to(group)], fisher)


def _smallest(mean: Tensor, share: float) -> Tensor:
    """Return 1 at the share of coordinates with the smallest magnitude, else 0."""
    count = round(share * mean.numel())
    order = mean.flatten().abs().argsort(stable=True)[:count]
    return torch.zeros_like(mean).flatten().index_fill(0, order, 1).view_as(mean)
