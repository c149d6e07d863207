"""Decoding: estimates the raw update by undoing a defense's disclosed maps once, before any attack."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from medpfl.core.channels.affine import Monomial, Probed, coordinates_of, linear, monomial_of, tensors_of
from medpfl.core.channels.channel import Channel, Tensors
from medpfl.core.types import Update

__all__ = ["certain", "decoded", "decoded_all"]

_ITERATIONS = 500
"""Maximum number of solver iterations to invert a dense map; a map that needs more is left to gradient matching."""

_SOLVED = 1e-6
_CLOSE = 1e-5
"""Allowed relative errors: of a solved test vector, and of the re-encoded estimate against the sent update."""

_DEVIATIONS = 20
"""Standard deviations beyond which a difference is no noise: the largest of 10^7 Laplace values has about 12."""


def certain(group: Tensor) -> float:
    """Return the precision of values known up to their dtype's rounding; at most 1e30."""
    rounding = torch.finfo(group.dtype).eps * float(group.double().square().mean().sqrt())
    return min(rounding**-2, 1e30) if rounding > 1e-15 else 1e30


def decoded_all(updates: Sequence[Update], channels: Sequence[Channel]) -> tuple[Update, Channel | None]:
    """Decode and stack V victims' updates under the channels of one defense.

    If decoding fails for one victim, none is decoded: the channel's known part is one function for all.

    Returns:
        The stacked updates, and the rest of the channel, or ``None`` if nothing is left.
    """
    if channels[0].additive:
        return Update.stack(updates), _remaining(channels)
    unit = _unit(updates)
    shared = None if channels[0].known else _Undone.of(channels[0], updates[0].tensors, unit)
    pairs = []
    for update, channel in zip(updates, channels, strict=True):
        undone = shared or _Undone.of(channel, update.tensors, unit)
        pair = undone(update, channel)
        if pair is None:
            return Update.stack(updates), _remaining(channels)
        pairs.append(pair)
    return Update.stack([update for update, _ in pairs]), _remaining([channel for _, channel in pairs])


def decoded(update: Update, channel: Channel) -> tuple[Update, Channel]:
    """Return the best estimate of one victim's raw update, and the rest of the channel.

    `Channel.apply` is split into the changes that it was composed of (`Channel.then`), and each is probed.

    - A change in which each output depends on at most one input is undone (permutations across the whole update, signs,
      scalings, masks, shifts). A coordinate that was not sent becomes 0 with precision 0. Other changes (clipping)
      remain in the new channel. Its `apply` acts on raw coordinates: it is the old `apply`, followed by the inverse of
      all undone changes together.
    - A dense linear map (a rotation) is undone if all changes are affine and LSQR inverts the map in a few hundred
      steps, to six digits. The noise of every coordinate must then be known, and gets its mean variance; nonzero error
      bounds prevent this, because they cannot be carried over.
    - Update and channel are returned unchanged if nothing can be undone. The same holds if the re-encoded estimate
      differs from the sent update by more than noise, bounds and rounding: then the disclosure is wrong.

    Memory: a few vectors of the update's size. Buffers and the number of samples stay as they are.
    """
    if channel.additive:
        return update, channel
    return _Undone.of(channel, update.tensors, _unit([update]))(update, channel) or (update, channel)


def _unit(updates: Sequence[Update]) -> float:
    """Return the largest root mean square among the updates' finite coordinates; 1 if all are zero."""
    sizes = [coordinates_of(u.tensors).nan_to_num(0.0, 0.0, 0.0).square().mean().sqrt() for u in updates]
    return float(torch.stack(sizes).max()) or 1.0


def _remaining(channels: Sequence[Channel]) -> Channel | None:
    """Stack the victims' channels; return ``None`` if none of them discloses a change.

    If some have a precision, the others count as exact: theirs becomes 1e30.
    """
    if all(channel.silent for channel in channels):
        return None
    if any(channel.precision is None for channel in channels):
        model = next((channel.precision for channel in channels if channel.precision is not None), None)
        if model is not None:
            exact = {name: torch.full_like(t, 1e30) for name, t in model.items()}
            channels = [c if c.precision is not None else replace(c, precision=exact) for c in channels]
    return Channel.stack(channels)


