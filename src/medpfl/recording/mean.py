"""The check of a record that holds the mean of several clients' updates, against the truths of all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import nn

from medpfl.core.errors import InputError
from medpfl.core.records.record import Record
from medpfl.core.records.truth import Truth
from medpfl.core.roles import Defense
from medpfl.core.types import Tensors, Update
from medpfl.recording.check import DRAWS, EQUAL, Case, Cause, Check, is_zero
from medpfl.recording.fits import factor_of, mean_of, norm_of, spread_of
from medpfl.recording.replay import Replayed, check_replayable, gap
from medpfl.recording.rounding import allowance, doubt, near, tolerance_of

__all__ = ["check_mean"]

_SEED = 5_300_017
_ROUNDING = 3.0
"""A mean that secure aggregation rounds may be this many times as far from a simulation as two simulations are."""


def check_mean(
    network: nn.Module, record: Record, truth: Truth, aggregation: Defense | None = None, held: Record | None = None
) -> Check:
    """Return the check of a mean: each client's training is repeated, and the results are averaged.

    Args:
        network: the clients' model.
        record: the record under the network's names and dtypes.
        truth: the truth of all clients, client after client, each with equally many images.
        aggregation: secure aggregation, if the record states one; it rounds the mean.
        held: the record as it was read, if its dtypes are others.
    """
    try:
        check_replayable(record.steps)
    except InputError as error:
        return Check("unverified", open=(f"the training: {error}",))
    if acting := "; ".join([*record.filters, *([record.defense] if record.defense and aggregation is None else [])]):
        return Check("unverified", open=(f"not verifiable beyond the training: {acting} changed the updates after it",))
    parts = list(_parts(record, truth))
    cases = [Case(network, replace(record, clients=1, defense=None), part) for part in parts]
    each = [case.replays(draws=DRAWS) for case in cases]
    draws = max(map(len, each))
    clients = [[made[draw % len(made)] for made in each] for draw in range(draws)]
    if aggregation is not None:
        clients = clients * (DRAWS if draws == 1 else 1)
    count = len(parts[0].images)
    means = [Replayed(_aggregated(own, aggregation, count, draw), {}) for draw, own in enumerate(clients)]
    sent = record.update.tensors
    difference, spread = min(gap(sent, mean.tensors) for mean in means), spread_of(means)
    tolerance, allowed = tolerance_of(record, means, held), 0.0
    if len(means) == 1 and not near(difference, tolerance):
        allowed = max(allowance(case, made) for case, (made,) in zip(cases, each, strict=True))
    if len(means) == 1 and near(difference, tolerance + allowed):
        if open_ := doubt(record, difference, tolerance, allowed):
            return Check("unverified", difference, open=(open_,))
        fact = f"the mean of the {len(parts)} replayed trainings gives the same parameters: relative difference"
        return Check("right", difference, facts=(f"{fact} {difference:.2g}",))
    nothing = is_zero(record) and any(norm_of(mean.tensors) for mean in means)
    if len(means) > 1 and difference <= _ROUNDING * spread + tolerance and not nothing:
        what = "the order of the images" if draws > 1 else f"the rounding of {aggregation!r}"
        open_ = f"not verifiable beyond a difference of {spread:.2g}: {what} is unknown (the record: {difference:.2g})"
        return Check("unverified", difference, spread, open=(open_,))
    return Check("wrong", difference, spread, cause=EQUAL if nothing else _cause(sent, clients[0], difference))


def _parts(record: Record, truth: Truth) -> Iterator[Truth]:
    """Yield each client's truth."""
    count = len(truth.images) // record.clients
    steps = sum(step.images for step in record.steps.steps)
    known = truth.order is not None and len(truth.order) == steps * record.clients
    for i in range(record.clients):
        own = slice(i * count, (i + 1) * count)
        order = truth.order[i * steps : (i + 1) * steps] - i * count if known and truth.order is not None else None
        yield Truth(truth.images[own], truth.labels[own], order)


def _aggregated(clients: Sequence[Replayed], aggregation: Defense | None, images: int, draw: int) -> Tensors:
    if aggregation is None:
        return mean_of(clients)
    generator = torch.Generator().manual_seed(_SEED + draw)
    updates = [Update(one.tensors, "difference", num_samples=images) for one in clients]
    return aggregation.exchange(updates, generator).mean.tensors


def _cause(sent: Tensors, clients: Sequence[Replayed], difference: float) -> Cause:
    """Return the likeliest reason why a record is not the mean."""
    mean, fits = mean_of(clients), 0.1 * difference
    factor = factor_of(sent, mean)
    if gap(sent, {name: factor * t for name, t in mean.items()}) < fits:
        return Cause(
            f"it is {factor:.4g} times the mean of the clients' updates",
            "record the weights before and after the averaging alone, without a server's learning rate or momentum",
        )
    for left in range(len(clients)):
        others = [own for place, own in enumerate(clients) if place != left]
        if others and gap(sent, mean_of(others)) < fits:
            return Cause(f"client {left + 1} of {len(clients)} is not in the mean", "leave out its truth")
    return Cause(
        f"it is not the mean of these clients' updates (relative difference {difference:.2g})",
        "check the plan, the weights before and after the averaging, and that the truths are those of this round",
    )
