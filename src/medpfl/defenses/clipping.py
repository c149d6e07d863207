"""Clipping of the update that leaves a client."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from medpfl.core.errors import check_positive
from medpfl.core.plan import Plan
from medpfl.core.roles import Defense, State
from medpfl.core.spec import shown
from medpfl.core.types import Channel, Tensors, Update
from medpfl.defenses.compression import Scope, check_scope, flat, unflat

__all__ = ["Clipping", "scaled_down"]


@dataclass(frozen=True, repr=False)
class Clipping(Defense):
    """Shrinks the update to a Euclidean norm of at most `norm`; a smaller one stays as it is.

    Equation: ``x * min(1, norm / |x|)``, as in DP-FedAvg (McMahan et al. 2018, arXiv:1710.06963, section 2).

    Promises a bounded norm. No privacy by itself: the direction of the update is untouched, and attacks that
    compare directions do not notice it.

    Attributes:
        norm: the largest norm, above 0, in the units of the update.
        scope: of the whole update, or of each tensor.

    Raises:
        InputError: a norm that is not a number above 0, or another word for `scope`.
    """

    norm: float = shown(1.0)
    scope: Scope = "global"

    def __post_init__(self) -> None:
        check_positive(norm=self.norm)
        check_scope(self.scope)

    def update(self, value: Update, state: State, generator: torch.Generator) -> tuple[Update, State]:
        """The clipped update."""
        return value.replace(scaled_down(value.tensors, self.norm, self.scope)), state

    def settled(self, first: bool) -> bool:
        """As the first part: after noise, how much was clipped is read off the update."""
        return first

    def disclose(self, sent: Update, plan: Plan | None = None, before: Channel | None = None) -> Channel:
        """The map itself, taking into account what earlier parts removed and the norm of what they added.

        It is approximate after noise: the norm of raw update and noise together is taken for its
        expectation. Earlier noise shrinks with the update, by at least ``norm / |noise|``; that much is disclosed.
        """
        before = before or Channel()
        if before.precision is None and before.bounds is None:
            return before.then(lambda tensors: scaled_down(tensors, self.norm, self.scope))
        present, noise = _present(sent.tensors, before), _noise(sent.tensors, before, self.scope)

        def apply(tensors: Tensors, known: Tensors) -> Tensors:
            return scaled_down(tensors, self.norm, self.scope, known)

        known = {**{f"{name}:present": t for name, t in present.items()}, ":noise": noise}
        return before.then(apply, gain=self._gain(sent.tensors, noise), known=known)

    def _gain(self, sent: Tensors, noise: Tensor) -> float:
        """The factor of the group that shrank most, as far as the noise alone tells; 1 where nothing was clipped."""
        norms = torch.stack([g.norm() for g in flat(sent, self.scope)])
        clipped = norms >= self.norm * (1 - 1e-3)
        factors = (self.norm / noise.sqrt().clamp(min=self.norm)).masked_fill(~clipped, 1.0)
        return float(factors.min())


def scaled_down(tensors: Tensors, norm: float, scope: Scope, known: Tensors | None = None) -> Tensors:
    """The tensors, groupwise of at most a norm; differentiable, at zero too.

    Args:
        tensors: of one update.
        norm: the largest Euclidean norm of a group.
        scope: what is a group.
        known: what else makes the norm of a group: ``"<name>:present"``, 1 at coordinates that count, and
            ``":noise"`` (groups,), the squared norm of noise.
    """
    counted = tensors if known is None else {name: t * known[f"{name}:present"] for name, t in tensors.items()}
    squares = [g.square().sum() for g in flat(counted, scope)]
    if known is not None:
        squares = [square + extra for square, extra in zip(squares, known[":noise"], strict=True)]
    factors = [norm * s.clamp(min=norm**2).rsqrt() for s in squares]
    return unflat([g * f for g, f in zip(flat(tensors, scope), factors, strict=True)], tensors)


def _present(sent: Tensors, before: Channel) -> dict[str, Tensor]:
    """1 where earlier parts let something through: neither pruned (bounded, and sent as zero) nor unknown."""
    gone = {name: torch.zeros_like(t, dtype=torch.bool) for name, t in sent.items()}
    if before.bounds is not None:
        gone = {name: (before.bounds[name] > 0) & (t == 0) for name, t in sent.items()}
    if before.precision is not None:
        gone = {name: g | (before.precision[name] == 0) for name, g in gone.items()}
    return {name: (~g).to(sent[name]) for name, g in gone.items()}


def _noise(sent: Tensors, before: Channel, scope: Scope) -> Tensor:
    """The expected squared norm (groups,) of the noise that earlier parts added."""
    if before.precision is None:
        return next(iter(sent.values())).new_zeros(len(flat(sent, scope)))
    variances = {name: torch.where(p > 0, 1 / p, torch.zeros_like(p)) for name, p in before.precision.items()}
    return torch.stack([g.sum() for g in flat(variances, scope)])