@dataclass(frozen=True, eq=False)
class _Undone:
    """The part of a channel that can be undone.

    Attributes:
        total: composition of all monomial changes; ``None`` if there is nothing to undo.
        dense: the whole known part, if it is another affine map.
        rest: True if other changes remain.
    """

    total: Monomial | None
    dense: Probed | None
    rest: bool

    @classmethod
    def of(cls, channel: Channel, like: Tensors, unit: float) -> _Undone:
        """Probe a channel's parts at an update's size."""
        parts = channel.parts()
        found = [monomial_of(Probed(apply, like), unit) for apply, _ in parts]
        if any(one is None for one in found):
            whole = Probed(channel, like)
            if linear(whole, unit):
                return cls(None, whole, False)
            # The new `apply` is one function for all victims, so it cannot undo a map that differs by victim.
            found = [None if differs else one for one, (_, differs) in zip(found, parts, strict=True)]
        total = None
        for one in found:
            if one is not None:
                total = one if total is None else one.after(total)
        rest = any(one is None for one in found)
        return cls(None if rest and total is not None and total.trivial else total, None, rest)

    def __call__(self, update: Update, channel: Channel) -> tuple[Update, Channel] | None:
        """Return one victim's decoded update and channel; ``None`` if nothing can be undone."""
        if self.dense is not None:
            return _solved(self.dense, update, channel)
        if self.total is None:
            return None
        return _Read(self.total, update, channel).pair(self.rest)


class _Read:
    """One victim's update, decoded through a monomial map."""

    def __init__(self, total: Monomial, update: Update, channel: Channel) -> None:
        self.total, self.update, self.channel = total, update, channel
        self.sent = coordinates_of(update.tensors)
        self.told = None if channel.precision is None else coordinates_of(channel.precision)
        self.error = None if channel.bounds is None else coordinates_of(channel.bounds)
        self.reads = total.scale != 0
        self.count = torch.bincount(total.source[self.reads], minlength=len(self.sent))
        self.once = bool(self.count.max() <= 1)

    def pair(self, rest: bool) -> tuple[Update, Channel] | None:
        """Return the estimate and the rest of the channel; ``None`` if the estimate contradicts the sent update."""
        safe = torch.where(self.reads, self.total.scale, 1.0)
        value = self._gathered((self.sent - self.total.shift) / safe)
        if not self._explains(value):
            return None
        tensors, like = _cast(value, self.update.tensors), self.update.tensors
        precision = None
        if self.told is not None:
            each = self.told * self.total.scale.square()
            each = torch.where(each.isfinite(), each.clamp(max=1e30), each)
            precision = torch.zeros_like(value).index_add(0, self.total.source[self.reads], each[self.reads])
        elif not self.count.all():
            known = (self.count > 0).to(value)
            precision = known * certain(torch.cat([t.flatten() for t in tensors.values()]))
        bounds = None if self.error is None else self._gathered(self.error / safe.abs())
        left = Channel(
            precision=None if precision is None else _cast(precision, like),
            bounds=None if bounds is None else _cast(bounds, like),
            laplace=self.channel.laplace and self.once,
            moment=self.channel.moment,
        )
        if rest:
            apply = partial(_conjugated, self.channel.apply, self.total, self._readers())
            left = replace(left, apply=apply, known=self.channel.known)
        return self.update.replace(tensors), left

    def _readers(self) -> Tensor:
        """Return for each raw coordinate (D,) a sent coordinate that depends on it; -1 if there is none."""
        readers = torch.full_like(self.total.source, -1)
        readers[self.total.source[self.reads]] = self.reads.nonzero()[:, 0]
        return readers

    def _gathered(self, each: Tensor) -> Tensor:
        """Map sent coordinates (D,) to raw ones: several are averaged by precision; 0 where there is none."""
        readers = self._readers()
        single = torch.where(readers >= 0, each[readers.clamp(min=0)], 0.0)
        if self.once:
            return single
        weight = self.total.scale.square() * (1.0 if self.told is None else self.told.clamp(max=1e30))
        sums = [
            torch.zeros_like(each).index_add(0, self.total.source[self.reads], t[self.reads])
            for t in (weight, torch.where(weight > 0, weight * each, 0.0))
        ]
        return torch.where((self.count > 1) & (sums[0] > 0), sums[1] / sums[0], single)

    def _explains(self, value: Tensor) -> bool:
        """Return True if the re-encoded estimate agrees with the sent update, within noise, bounds and rounding."""
        if self.once and self.reads.all():
            return True
        size = self.total.scale.abs() * value.abs()[self.total.source] + self.total.shift.abs() + self.sent.abs()
        allowed = _CLOSE * (size + self.sent.square().mean().sqrt())
        if self.error is not None:
            allowed = allowed + 2 * self.error
        if self.told is not None:
            allowed = allowed + _DEVIATIONS * self.told.rsqrt()  # infinite where it says nothing
        return bool(((self.total(value) - self.sent).abs() <= allowed).all())


