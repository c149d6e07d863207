"""The honest-but-curious server's view after a round. The target images never pass through here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    "receive",
    "receive_sums",
]


def aggregate(weights: Weights, updates: Sequence[Update], learning_rate: float = 1.0) -> Weights:
    """Apply the mean update, weighted by numbers of samples if they are sent, and return the next global model.

    A gradient (FedSGD) makes a step down with `learning_rate`; a weight difference (FedAvg) is added. Buffers are
    averaged if all clients send them.
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
    """Everything the server received for V victims or was granted: tensors and public settings, no code.

    Together with the model and the defense, which are public, it determines the `Observation`. Another process can
    rebuild the same one.

    Attributes:
        weights: the global model's weights in the round.
        plans: plans of the K clients in an update.
        sent: V updates, each from one client or the mean over K clients.
        told: true if the attacker knows the defense's disclosure.
        image_shape, num_classes, label_shape, labels, order, masks, auxiliary, gray: as in `Observation`.
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
    gray: bool = False

    def __len__(self) -> int:
        """Return the number of victims."""
        return len(self.sent)

    @property
    def num_images(self) -> int:
        """The number of images behind one update: as sent, or else according to the plans."""
        return self.sent[0].num_samples or sum(plan.images for plan in self.plans)


def observation(model: nn.Module, received: Received, defense: Defense) -> Observation:
    """Build an attack's input from what the server received, the model and the defense.

    If the attacker knows the defense, the maps it discloses are inverted here, once, wherever possible (see
    `medpfl.core.channels.decoding`), so no attack gets a tensor before this inversion.

    Args:
        model: model as the client prepared it (the architecture is public).
        received: everything the server received for V victims.
        defense: the defense; it discloses its channel if the attacker knows it.
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
        gray=received.gray,
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
    """Return V clients' rounds as they reach the server: the updates sent, and what `threat` grants, no more.

    Args:
        weights: the global model's weights in the round.
        plan: every client's plan.
        rounds: V rounds.
        threat: the threat model, with its grants.
        image_shape: (C, H, W).
        num_classes: number of classes, K.
        auxiliary: other people's images (M, C, H, W), passed on under the grant ``auxiliary``.
        label_shape: shape of an image's label, () for a class.
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
    """Return V sums over K clients each, as they reach the server: they hold no single client's update.

    Args:
        weights, plan, threat, image_shape, num_classes, auxiliary, label_shape: as in `receive`.
        sums: V pairs: the mean update over K clients, weighted by numbers of samples, and these clients' rounds. From
            the rounds only grants are passed on: labels (V, K * N), client after client, orders and masks.
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
    """Return V clients' rounds as the attacker sees them: the updates sent, and what `threat` grants, no more.

    Args:
        model: model as the client prepared it (the architecture is public).
        weights, plan, rounds, threat, public: as in `receive`.
        defense: the defense; it discloses its channel under the grant ``defense``.

    Raises:
        InputError: if the defense hides single updates from the server, so that there is none to observe.
    """
    if defense.acts("aggregate"):
        raise InputError(f"{defense!r}: the server gets a sum over clients, not single updates: see receive_sums")
    return observation(model, receive(weights, plan, rounds, threat, **public), defense)


def _decoded(received: Received, defense: Defense) -> tuple[Update, Channel | None]:
    """Return the stacked updates; if the attacker knows the defense, decode them and add the remaining channel."""
    if not received.told:
        return Update.stack(received.sent), None
    sent = [_with_start(update, received.weights) for update in received.sent]
    return decoded_all(sent, [defense.disclose(update, received.plans[0]) for update in sent])


def _with_start(update: Update, weights: Weights) -> Update:
    """Return an update with the buffers that the server sent, if it came without them (from a file or a process)."""
    if update.buffers is None or update.buffers_before is not None:
        return update
    return replace(update, buffers_before=weights.buffers)


def _granted(
    threat: ThreatModel, labels: list[Tensor], orders: list[Tensor], masks: Sequence[Tensors], auxiliary: Tensor | None
) -> dict[str, Any]:
    """Return the fields that are granted but not sent, V each. Nothing else that was not sent reaches the attacker."""
    return {
        "labels": torch.stack(labels) if "labels" in threat else None,
        "order": torch.stack(orders) if "order" in threat and orders else None,
        "masks": stack_tensors(masks) if "masks" in threat and masks else None,
        "auxiliary": auxiliary if "auxiliary" in threat else None,
        "gray": "gray" in threat,
    }


def _orders(rounds: Sequence[ClientRound]) -> Tensor | None:
    """Return the clients' orders (K, epochs, N), or ``None`` if the images need no order."""
    orders = [r.draws.order for r in rounds if r.draws.order is not None]
    return torch.stack(orders) if orders else None
