"""What is publicly known of a defense, in the only form that attacks read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["Channel", "Tensors", "stack_tensors"]

Tensors = Mapping[str, Tensor]


def stack_tensors(many: Sequence[Tensors]) -> dict[str, Tensor]:
    """``{name: (V, ...)}`` from V mappings with the same names."""
    return {name: torch.stack([one[name] for one in many]) for name in many[0]}


def _unchanged(tensors: Tensors) -> Tensors:
    return tensors


@dataclass(frozen=True, eq=False)
class Channel:
    """How the sent update differs from the raw one: ``sent = apply(raw) + noise + error``.

    Attributes:
        apply: the known, differentiable part (clipping, quantization): raw tensors to sent tensors, called
            ``apply(tensors)``, or ``apply(tensors, known)`` where there is something `known`. It is one and
            the same function for all victims; calling the channel itself suits both.
        precision: 1 / variance of the noise by coordinate; 0 where the sent value says nothing;
            ``None``: the same everywhere.
        bounds: the error is at most this by coordinate (a pruned coordinate is at most the threshold);
            ``None``: exact up to the noise.
        laplace: whether the noise has Laplace's distribution; otherwise, as where several noises add up, it is taken
            for normal.
        known: what `apply` takes besides and differs between victims, by name; ``None``: nothing.
        moment: the known, differentiable part of the `gradient` moment, on per-sample gradients (N, ...):
            `medpfl.federated.local.local_update` takes it; ``None``: there is none.
        exact: the known part itself, raw tensors to sent tensors, where `apply` is a smooth stand-in for it (of signs,
            of rounding); ``None``: `apply` is exact. Attacks use `apply`; the probe of an audit compares with this.
            `then` drops it: it is of one defense alone.
    """

    apply: Callable[..., Tensors] = _unchanged
    precision: Tensors | None = None
    bounds: Tensors | None = None
    laplace: bool = False
    known: Tensors | None = None
    moment: Callable[[Tensors], Tensors] | None = None
    exact: Callable[[Tensors], Tensors] | None = None

    def __call__(self, tensors: Tensors, known: Tensors | None = None) -> Tensors:
        """One victim's tensors through the known part; `known` of that victim where the channel is stacked."""
        known = self.known if known is None else known
        return self.apply(tensors) if known is None else self.apply(tensors, known)

    @property
    def additive(self) -> bool:
        """Whether the sent update is the raw one but for noise and errors, coordinate by coordinate."""
        return self.apply is _unchanged and self.moment is None

    def of(self, names: Collection[str]) -> Channel:
        """What an additive channel says of some parameters."""

        def some(tensors: Tensors | None) -> Tensors | None:
            return None if tensors is None else {name: t for name, t in tensors.items() if name in names}

        return replace(self, precision=some(self.precision), bounds=some(self.bounds))

    def then(
        self,
        apply: Callable[..., Tensors] | None = None,
        *,
        gain: float = 1.0,
        precision: Tensors | None = None,
        bounds: Tensors | None = None,
        laplace: bool = False,
        known: Tensors | None = None,
    ) -> Channel:
        """This channel followed by one more change.

        Args:
            apply: the known part of that change.
            gain: what it multiplies earlier noise and errors by.
            precision, bounds: of the noise and the error that it adds; variances add up, and so do bounds.
            laplace: of the noise that it adds.
            known: what its `apply` takes besides.
        """
        merged, function = self._chained(apply, known)
        return replace(
            self,
            apply=function,
            precision=_join(_times(self.precision, gain**-2 if gain else torch.inf), precision, _add_variances),
            bounds=_join(_times(self.bounds, gain), bounds, torch.add),
            laplace=self.laplace if precision is None else laplace and self.precision is None,
            known=merged,
            exact=None,
        )

    def _chained(
        self, apply: Callable[..., Tensors] | None, known: Tensors | None
    ) -> tuple[Tensors | None, Callable[..., Tensors]]:
        if apply is None:
            return self.known, self.apply
        mark = f"{len(self.known or {})}:"  # the names of two changes must not meet

        def both(tensors: Tensors, given: Tensors | None = None) -> Tensors:
            own = {k.removeprefix(mark): v for k, v in (given or {}).items() if k.startswith(mark)}
            between = self.apply(tensors, given) if self.known else self.apply(tensors)
            return apply(between, own) if known is not None else apply(between)

        marked = {mark + name: value for name, value in (known or {}).items()}
        return ({**(self.known or {}), **marked} or None), both

    @staticmethod
    def stack(channels: Sequence[Channel]) -> Channel:
        """V victims' channels of one defense as one; what differs between them is in tensors (V, ...)."""
        first = channels[0]

        def along(field: str) -> dict[str, Tensor] | None:
            values = [getattr(c, field) for c in channels]
            return None if values[0] is None else stack_tensors(values)

        return replace(first, precision=along("precision"), bounds=along("bounds"), known=along("known"))


def _times(tensors: Tensors | None, factor: float) -> Tensors | None:
    if tensors is None or factor == 1:
        return tensors
    return {name: torch.where(t == 0, t, t * factor) for name, t in tensors.items()}


def _add_variances(one: Tensor, other: Tensor) -> Tensor:
    return 1 / (1 / one + 1 / other)


def _join(one: Tensors | None, other: Tensors | None, add: Callable[[Tensor, Tensor], Tensor]) -> Tensors | None:
    if one is None or other is None:
        return other if one is None else one
    return {name: add(t, other[name]) for name, t in one.items()}
