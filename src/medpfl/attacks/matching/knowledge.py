"""The attacker's data on each victim, as trees of tensors with a leading victim axis."""

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
"""An update whose largest entry is below this loses significant digits when its entries are squared and summed."""


def known_of(seen: Observation, labels: Tensor | None, unit: Tensor | None, whole: Tensor) -> dict[str, Any]:
    """Return everything known except the updates.

    The result holds the grants and either the label vectors (V, N, K), or the unit of the label variables with a flag
    (V,) that is 1 where the vectors sum to zero.
    """
    known: dict[str, Any] = {"labels": labels} if labels is not None else {"scale": unit, "whole": whole}
    known["channels"] = [dict(getattr(view.channel, "known", None) or {}) for view in seen.views]
    if seen.order is not None:
        known["order"] = seen.order
    if seen.masks is not None:
        known["masks"] = dict(seen.masks)
    return known


def targets_of(seen: Observation, objective: Objective, known: dict[str, Any]) -> list[Any]:
    """Return the objective's targets for each view.

    Where the loss is linear in the label vectors, each update is rescaled to a largest entry of 1, and the vectors in
    `known` with it, in place. Otherwise the update's squares would vanish in float32 where a model is almost sure of
    its label. All other updates whose squares would vanish or overflow are multiplied by a gain, which is added to
    `known`; a guess's update must be multiplied by it too.
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
    """Return the view in other units: values and errors times `gain` (V,), precision divided by its square."""

    def times(t: Tensor, kind: str) -> Tensor:
        own = gain.view(-1, *[1] * (t.ndim - 1))
        return t / own / own if kind == "precision" else t * own

    return {kind: {k: times(t, kind) for k, t in tensors.items()} for kind, tensors in view.items()}


def _largest(tensors: Tensors) -> Tensor:
    """Return the largest absolute entry (V,)."""
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
