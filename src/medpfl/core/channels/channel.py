"""The channel: public knowledge about a defense, in the only form that attacks use."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from medpfl.core.channels.affine import Monomial, Probed, coordinates_of, linear, monomial_of, tensors_of

__all__ = ["Channel", "Tensors", "stack_tensors"]

Tensors = Mapping[str, Tensor]


def stack_tensors(many: Sequence[Tensors]) -> dict[str, Tensor]:
    """Stack V mappings with the same names into ``{name: (V, ...)}``."""
    return {name: torch.stack([one[name] for one in many]) for name in many[0]}


def _unchanged(tensors: Tensors) -> Tensors:
    return tensors


_PROBES = 16
"""Number of random vectors that estimate a dense map's effect on noise."""


class _Chain:
    """Known parts, applied in order.

    Args:
        parts: pairs of a function and the prefix of its names in `known`; ``None`` if it takes no `known`.
    """

    def __init__(self, parts: tuple[tuple[Callable[..., Tensors], str | None], ...]) -> None:
        self.parts = parts

    def __call__(self, tensors: Tensors, given: Tensors | None = None) -> Tensors:
        """Return the tensors after all parts."""
        for apply, mark in self.parts:
            tensors = apply(tensors) if mark is None else apply(tensors, _marked(given, mark))
        return tensors


def _marked(given: Tensors | None, mark: str) -> Tensors:
    return {k.removeprefix(mark): v for k, v in (given or {}).items() if k.startswith(mark)}


@dataclass(frozen=True, eq=False)
class Channel:
    """The relation between raw and sent update: ``sent = apply(raw) + noise + error``.

    Attributes:
        apply: the known, differentiable part (such as clipping), from raw to sent tensors. It is called as
            ``apply(tensors)``, or as ``apply(tensors, known)`` if `known` is set, and is the same function for all
            victims. Calling the channel itself handles both cases.
        precision: 1 / variance of the noise, per coordinate; 0 where the sent value carries no information; ``None``
            if the precision is the same everywhere.
        bounds: largest error per coordinate (for a pruned coordinate, the threshold); ``None`` if exact up to noise.
        laplace: True if the noise has a Laplace distribution. Otherwise, for example if several noises add up, it is
            treated as normal.
        known: additional arguments of `apply`, by name, which may differ between victims; ``None`` if there are none.
        moment: the known, differentiable part of the `gradient` moment, on per-sample gradients (N, ...), for
            `medpfl.federated.local.local_update`; ``None`` if there is none.
        exact: the exact known part, from raw to sent tensors, if `apply` is a smooth surrogate for it (for signs or
            rounding); ``None`` if `apply` is exact. Attacks use `apply`; an audit's probe compares with `exact`. `then`
            drops it, because it describes one defense alone.
    """

    apply: Callable[..., Tensors] = _unchanged
    precision: Tensors | None = None
    bounds: Tensors | None = None
    laplace: bool = False
    known: Tensors | None = None
    moment: Callable[[Tensors], Tensors] | None = None
    exact: Callable[[Tensors], Tensors] | None = None

    def __call__(self, tensors: Tensors, known: Tensors | None = None) -> Tensors:
        """Apply the known part to one victim's tensors; pass the victim's `known` if the channel is stacked."""
        known = self.known if known is None else known
        return self.apply(tensors) if known is None else self.apply(tensors, known)

    @property
    def additive(self) -> bool:
        """True if the sent update equals the raw one up to noise and errors, coordinate by coordinate."""
        return self.apply is _unchanged and self.moment is None

    def of(self, names: Collection[str]) -> Channel:
        """Return an additive channel restricted to some parameters."""

        def some(tensors: Tensors | None) -> Tensors | None:
            return None if tensors is None else {name: t for name, t in tensors.items() if name in names}

        return replace(self, precision=some(self.precision), bounds=some(self.bounds))

    @property
    def silent(self) -> bool:
        """True if the channel discloses no change: the sent update is the raw one."""
        return self.additive and self.precision is None and self.bounds is None

    def parts(self) -> list[tuple[Callable[[Tensors], Tensors], bool]]:
        """Return the known parts in order, as functions of tensors alone, each with True if it differs by victim."""
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
        """Return this channel followed by one more change.

        Earlier noise and errors pass through `apply`. If each output of `apply` depends on one input (a permutation,
        signs, scalings, a mask), they are transformed exactly. For another linear map, noise gets its mean variance in
        each tensor, and errors are treated as noise, uniform within their bounds. If `apply` is not linear, `gain`
        states its effect on them.

        Args:
            apply: the known part of the change.
            gain: factor by which the change multiplies earlier noise and errors. ``None`` derives it from `apply`, or
                uses 1 if `apply` is not linear.
            precision, bounds: precision of the noise and bounds of the error that the change adds. Variances add up,
                and so do bounds.
            laplace: True if the added noise has a Laplace distribution.
            known: additional arguments of the change's `apply`.
        """
        mark = None if known is None else f"{len(self.known or {})}:"  # the names of two changes must not collide
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
        """Return this channel with its noise and errors passed through a map."""
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
            each = coordinates_of(self.precision)[found.source]
            precision = _shaped(torch.where(size > 0, each / size.square(), 0.0), told)
        if self.bounds is not None:
            each = coordinates_of(self.bounds)[found.source]
            bounds = _shaped(torch.where(size > 0, each * size, 0.0), told)
        return replace(self, precision=precision, bounds=bounds)

    def _mixed(self, probed: Probed, told: Tensors) -> Channel:
        """Return this channel after a dense map, with each tensor's mean variance from independent input noise."""
        variance = coordinates_of(told).new_zeros(probed.size)
        if self.precision is not None:
            variance = variance + 1 / coordinates_of(self.precision)
        if self.bounds is not None:
            variance = variance + coordinates_of(self.bounds).square() / 3
        unknown, generator = variance.isinf(), torch.Generator().manual_seed(2)
        deviation = torch.where(unknown, 0.0, variance).sqrt()
        total = torch.zeros_like(variance)
        with torch.no_grad():
            for _ in range(_PROBES):
                total += (probed(deviation * probed.normal(generator)) - probed.shift).square() / _PROBES
            reached = probed(unknown * probed.normal(generator)) - probed.shift
        means = {name: t.mean().expand_as(t) for name, t in tensors_of(total, told).items()}
        lost = (reached.abs() > 1e-6 * reached.abs().max()) & unknown.any()
        precision = torch.where(lost, 0.0, 1 / coordinates_of(means).clamp(min=1e-30))
        return replace(self, precision=_shaped(precision, told), bounds=None, laplace=False)

    @staticmethod
    def stack(channels: Sequence[Channel]) -> Channel:
        """Stack V victims' channels of one defense; their differences are in tensors (V, ...)."""
        first = channels[0]

        def along(field: str) -> dict[str, Tensor] | None:
            values = [getattr(c, field) for c in channels]
            return None if values[0] is None else stack_tensors(values)

        return replace(first, precision=along("precision"), bounds=along("bounds"), known=along("known"))


def _given(apply: Callable[..., Tensors], known: Tensors, tensors: Tensors) -> Tensors:
    return apply(tensors, known)


def _shaped(values: Tensor, like: Tensors) -> dict[str, Tensor]:
    return {name: part.to(like[name].dtype) for name, part in tensors_of(values, like).items()}


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
