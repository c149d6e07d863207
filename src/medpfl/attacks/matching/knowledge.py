"""What an attack knows of each victim, as trees of tensors with a leading victim axis."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from medpfl.attacks.matching.label_targets import linear_loss
from medpfl.attacks.matching.objectives import Objective
from medpfl.core.types import Observation, Tensors, View

__all__ = ["known_of", "targets_of"]

_SMALL = 1e-8
"""Largest entry of an update whose squares lose digits that count, as sums of them do."""


def known_of(seen: Observation, labels: Tensor | None, unit: Tensor | None, whole: Tensor) -> dict[str, Any]:
    """Everything but the updates: label vectors (V, N, K), or the unit of label variables and whether the vectors sum
    to zero (V,); and what was granted.
    """
    known: dict[str, Any] = {"labels": labels} if labels is not None else {"scale": unit, "whole": whole}
    known["channels"] = [dict(getattr(view.channel, "known", None) or {}) for view in seen.views]
    if seen.order is not None:
        known["order"] = seen.order
    if seen.masks is not None:
        known["masks"] = dict(seen.masks)
    return known


def targets_of(seen: Observation, objective: Objective, known: dict[str, Any]) -> list[Any]:
    """By view, what the objective compares a guess's update with.

    Where the loss is linear in the label vectors, each update is brought to a size of 1 together with the vectors
    in `known`, in place: where a model is all but sure of its label, squares of the update would vanish in float32.
    Where it is not, updates whose squares would vanish or overflow are multiplied by a gain, and so must be a guess's.
    """
    views = [_of_view(view) for view in seen.views]
    if linear_loss(seen) and seen.views[0].channel is None:
        _rescale(views[0], known, "labels" if "labels" in known else "scale")
    sizes = torch.stack([_largest(view["sent"]) for view in views]).amax(0)
    odd = (sizes > 0) & sizes.isfinite() & ((sizes < _SMALL) | (sizes > 1 / _SMALL))
    if odd.any():
        known["gain"] = torch.where(odd, 1 / sizes, 1.0)
        views = [_amplified(view, known["gain"]) for view in views]
    return [vmap(objective.prepare)(view) for view in views]


def _amplified(view: dict[str, Any], gain: Tensor) -> dict[str, Any]:
    """The same in other units: `gain` (V,) times as large, errors too, and precision less by its square."""

    def times(t: Tensor, kind: str) -> Tensor:
        own = gain.view(-1, *[1] * (t.ndim - 1))
        return t / own / own if kind == "precision" else t * own

    return {kind: {k: times(t, kind) for k, t in tensors.items()} for kind, tensors in view.items()}


def _largest(tensors: Tensors) -> Tensor:
    """(V,) the largest entry."""
    return torch.stack([t.flatten(1).abs().amax(1) for t in tensors.values()]).amax(0)


def _of_view(view: View) -> dict[str, Any]:
    known = {"sent": dict(view.update.tensors)}
    for name in ("precision", "bounds"):
        value = getattr(view.channel, name, None)
        if value is not None:
            known[name] = dict(value)
    return known


def _rescale(view: dict[str, Any], known: dict[str, Any], of_labels: str) -> None:
    sent, labels = view["sent"], known[of_labels]
    size = _largest(sent)
    linear = torch.ones_like(size, dtype=torch.bool)
    if of_labels == "labels":  # one-hot vectors go through a softmax, which is not linear
        linear = labels.sum((1, 2)).abs() < 1e-3 * labels.abs().sum((1, 2))
    factor = torch.where(linear & (size > 0), 1 / size.clamp(min=1e-37), 1.0)
    view["sent"] = {k: t * factor.view(-1, *[1] * (t.ndim - 1)) for k, t in sent.items()}
    known[of_labels] = labels * factor.view(-1, *[1] * (labels.ndim - 1))
