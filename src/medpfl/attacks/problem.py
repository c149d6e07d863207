"""Gradient matching as V problems of flat variables: value and gradient of each, many at once."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from medpfl.attacks.constraints import Constraint
from medpfl.attacks.objectives import Objective
from medpfl.attacks.optimizers import Problem
from medpfl.attacks.priors import Prior
from medpfl.attacks.targets import free_labels, label_scale, linear_loss
from medpfl.core.types import Batch, Observation, Tensors, View
from medpfl.federated.draws import Draws
from medpfl.federated.local import local_update

__all__ = ["STACKED_PARAMETERS", "Matching", "stacks"]

STACKED_PARAMETERS = 2_000_000
"""Up to so many parameters victims are evaluated together on a CPU. Above, they gain nothing by it."""


class Matching(Problem):
    """The problems of an observation, one a restart of a victim, over flat variables.

    A row's variables are its images (N, C, H, W) and, where labels are optimized, N free vectors of K.

    Args:
        objective, prior, constraint: parts of the attack.
        seen: the observation.
        labels: vectors (V, N, K), see `medpfl.attacks.targets`; ``None`` to optimize them.
    """

    def __init__(
        self,
        objective: Objective,
        prior: Prior,
        constraint: Constraint,
        seen: Observation,
        labels: Tensor | None,
    ) -> None:
        self.objective, self.prior, self.constraint = objective, prior, constraint
        self.seen, self.joint, self.linear = seen, labels is None, linear_loss(seen)
        self.shape = (seen.num_images, *seen.image_shape)
        self.pixels = torch.Size(self.shape).numel()
        self.known = _known(seen, labels)
        if labels is None:
            self.known["scale"] = label_scale(seen)
        if self.linear and seen.views[0].channel is None:
            _rescale(self.known, "scale" if labels is None else "labels")
        self.stacked = stacks(seen)
        self.fixed_pixels = False
        self._last: tuple[Tensor, Any] | None = None

    def of(self, victims: Tensor) -> Matching:
        """The problems of some victims (A,), in their order."""
        if len(victims) == len(self.seen):
            return self
        other = copy.copy(self)
        other.known, other._last = _pick(self.known, victims), None
        return other

    def under(self, prior: Prior) -> Matching:
        """The same problems with another prior."""
        other = copy.copy(self)
        other.prior = prior
        return other

    def labels_only(self) -> Matching:
        """The same problems, in which only the label variables move."""
        other = copy.copy(self)
        other.fixed_pixels = True
        return other

    def join(self, images: Tensor, logits: Tensor | None) -> Tensor:
        """Flat variables (rows, D)."""
        parts = [images.flatten(1)] + ([] if logits is None else [logits.flatten(1)])
        return torch.cat(parts, 1)

    def split(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images (rows, N, C, H, W) and logits (rows, N, K)."""
        images = z[..., : self.pixels].unflatten(-1, self.shape)
        if not self.joint:
            return images, None
        return images, z[..., self.pixels :].unflatten(-1, (self.shape[0], self.seen.num_classes))

    def _vectors(self, free: Tensor, scale: Tensor) -> Tensor:
        """Label vectors (..., K) from the free variables: y - p itself where it is one and the same all along."""
        return scale * free_labels(free) if self.linear else free.softmax(-1)

    def project(self, z: Tensor, step: int) -> Tensor:
        """The constraint on the images; logits are free."""
        images = self.constraint(self.split(z)[0], step).flatten(1)
        return torch.cat([images, z[:, self.pixels :]], 1)

    def evaluate(self, z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Values (A,) and gradients (A, D) of the rows."""
        # The fused attention kernels have no second derivative. `grad` sees no `no_grad` around it; it only
        # spares the graph that plain autograd would keep of the model's own parameters.
        with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            if self.stacked:
                return vmap(self._one, randomness="different")(z, self._of(rows))
            each = [self._one(z[i], _pick(self.known, row)) for i, row in enumerate(rows.tolist())]
        return torch.stack([e[0] for e in each]), torch.stack([e[1] for e in each])

    def _moving(self, slope: Tensor) -> Tensor:
        if self.fixed_pixels:
            slope = torch.cat([torch.zeros_like(slope[: self.pixels]), slope[self.pixels :]])
        return slope

    def _of(self, rows: Tensor) -> Any:
        """What is known of the rows; copied only when the rows change."""
        if self._last is None or self._last[0] is not rows:
            whole = len(rows) == len(self.known["views"][0]["sent"][self._first])
            self._last = (rows, self.known if whole else _pick(self.known, rows))
        return self._last[1]

    @property
    def _first(self) -> str:
        return next(iter(self.seen.views[0].update.tensors))

    def _one(self, z: Tensor, known: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Value and gradient for one row."""

        def surrogate(z: Tensor) -> tuple[Tensor, Tensor]:
            """Has the objective's gradient, by a fixed direction in the space of updates; and its value."""
            pull = total = self.prior(self.split(z)[0])
            for view, of_view in zip(self.seen.views, known["views"], strict=True):
                fake = self._update(z, view, known, of_view.get("channel"))
                value, direction = self.objective.value_and_direction(
                    {name: t.detach() for name, t in fake.items()},
                    of_view["sent"],
                    of_view.get("precision"),
                    of_view.get("bounds"),
                )
                total = total + value
                pull = pull + sum((fake[name] * along).sum() for name, along in direction.items())
            return pull, total.detach()

        slope, total = grad(surrogate, has_aux=True)(z)
        return total, self._moving(slope)

    def _update(self, z: Tensor, view: View, known: dict[str, Any], told: Tensors | None) -> Tensors:
        images, logits = self.split(z)
        labels = known["labels"] if logits is None else self._vectors(logits, known["scale"])
        draws = Draws(known.get("order"), known.get("masks", {}))
        batch, moment = Batch(images, labels), None if view.channel is None else view.channel.moment
        update = local_update(self.seen.model, batch, view.plan, view.weights, draws, moment=moment).tensors
        return dict(view.channel(update, told)) if view.channel is not None else dict(update)


def stacks(seen: Observation) -> bool:
    """Whether the victims of an observation are evaluated together, by ``vmap``, or one after the other."""
    parameters = seen.views[0].weights.parameters.values()
    on_cpu = next(iter(parameters)).device.type == "cpu"
    return not on_cpu or sum(p.numel() for p in parameters) <= STACKED_PARAMETERS


def _known(seen: Observation, labels: Tensor | None) -> dict[str, Any]:
    """All that differs between victims, with a leading victim axis."""
    views = []
    for view in seen.views:
        known: dict[str, Any] = {"sent": dict(view.update.tensors)}
        if view.channel is not None and view.channel.precision is not None:
            known["precision"] = dict(view.channel.precision)
        if view.channel is not None and view.channel.bounds is not None:
            known["bounds"] = dict(view.channel.bounds)
        if view.channel is not None and view.channel.known is not None:
            known["channel"] = dict(view.channel.known)
        views.append(known)
    rest: dict[str, Any] = {"views": views}
    if labels is not None:
        rest["labels"] = labels
    if seen.order is not None:
        rest["order"] = seen.order
    if seen.masks is not None:
        rest["masks"] = dict(seen.masks)
    return rest


def _rescale(known: dict[str, Any], of_labels: str) -> None:
    """Brings each update to a size of 1, in place, together with the label vectors that it is linear in.

    Where a model is all but sure of its label, squares of the update would vanish in float32.
    """
    sent, labels = known["views"][0]["sent"], known[of_labels]
    size = torch.stack([t.flatten(1).abs().amax(1) for t in sent.values()]).amax(0)
    linear = torch.ones_like(size, dtype=torch.bool)
    if of_labels == "labels":  # one-hot vectors go through a softmax, which is not linear
        linear = labels.sum((1, 2)).abs() < 1e-3 * labels.abs().sum((1, 2))
    factor = torch.where(linear & (size > 0), 1 / size.clamp(min=1e-37), 1.0)
    known["views"][0]["sent"] = {k: t * factor.view(-1, *[1] * (t.ndim - 1)) for k, t in sent.items()}
    known[of_labels] = labels * factor.view(-1, *[1] * (labels.ndim - 1))


def _pick(tree: Any, index: Tensor | int) -> Any:
    """The same tree with every tensor indexed along its victim axis; a number makes no copy."""
    if isinstance(tree, Tensor):
        return tree[index]
    if isinstance(tree, Mapping):
        return {key: _pick(value, index) for key, value in tree.items()}
    return [_pick(value, index) for value in tree]
