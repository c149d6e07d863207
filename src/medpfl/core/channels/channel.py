"""What is publicly known of a defense, in the only form that attacks read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from medpfl.core.channels.affine import Monomial, Probed, flattened, linear, monomial_of, unflattened

__all__ = ["Channel", "Tensors", "stack_tensors"]

Tensors = Mapping[str, Tensor]


def stack_tensors(many: Sequence[Tensors]) -> dict[str, Tensor]:
    """``{name: (V, ...)}`` from V mappings with the same names."""
    return {name: torch.stack([one[name] for one in many]) for name in many[0]}


def _unchanged(tensors: Tensors) -> Tensors:
    return tensors


_PROBES = 16
"""Random vectors by which a dense map's effect on noise is told."""


class _Chain:
    """Known parts, one after the other.

    Args:
        parts: a function each, and what marks the names of its own in what is known: ``None`` where it takes nothing.
    """

    def __init__(self, parts: tuple[tuple[Callable[..., Tensors], str | None], ...]) -> None:
        self.parts = parts

    def __call__(self, tensors: Tensors, given: Tensors | None = None) -> Tensors:
        """The tensors after all parts."""
        for apply, mark in self.parts:
            tensors = apply(tensors) if mark is None else apply(tensors, _marked(given, mark))
        return tensors


def _marked(given: Tensors | None, mark: str) -> Tensors:
    return {k.removeprefix(mark): v for k, v in (given or {}).items() if k.startswith(mark)}


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

    @property
    def silent(self) -> bool:
        """Whether it says nothing: the sent update is the raw one."""
        return self.additive and self.precision is None and self.bounds is None

    def parts(self) -> list[tuple[Callable[[Tensors], Tensors], bool]]:
        """The known parts in order, as functions of tensors alone, and whether each takes what differs by victim."""
        return [
            (apply, False) if mark is None else (partial(_given, apply, _marked(self.known, mark)), True)
            for apply, mark in self._chain()
        ]

    def then(
        self,
        apply: Callable[..., Tensors] | None = None,
        *,
        gain: float | None = None,
        precision: Tensors | None = None,
        bounds: Tensors | None = None,
        laplace: bool = False,
        known: Tensors | None = None,
    ) -> Channel:
        """This channel followed by one more change.

        Earlier noise and errors go through `apply`: where it reads one coordinate for each that it gives (a
        permutation, signs, scalings, a mask), exactly; where it is another linear map, noise has its mean variance in
        each tensor, and errors are taken for noise, uniform within their bounds. Where `apply` is not linear, `gain`
        says what it does to them.

        Args:
            apply: the known part of that change.
            gain: what it multiplies earlier noise and errors by; ``None``: as `apply` does, and 1 where that is not
                linear.
            precision, bounds: of the noise and the error that it adds; variances add up, and so do bounds.
            laplace: of the noise that it adds.
            known: what its `apply` takes besides.
        """
        mark = None if known is None else f"{len(self.known or {})}:"  # the names of two changes must not meet
        earlier = self._carried(apply, known) if gain is None and apply is not None else self
        factor = 1.0 if gain is None else gain
        return replace(
            self,
            apply=self.apply if apply is None else _Chain((*self._chain(), (apply, mark))),
            precision=_join(_times(earlier.precision, factor**-2 if factor else torch.inf), precision, _add_variances),
            bounds=_join(_times(earlier.bounds, factor), bounds, torch.add),
            laplace=earlier.laplace if precision is None else laplace and earlier.precision is None,
            known={**(self.known or {}), **{f"{mark}{name}": value for name, value in (known or {}).items()}} or None,
            exact=None,
        )

    def _chain(self) -> tuple[tuple[Callable[..., Tensors], str | None], ...]:
        if isinstance(self.apply, _Chain):
            return self.apply.parts
        return () if self.apply is _unchanged else ((self.apply, None if self.known is None else ""),)

    def _carried(self, apply: Callable[..., Tensors], known: Tensors | None) -> Channel:
        """This channel's noise and errors after a map."""
        told = self.precision if self.precision is not None else self.bounds
        if told is None:
            return self
        probed = Probed(apply if known is None else partial(_given, apply, known), told)
        if not probed.fits:
            return self
        found = monomial_of(probed, 1.0)
        if found is not None:
            return self if found.trivial else self._read(found, told)
        return self._mixed(probed, told) if linear(probed, 1.0) else self

    def _read(self, found: Monomial, told: Tensors) -> Channel:
        precision, bounds, size = None, None, found.scale.abs()
        if self.precision is not None:
            each = flattened(self.precision)[found.source]
            precision = _shaped(torch.where(size > 0, each / size.square(), 0.0), told)
        if self.bounds is not None:
            each = flattened(self.bounds)[found.source]
            bounds = _shaped(torch.where(size > 0, each * size, 0.0), told)
        return replace(self, precision=precision, bounds=bounds)

    def _mixed(self, probed: Probed, told: Tensors) -> Channel:
        """As after a dense map: of every tensor, the mean variance of what comes of independent noise."""
        variance = flattened(told).new_zeros(probed.size)
        if self.precision is not None:
            variance = variance + 1 / flattened(self.precision)
        if self.bounds is not None:
            variance = variance + flattened(self.bounds).square() / 3
        unknown, generator = variance.isinf(), torch.Generator().manual_seed(2)
        deviation = torch.where(unknown, 0.0, variance).sqrt()
        total = torch.zeros_like(variance)
        with torch.no_grad():
            for _ in range(_PROBES):
                total += (probed(deviation * probed.normal(generator)) - probed.shift).square() / _PROBES
            reached = probed(unknown * probed.normal(generator)) - probed.shift
        means = {name: t.mean().expand_as(t) for name, t in unflattened(total, told).items()}
        lost = (reached.abs() > 1e-6 * reached.abs().max()) & unknown.any()
        precision = torch.where(lost, 0.0, 1 / flattened(means).clamp(min=1e-30))
        return replace(self, precision=_shaped(precision, told), bounds=None, laplace=False)

    @staticmethod
    def stack(channels: Sequence[Channel]) -> Channel:
        """V victims' channels of one defense as one; what differs between them is in tensors (V, ...)."""
        first = channels[0]

        def along(field: str) -> dict[str, Tensor] | None:
            values = [getattr(c, field) for c in channels]
            return None if values[0] is None else stack_tensors(values)

        return replace(first, precision=along("precision"), bounds=along("bounds"), known=along("known"))


def _given(apply: Callable[..., Tensors], known: Tensors, tensors: Tensors) -> Tensors:
    return apply(tensors, known)


def _shaped(values: Tensor, like: Tensors) -> dict[str, Tensor]:
    return {name: part.to(like[name].dtype) for name, part in unflattened(values, like).items()}


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
