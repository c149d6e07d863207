"""Two records of one update, before and after a client's filters: what the filters changed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from medpfl.core.errors import InputError
from medpfl.core.messages import counted
from medpfl.core.records.record import Record
from medpfl.core.types import Tensors

__all__ = ["LAWS", "Pair", "compared_records"]

LAWS = {"normal": 0.7979, "Laplace": 0.7071, "uniform": 0.8660}
"""Mean absolute value divided by the standard deviation, for noise with mean zero (Geary 1935)."""

_SHAPES = {
    "normal": "it is normally distributed",
    "Laplace": "it is Laplace-distributed",
    "uniform": "it is uniformly distributed",
}
_OTHER = f"the distribution is none of {', '.join(LAWS)}, or there are too few values to tell"

_FEW, _NEAR = 1000, 0.015
_NOTHING = 1e-6
"""Share of the update's norm below which a rest is rounding, not noise."""


@dataclass(frozen=True)
class Pair:
    """The change from the raw update to the sent one, over all parameters.

    Attributes:
        cosine: cosine similarity between both; 1 if the filters only scale.
        change: norm of the difference between both, divided by the raw update's norm.
        sent: share of coordinates that are not zero in the sent update.
        scale: factor by which the raw update is found in the sent one, by least squares over the sent coordinates.
        noise: standard deviation of the rest, in the update's unit; 0 if nothing is left.
        law: law of the rest, one of `LAWS`; empty if there is none, or if it follows none of them.
        buffers: names of the buffers that differ.
    """

    cosine: float
    change: float
    sent: float
    scale: float
    noise: float
    law: str
    buffers: tuple[str, ...]

    def lines(self) -> Iterator[str]:
        """Yield what the filters did, in sentences."""
        if not self.change:
            yield "the filters left the update as it was"
        else:
            yield f"the filters changed {self.change:.2%} of the update's norm; cosine similarity {self.cosine:.4f}"
        if self.sent < 1:
            yield f"{self.sent:.1%} of the coordinates were sent, the others are zero"
        if self.change and abs(self.scale - 1) > _NOTHING:
            yield f"the raw update is in the sent one with the factor {self.scale:.4g}"
        if self.noise:
            yield f"the rest has the standard deviation {self.noise:.4g}; {_SHAPES.get(self.law, _OTHER)}"
        if self.buffers:
            yield f"the filters changed {counted(len(self.buffers), 'buffer')}: {', '.join(self.buffers[:3])}"


def compared_records(raw: Record, sent: Record) -> Pair:
    """Compare the record before a client's filters with the one after them.

    Raises:
        InputError: they are not records of the same update.
    """
    _check_same(raw, sent)
    names = list(raw.update.tensors)
    one, other = (_flat(record.update.tensors, names) for record in (raw, sent))
    kept = other != 0
    size = float(one.norm())
    product = float(one @ other)
    scale = float(one[kept] @ other[kept]) / max(float(one[kept].square().sum()), 1e-300)
    rest = (other - scale * one)[kept]
    noisy = float(rest.norm()) > _NOTHING * max(float(other.norm()), 1e-300)
    before, after = raw.update.buffers or {}, sent.update.buffers or {}
    return Pair(
        cosine=product / max(size * float(other.norm()), 1e-300),
        change=float((other - one).norm()) / max(size, 1e-300),
        sent=float(kept.double().mean()),
        scale=scale,
        noise=float(rest.std()) if noisy and len(rest) > 1 else 0.0,
        law=_law(rest) if noisy else "",
        buffers=tuple(n for n in before if n in after and not torch.equal(before[n].double(), after[n].double())),
    )


def _check_same(raw: Record, sent: Record) -> None:
    for what, own, others in (
        ("parameters", raw.weights.parameters, sent.weights.parameters),
        ("updates", raw.update.tensors, sent.update.tensors),
    ):
        if {k: t.shape for k, t in own.items()} != {k: t.shape for k, t in others.items()}:
            raise InputError(f"the two records have {what} with other names or shapes: give records of one update")
    if raw.update.kind != sent.update.kind:
        raise InputError("one record holds a gradient and the other a difference: give records of one update")
    if any(not torch.equal(t, sent.weights.parameters[name]) for name, t in raw.weights.parameters.items()):
        raise InputError("the two records start from other weights: give records of one round of one client")


def _flat(tensors: Tensors, names: list[str]) -> Tensor:
    return torch.cat([tensors[name].detach().double().flatten() for name in names])


def _law(rest: Tensor) -> str:
    if len(rest) < _FEW or not float(rest.std()):
        return ""
    found = float((rest - rest.mean()).abs().mean() / rest.std())
    name = min(LAWS, key=lambda one: abs(LAWS[one] - found))
    return name if abs(LAWS[name] - found) < _NEAR else ""
