"""What a curious server has after a round: the door that the truth does not pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from medpfl.core.channels.decoding import decoded_all
from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.roles import Defense
from medpfl.core.threat import ThreatModel
from medpfl.core.types import Channel, Observation, Tensors, Update, View, Weights, stack_tensors
from medpfl.federated.client import ClientRound

__all__ = [
    "Received",
    "aggregate",
    "observation",
    "observe",
    "observe_sums",
    "receive",
    "receive_sums",
]


def aggregate(weights: Weights, updates: Sequence[Update], learning_rate: float = 1.0) -> Weights:
    """The next global model: the mean update, weighted by the numbers of samples where they are sent.

    A gradient is a step of `learning_rate` down (FedSGD), a difference is added (FedAvg).
    """
    counts = torch.tensor([float(u.num_samples or 1) for u in updates], dtype=torch.float64)
    shares = (counts / counts.sum()).tolist()
    step = -learning_rate if updates[0].kind == "gradient" else 1.0

    def mean(values: Sequence[Tensor]) -> Tensor:
        if not values[0].is_floating_point():
            return values[0]
        return torch.stack([s * v for s, v in zip(shares, values, strict=True)]).sum(0)

    parameters = {k: v + step * mean([u.tensors[k] for u in updates]) for k, v in weights.parameters.items()}
    buffers = dict(weights.buffers)
    if all(u.buffers is not None for u in updates):
        buffers |= {k: mean([(u.buffers or {})[k] for u in updates]) for k in updates[0].buffers or {}}
    return Weights(parameters, buffers)


@dataclass(frozen=True, eq=False)
class Received:
    """What reached the server of V victims, and what it is granted beside: tensors and public settings, no code.

    With the model and the defense, which are public, it makes the `Observation`; another process can make the same one.

    Attributes:
        weights: the global model of the round.
        plans: of the K clients in an update.
        sent: V updates, each of one client or the mean of K of them.
        told: whether the adversary knows what the defense discloses.
        image_shape, num_classes, label_shape, labels, order, masks, auxiliary: as of an `Observation`.
    """

    weights: Weights
    plans: tuple[Plan, ...]
    sent: tuple[Update, ...]
    told: bool
    image_shape: tuple[int, ...]
    num_classes: int
    label_shape: tuple[int, ...] = ()
    labels: Tensor | None = None
    order: Tensor | None = None
    masks: Tensors | None = None
    auxiliary: Tensor | None = None

    def __len__(self) -> int:
        """Victims."""
        return len(self.sent)

    @property
    def num_images(self) -> int:
        """Images behind one update: as sent, or else as the plan says."""
        return self.sent[0].num_samples or sum(plan.images for plan in self.plans)


def observation(model: nn.Module, received: Received, defense: Defense) -> Observation:
    """What an attack gets: a function of what the server received, the model and the defense.

    Where the adversary is told of the defense, the maps that it discloses are undone here, once, wherever they can be
    (see `medpfl.core.channels.decoding`): no attack can read a tensor in which they are not.

    Args:
        model: as the client prepared it (the architecture is public).
        received: of V victims.
        defense: asked for its channel where the adversary is told of it.
    """
    update, channel = _decoded(received, defense)
    return Observation(
        model=model,
        views=(View(received.weights, received.plans, update, channel),),
        image_shape=received.image_shape,
        num_classes=received.num_classes,
        label_shape=received.label_shape,
        labels=received.labels,
        order=received.order,
        masks=received.masks,
        auxiliary=received.auxiliary,
    )


def receive(
    weights: Weights,
    plan: Plan,
    rounds: Sequence[ClientRound],
    threat: ThreatModel,
    *,
    image_shape: tuple[int, ...],
    num_classes: int,
    auxiliary: Tensor | None = None,
    label_shape: tuple[int, ...] = (),
) -> Received:
    """V clients' rounds as they reach the server: what is on the wire, and what `threat` grants, no more.

    Args:
        weights: the global model of the round.
        plan: of every client.
        rounds: V of them.
        threat: what is granted.
        image_shape: (C, H, W).
        num_classes: K.
        auxiliary: (M, C, H, W) images of others, passed on under the grant ``auxiliary``.
        label_shape: of an image's label, () for a class.
    """
    orders = [r.draws.order for r in rounds if r.draws.order is not None]
    masks = [r.draws.masks for r in rounds if r.draws.masks]
    return Received(
        weights,
        (plan,),
        tuple(r.sent for r in rounds),
        "defense" in threat,
        image_shape,
        num_classes,
        label_shape,
        **_granted(threat, [r.batch.labels for r in rounds], orders, masks, auxiliary),
    )


def receive_sums(
    weights: Weights,
    plan: Plan,
    sums: Sequence[tuple[Update, Sequence[ClientRound]]],
    threat: ThreatModel,
    *,
    image_shape: tuple[int, ...],
    num_classes: int,
    auxiliary: Tensor | None = None,
    label_shape: tuple[int, ...] = (),
) -> Received:
    """V sums of the updates of K clients each as they reach the server: no update of a single client is in it.

    Args:
        weights, plan, threat, image_shape, num_classes, auxiliary, label_shape: as of `receive`.
        sums: V times the mean update of K clients by numbers of samples, and the rounds of these clients, of which
            only what is granted is passed on: labels (V, K * N), client after client, orders and masks.
    """
    clients = [list(rounds) for _, rounds in sums]
    labels = [torch.cat([r.batch.labels for r in rounds]) for rounds in clients]
    orders = [stacked for rounds in clients if (stacked := _orders(rounds)) is not None]
    masks = [stack_tensors([r.draws.masks for r in rounds]) for rounds in clients if rounds[0].draws.masks]
    return Received(
        weights,
        (plan,) * len(clients[0]),
        tuple(update for update, _ in sums),
        "defense" in threat,
        image_shape,
        num_classes,
        label_shape,
        **_granted(threat, labels, orders, masks, auxiliary),
    )


def observe(
    model: nn.Module,
    weights: Weights,
    plan: Plan,
    rounds: Sequence[ClientRound],
    threat: ThreatModel,
    *,
    defense: Defense,
    **public: Any,
) -> Observation:
    """V clients' rounds as the adversary sees them: what is on the wire, and what `threat` grants, no more.

    Args:
        model: as the client prepared it (the architecture is public).
        weights, plan, rounds, threat, public: as of `receive`.
        defense: asked for its channel under the grant ``defense``.

    Raises:
        InputError: the defense hides single updates from the server, so that there is none to be seen.
    """
    if defense.acts("aggregate"):
        raise InputError(
            f"{defense!r}: the server gets a sum over clients and no update of one client: see observe_sums"
        )
    return observation(model, receive(weights, plan, rounds, threat, **public), defense)


def observe_sums(
    model: nn.Module,
    weights: Weights,
    plan: Plan,
    sums: Sequence[tuple[Update, Sequence[ClientRound]]],
    threat: ThreatModel,
    *,
    defense: Defense,
    **public: Any,
) -> Observation:
    """V sums of the updates of K clients each as the adversary sees them: no update of a single client is in it.

    Args:
        model, defense: as of `observe`.
        weights, plan, sums, threat, public: as of `receive_sums`.
    """
    return observation(model, receive_sums(weights, plan, sums, threat, **public), defense)


def _decoded(received: Received, defense: Defense) -> tuple[Update, Channel | None]:
    """The stacked updates as sent; where the adversary is told of the defense, decoded, and the rest of the channel."""
    if not received.told:
        return Update.stack(received.sent), None
    return decoded_all(received.sent, [defense.disclose(update, received.plans[0]) for update in received.sent])


def _granted(
    threat: ThreatModel, labels: list[Tensor], orders: list[Tensor], masks: Sequence[Tensors], auxiliary: Tensor | None
) -> dict[str, Any]:
    """Of what is not on the wire, V of each, the fields that the adversary is told: the one door for all of it."""
    return {
        "labels": torch.stack(labels) if "labels" in threat else None,
        "order": torch.stack(orders) if "order" in threat and orders else None,
        "masks": stack_tensors(masks) if "masks" in threat and masks else None,
        "auxiliary": auxiliary if "auxiliary" in threat else None,
    }


def _orders(rounds: Sequence[ClientRound]) -> Tensor | None:
    """(K, epochs, N), or ``None`` where images need no order."""
    orders = [r.draws.order for r in rounds if r.draws.order is not None]
    return torch.stack(orders) if orders else None
