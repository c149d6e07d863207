"""Norm clipping of the client's update."""

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
    """Norm clipping: an update with a Euclidean norm above `norm` is scaled down to `norm`.

    Equation: ``x * min(1, norm / |x|)``, as in DP-FedAvg (McMahan et al. 2018, arXiv:1710.06963, section 2).

    Promises a bounded norm. No privacy by itself: the update keeps its direction, so attacks that compare directions
    are not affected.

    Attributes:
        norm: the largest norm, above 0, in the update's units.
        scope: ``"global"`` clips the whole update, ``"layer"`` each tensor.

    Raises:
        InputError: if `norm` is not a number above 0, or `scope` is unknown.
    """

    norm: float = shown(1.0)
    scope: Scope = "global"

    def __post_init__(self) -> None:
        check_positive(norm=self.norm)
        check_scope(self.scope)

    def update(self, value: Update, state: State, generator: torch.Generator) -> tuple[Update, State]:
        """Return the clipped update."""
        return value.replace(scaled_down(value.tensors, self.norm, self.scope)), state

    def settled(self, first: bool) -> bool:
        """Return `first`: after other parts, the clipping factor is inferred from the sent update."""
        return first

    def disclose(self, sent: Update, plan: Plan | None = None, before: Channel | None = None) -> Channel:
        """Return the clipping channel.

        The norm skips coordinates that earlier parts removed, and includes the noise that they added. After noise the
        channel is approximate: the squared norm of update plus noise is replaced by its expectation. Clipping also
        shrinks the earlier noise, by a factor of at most ``norm / |noise|``; this bound is disclosed.
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
        """Return the smallest clipping factor of a group, computed from the noise alone; 1 if none was clipped."""
        norms = torch.stack([g.norm() for g in flat(sent, self.scope)])
        clipped = norms >= self.norm * (1 - 1e-3)
        factors = (self.norm / noise.sqrt().clamp(min=self.norm)).masked_fill(~clipped, 1.0)
        return float(factors.min())


def scaled_down(tensors: Tensors, norm: float, scope: Scope, known: Tensors | None = None) -> Tensors:
    """Scale each group down to a norm of at most `norm`; differentiable, also at zero.

    Args:
        tensors: one update's tensors.
        norm: a group's largest Euclidean norm.
        scope: whether all tensors form one group, or each forms its own.
        known: corrections to the groups' norms: ``"<name>:present"`` is 1 for coordinates that count, and ``":noise"``
            (groups,) is the noise's squared norm; ``None``: no corrections.
    """
    counted = tensors if known is None else {name: t * known[f"{name}:present"] for name, t in tensors.items()}
    squares = [g.square().sum() for g in flat(counted, scope)]
    if known is not None:
        squares = [square + extra for square, extra in zip(squares, known[":noise"], strict=True)]
    factors = [norm * s.clamp(min=norm**2).rsqrt() for s in squares]
    return unflat([g * f for g, f in zip(flat(tensors, scope), factors, strict=True)], tensors)


def _present(sent: Tensors, before: Channel) -> dict[str, Tensor]:
    """Return 1 for coordinates that earlier parts kept: neither pruned (bounded and sent as zero) nor unknown."""
    gone = {name: torch.zeros_like(t, dtype=torch.bool) for name, t in sent.items()}
    if before.bounds is not None:
        gone = {name: (before.bounds[name] > 0) & (t == 0) for name, t in sent.items()}
    if before.precision is not None:
        gone = {name: g | (before.precision[name] == 0) for name, g in gone.items()}
    return {name: (~g).to(sent[name]) for name, g in gone.items()}


def _noise(sent: Tensors, before: Channel, scope: Scope) -> Tensor:
    """Return the expected squared norm (groups,) of the noise that earlier parts added."""
    if before.precision is None:
        return next(iter(sent.values())).new_zeros(len(flat(sent, scope)))
    variances = {name: torch.where(p > 0, 1 / p, torch.zeros_like(p)) for name, p in before.precision.items()}
    return torch.stack([g.sum() for g in flat(variances, scope)])