def _conjugated(
    apply: Callable[..., Tensors], total: Monomial, readers: Tensor, tensors: Tensors, known: Tensors | None = None
) -> dict[str, Tensor]:
    """Apply a channel's known part, then undo the monomial map: differentiable, in the tensors' own dtype."""
    made = apply(tensors) if known is None else apply(tensors, known)
    sent = torch.cat([made[name].flatten() for name in tensors])
    places = readers.clamp(min=0)
    back = (sent - total.shift.to(sent))[places] / total.scale[places].to(sent).where(readers >= 0, 1.0)
    return tensors_of(torch.where(readers >= 0, back, 0.0), tensors)


def _cast(values: Tensor, like: Tensors) -> dict[str, Tensor]:
    return {name: part.to(like[name].dtype) for name, part in tensors_of(values, like).items()}


def _solved(dense: Probed, update: Update, channel: Channel) -> tuple[Update, Channel] | None:
    """Return the update before a dense affine map; ``None`` if the map cannot be inverted."""
    sent, told = (
        coordinates_of(update.tensors),
        None if channel.precision is None else coordinates_of(channel.precision),
    )
    if channel.bounds is not None and any(bool(t.any()) for t in channel.bounds.values()):
        return None
    if not sent.isfinite().all() or (told is not None and not (told > 0).all()):
        return None
    solve = _solver(dense)
    generator = torch.Generator().manual_seed(3)
    probe = dense.normal(generator)
    with torch.no_grad():
        apart = (solve(dense(probe) - dense.shift) - probe).norm()
    if not apart <= max(_SOLVED, 1e2 * dense.epsilon) * probe.norm():
        return None
    value, precision = solve(sent - dense.shift), None
    if told is not None:
        variance = float(solve(told.rsqrt() * dense.normal(generator)).square().mean())
        precision = _cast(torch.full_like(sent, 1 / max(variance, 1e-30)), update.tensors)
    left = Channel(precision=precision, moment=channel.moment)
    return update.replace(_cast(value, update.tensors)), left


def _solver(dense: Probed) -> Callable[[Tensor], Tensor]:
    """Return a least-squares solver for the map's linear part: matrix-free LSQR (Paige and Saunders 1982)."""
    from scipy.sparse.linalg import LinearOperator, lsqr  # slow to import

    device = dense.shift.device
    pull = cast("Callable[[Tensor], tuple[Tensor]]", torch.func.vjp(dense, torch.zeros_like(dense.shift))[1])

    class Linear(LinearOperator):
        def _matvec(self, x: Any) -> Any:
            with torch.no_grad():
                return (dense(torch.as_tensor(x).flatten().to(device)) - dense.shift).cpu().numpy()

        def _rmatvec(self, x: Any) -> Any:
            with torch.no_grad():
                return pull(torch.as_tensor(x).flatten().to(device))[0].cpu().numpy()

    operator, tolerance = Linear("float64", (dense.size, dense.size)), max(1e-14, dense.epsilon)

    def solve(right: Tensor) -> Tensor:
        found = lsqr(operator, right.cpu().numpy(), atol=tolerance, btol=tolerance, iter_lim=_ITERATIONS)[0]
        return torch.as_tensor(found).to(device)

    return solve
