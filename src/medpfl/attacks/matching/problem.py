"""Gradient matching as V problems with flat variables: value and gradient of each, many at once."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp, vmap

from medpfl.attacks.matching.constraints import Constraint, Free
from medpfl.attacks.matching.knowledge import known_of, targets_of
from medpfl.attacks.matching.label_targets import free_labels, label_scale, linear_loss, rounded, with_spare
from medpfl.attacks.matching.labels import last_layer
from medpfl.attacks.matching.objectives import Objective
from medpfl.attacks.matching.priors import NoPrior, Prior
from medpfl.attacks.optimize.coordinates import Basis, Pixels
from medpfl.attacks.optimize.optimizer import Problem
from medpfl.attacks.optimize.stacks import pick
from medpfl.core.types import Batch, Observation, Tensors, View, Weights
from medpfl.federated.draws import Draws
from medpfl.federated.local import local_update

__all__ = ["STACKED_PARAMETERS", "Matching", "stacks"]

LABEL_UNIT = 0.01
"""Scale of a label variable relative to y - p. An update changes far more with the labels than with a pixel."""

STACKED_PARAMETERS = 2_000_000
"""Largest number of parameters for which victims are evaluated together on a CPU. Larger models gain nothing by it."""

_TOGETHER, _WEIGHTS = 2**18, 2**25
"""Largest numbers of elements of images, times epochs, and of parameters, times steps, in the guesses for one victim
that are evaluated together. They need memory beside that of the victims of a stack, about 1 GiB for a wide network."""


class Matching(Problem):
    """The problems of an observation over flat variables.

    A row's variables are its images (N, C, H, W) in a basis, with one channel if the images are known to be gray, and,
    where labels are optimized, N free vectors with K elements.

    Args:
        seen: observation.
        labels: label vectors (V, N, K), or K + 1 with a spare logit (see `medpfl.attacks.matching.label_targets`);
            ``None`` to optimize them.
        objective, prior, constraint, basis: the attack's parts.
    """

    def __init__(
        self,
        seen: Observation,
        labels: Tensor | None,
        objective: Objective,
        prior: Prior = NoPrior(),
        constraint: Constraint = Free(),
        basis: Basis = Pixels(),
    ) -> None:
        self.objective, self.prior, self.constraint, self.basis = objective, prior, constraint, basis
        self.joint, self.linear, self.stacked = labels is None, linear_loss(seen), stacks(seen.views[0].weights)
        self.refused: list[RuntimeError] = []  # shared with every part of the problem
        self.guesses: dict[str, Tensor] = {}
        self.shape = (seen.num_images, *seen.image_shape)
        self.free = (seen.num_images, 1, *seen.image_shape[1:]) if seen.gray else self.shape
        self.pixels = torch.Size(self.free).numel()
        self.labels, self.fixed_pixels, self.whole = labels, False, (~rounded(seen)).float()
        self.spare = not self.whole.all() if labels is None else labels.shape[2] > seen.num_classes
        self.model = with_spare(seen.model) if self.spare else seen.model
        self.unit = label_scale(seen) if labels is None else None  # from all tensors: a part may lack the last layer
        self._see(seen)

    def _see(self, seen: Observation) -> None:
        self.seen, self._last, self.victims = seen, None, torch.arange(len(seen))
        self.guess: Tensor | None = None
        self.known = known_of(seen, self.labels, self.unit, self.whole)
        self.known["targets"] = targets_of(seen, self.objective, self.known)

    @property
    def together(self) -> bool:
        """True if victims are evaluated together by ``vmap``; else they are evaluated one after the other."""
        return self.stacked and not self.refused

    def of(self, victims: Tensor, guess: Tensor | None = None) -> Matching:
        """Return the problems of some victims (A,), in order. A repeated victim is another row, but not copied.

        With `guess` (A,), each row has this one of its victim's guesses (see `among`).
        """
        other = copy.copy(self)
        other.victims, other.guess, other._last = self.victims[victims], guess, None
        return other

    def among(self, labels: Tensor, order: Tensor | None) -> Matching:
        """Return the same problems with several guesses of what is not granted, from which `of` takes one for each row.

        Args:
            labels: label vectors (V, S, N, K).
            order: image indices (V, S, epochs, N) in each epoch's order; ``None``: as it is known.
        """
        other = copy.copy(self)
        other.guesses = {"labels": labels} if order is None else {"labels": labels, "order": order}
        return other

    def under(self, prior: Prior, objective: Objective | None = None) -> Matching:
        """Return the same problems with another prior and, if given, another objective."""
        other = copy.copy(self)
        other.prior = prior
        if objective is not None:
            other.objective = objective
            other._see(self.seen)
        return other

    def in_basis(self, basis: Basis) -> Matching:
        """Return the same problems in other coordinates."""
        other = copy.copy(self)
        other.basis = basis
        return other

    def up_to(self, size: int) -> Matching:
        """Return the problems without large tensors.

        Ignore every tensor from the first with more than `size` elements onward, except the last layer. Ignore none
        where the update mixes tensors (several views, several local steps, some channels).
        """
        parameters, last = self.seen.views[0].weights.parameters, last_layer(self.seen)
        early = list(takewhile(lambda name: parameters[name].numel() <= size or name in last, parameters))
        kept = {*early, *(name for name in last if name)}
        return (self._part(kept) if len(kept) < len(parameters) else None) or self

    def labels_only(self) -> Matching:
        """Return the same problems with fixed pixels, so that only the label variables move.

        If each update is one gradient, the distance covers only the last bias, whose gradient is then the label
        vectors' mean for any images.
        """
        bias = last_layer(self.seen)[1]
        other = (self._part({bias}) if bias and self.linear else None) or copy.copy(self)
        other.fixed_pixels = True
        return other

    def head_only(self) -> Matching | None:
        """Return the problems with only the last layer in the distance; ``None`` where the update mixes tensors."""
        return self._part({name for name in last_layer(self.seen) if name})

    def told_by_head(self) -> bool:
        """Return True if the last layer has at least twice as many inputs as pixels, enough to determine the image."""
        weight = last_layer(self.seen)[0]
        if weight is None or self.seen.num_images > 1 or self.seen.views[0].channel is not None:
            return False
        return self.seen.views[0].weights.parameters[weight][0].numel() >= 2 * self.pixels

    def _part(self, names: set[str]) -> Matching | None:
        view, *more = self.seen.views
        if more or not names or any(plan.steps > 1 for plan in view.plans):
            return None
        if view.channel is not None and not view.channel.additive:
            return None
        told = torch.stack([view.read(name)[1].flatten(1).any(1) for name in names])
        if not told.any(0).all():  # nothing of it was sent
            return None
        old = view.weights
        fixed = {k: t for k, t in old.parameters.items() if k not in names}
        weights = Weights({k: t for k, t in old.parameters.items() if k in names}, {**old.buffers, **fixed})
        update = view.update.replace({k: t for k, t in view.update.tensors.items() if k in names})
        other = copy.copy(self)
        channel = None if view.channel is None else view.channel.of(names)
        other._see(replace(self.seen, views=(replace(view, weights=weights, update=update, channel=channel),)))
        return other

    def join(self, images: Tensor, logits: Tensor | None) -> Tensor:
        """Return flat variables (rows, D)."""
        images = images if self.free == self.shape else images.mean(1 - len(self.shape), keepdim=True)
        coordinates = self.basis.coordinates(images, len(self.shape) - 1)
        return torch.cat([coordinates.flatten(1)] + ([] if logits is None else [logits.flatten(1)]), 1)

    def split(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return images (rows, N, C, H, W) and logits (rows, N, K)."""
        coordinates = z[..., : self.pixels].unflatten(-1, self.free)
        images = self.basis.images(coordinates, len(self.shape) - 1).expand(*z.shape[:-1], *self.shape)
        if not self.joint:
            return images, None
        return images, z[..., self.pixels :].unflatten(
            -1, (self.shape[0], self.seen.num_classes, *self.seen.label_shape)
        )

    def _vectors(self, free: Tensor, known: dict[str, Any]) -> Tensor:
        """Return label vectors (..., K) from the free variables; y - p where the logits' gradient is constant."""
        if not self.linear:
            return free.softmax(-1 - len(self.seen.label_shape))
        return free_labels(LABEL_UNIT * known["scale"] * free, known["whole"], self.spare)

    def project(self, z: Tensor, step: int) -> Tensor:
        """Apply the constraint to the images; logits are free."""
        images, logits = self.split(z)
        return self.join(self.constraint(images, step), logits)

    def evaluate(self, z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate the objective at points (A, D) of the problems `rows` (A,), with gradients (A, D)."""
        # `no_grad` does not affect `vjp`. It only spares the graph that plain autograd would keep for the
        # model's own parameters.
        with torch.no_grad():
            if self.together:
                try:
                    parts = zip(z.split(self._width), self._of(rows), strict=True)
                    values, slopes = zip(*(self._stack(part, *known) for part, known in parts), strict=True)
                    return torch.cat(values), torch.cat(slopes)
                except torch.OutOfMemoryError:
                    raise  # the loop would hide it: an audit splits the stack, and notes that
                except RuntimeError as error:  # vmap lacks a rule for an operation; for other causes, the loop raises
                    if "allocate memory" in str(error):
                        raise
                    self.refused.append(error)
            each = [self._one(z[i], self._known_of(int(row))) for i, row in enumerate(rows.cpu())]
        return torch.stack([e[0] for e in each]), torch.stack([e[1] for e in each])

    def _stack(self, z: Tensor, known: Any, axis: Any) -> tuple[Tensor, Tensor]:
        """Evaluate rows that share the known data (axis ``None``), or have their own along its first axis.

        The axis may be a dictionary with one for each entry of the known data.
        """
        return vmap(self._one, in_dims=(0, axis), randomness="different")(z, known)

    def _of(self, rows: Tensor) -> Iterable[tuple[Any, int | None]]:
        """Return the rows' known data and its axis, in stacks with at most `_width` rows.

        The data is copied only when the rows change. Several stacks are made one after the other, so that only one copy
        exists at a time.
        """
        places = rows.cpu()
        if len(places) > self._width:
            return (self._known(part) for part in places.split(self._width))
        if self._last is None or self._last[0] is not rows:
            self._last = (rows, self._known(places))
        return [self._last[1]]

    @property
    def _width(self) -> int:
        """Largest number of rows that are evaluated together: the victims, or some guesses for one of them."""
        if self.guess is None:
            return len(self.seen)
        plans = [plan for view in self.seen.views for plan in view.plans]
        pixels = self.pixels * max(plan.epochs for plan in plans)
        weights = sum(t.numel() for t in self.seen.views[0].weights.parameters.values())
        weights *= max(plan.steps for plan in plans)
        return max(len(self.seen), min(self.guesses["labels"].shape[1], _TOGETHER // pixels, _WEIGHTS // weights))

    def _known(self, places: Tensor) -> tuple[Any, Any]:
        known, axis = self._known_to_all(self.victims[places])
        if self.guess is None:
            return known, axis
        own = {name: t[self.victims[places], self.guess[places]] for name, t in self.guesses.items()}
        known = {**known, **own}
        return known, {name: 0 if name in own else axis for name in known}

    def _known_of(self, place: int) -> Any:
        known = pick(self.known, int(self.victims[place]))
        if self.guess is None:
            return known
        return {**known, **{k: t[self.victims[place], self.guess[place]] for k, t in self.guesses.items()}}

    def _known_to_all(self, victims: Tensor) -> tuple[Any, int | None]:
        if len(victims) == len(self.seen) and (victims == torch.arange(len(victims))).all():
            return self.known, 0
        if (victims == victims[0]).all():
            return pick(self.known, int(victims[0])), None
        return pick(self.known, victims), 0

    def _one(self, z: Tensor, known: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return value and gradient for one row."""

        def guessed(z: Tensor) -> tuple[Tensor, list[Tensors]]:
            views = zip(self.seen.views, known["channels"], strict=True)
            fakes: list[Tensors] = [self._update(z, view, known, told) for view, told in views]
            if "gain" in known:
                fakes = [{k: t * known["gain"] for k, t in fake.items()} for fake in fakes]
            return self.prior(self.split(z)[0]), fakes

        (total, fakes), pull, *_ = vjp(guessed, z)
        directions = []
        for fake, target in zip(fakes, known["targets"], strict=True):
            value, direction = self.objective.value_and_direction(fake, target)
            total = total + value
            directions.append(direction)
        (slope,) = pull((torch.ones_like(total), directions))
        if self.fixed_pixels:
            slope = torch.cat([torch.zeros_like(slope[: self.pixels]), slope[self.pixels :]])
        return total, slope

    def _update(self, z: Tensor, view: View, known: dict[str, Any], told: Tensors) -> Tensors:
        """Return a guess's update as it is sent; for several clients, the mean of their updates by number of images."""
        images, logits = self.split(z)
        labels = known["labels"] if logits is None else self._vectors(logits, known)
        if len(view.plans) == 1:
            return self._client(Batch(images, labels), view, Draws(known.get("order"), known.get("masks", {})), told)
        sizes = [plan.images for plan in view.plans]
        total: dict[str, Tensor] = {}
        for client, own in enumerate(map(Batch, images.split(sizes), labels.split(sizes))):
            order = known["order"][client] if "order" in known else None
            draws = Draws(order, pick(known.get("masks", {}), client))
            for name, t in self._client(own, view, draws, told, client).items():
                total[name] = total.get(name, 0) + t * (sizes[client] / sum(sizes))
        return total

    def _client(self, batch: Batch, view: View, draws: Draws, told: Tensors, client: int = 0) -> dict[str, Tensor]:
        """Return the update of one client."""
        plan, moment = view.plans[client], None if view.channel is None else view.channel.moment
        update = local_update(self.model, batch, plan, view.weights, draws, moment=moment).tensors
        return dict(update) if view.channel is None else dict(view.channel(update, told or None))


def stacks(weights: Weights) -> bool:
    """Return True if evaluating victims together by ``vmap`` pays off for a model of this size and device."""
    parameters = weights.parameters.values()
    on_cpu = next(iter(parameters)).device.type == "cpu"
    return not on_cpu or sum(p.numel() for p in parameters) <= STACKED_PARAMETERS
