"""Noise where a layer's weights and gradients say that it leaks, ever more rarely."""

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
    """Prunes each layer's gradient and noises the most informative coordinates, in ever fewer steps.

    Outpost (Wang, Hugunin and Li 2023, INFOCOM, "More than enough is too much"), here as its authors' code in
    Plato describes it. In local step t (from 0), with probability ``1 / (1 + decay t)``: of each tensor the
    share `prune` of smallest magnitude is set to zero; then normal noise of standard deviation
    ``scale * min(1, variance of the tensor's weights)`` is added to the share `share` of all coordinates with
    the largest empirical Fisher information (the mean square of the per-sample gradients).

    Promises less noise than on every coordinate, and no guarantee. Breaks: no dedicated one known to us.
    Deviates: the Fisher information is a mean over the images, as in the paper's text; an attacker is told
    nothing, since neither the steps that were perturbed nor the Fisher information are on the wire: an audit takes
    every attack on it for one that does not know it, and failure for inconclusive.

    Attributes:
        scale: of the noise, above 0.
        share: of the coordinates that are noised, above 0 and at most 1.
        prune: share of each tensor's coordinates that are set to zero, at least 0 and below 1.
        decay: at least 0; 0 perturbs every step.

    Raises:
        InputError: a number out of its range. In a round: batch norm in train mode.
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
        """No step was taken; no weights were seen."""
        return {"steps": 0, "risk": {}}

    def model(self, value: nn.Module, state: State, generator: torch.Generator) -> tuple[nn.Module, State]:
        """The model as it is; the variances of its weights are remembered."""
        risk = {
            name: p.detach().var(correction=min(1, p.numel() - 1)).clamp(max=1) for name, p in value.named_parameters()
        }
        return value, {**state, "risk": risk}

    def settled(self, first: bool) -> bool:
        """No: it prunes and noises by each update, and discloses nothing of that."""
        return False

    def gradient(self, value: Tensors, state: State, generator: torch.Generator) -> tuple[Tensors, State]:
        """Per-sample gradients, pruned alike, among which the noise of one step is dealt out evenly."""
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
    """1 at the share of coordinates of largest mean square."""
    fisher = {name: t.square().mean(0) for name, t in samples.items()}
    (group,) = flat(fisher, "global")
    return unflat([largest(group, share).to(group)], fisher)


def _smallest(mean: Tensor, share: float) -> Tensor:
    """1 at the share of coordinates of smallest magnitude."""
    count = round(share * mean.numel())
    order = mean.flatten().abs().argsort(stable=True)[:count]
    return torch.zeros_like(mean).flatten().index_fill(0, order, 1).view_as(mean)
