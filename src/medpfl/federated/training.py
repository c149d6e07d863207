"""Rounds of training: clients play the round that an audit plays, the server aggregates what it gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from medpfl.core.errors import DivergedError
from medpfl.core.plan import Plan
from medpfl.core.roles import Defense, State
from medpfl.core.types import Batch, Tensors, Update, Weights
from medpfl.federated.client import client_round
from medpfl.federated.server import aggregate

__all__ = ["Played", "Server", "Standing", "Work", "logits_of", "play_round", "start"]

_CHUNK = 256
"""Images of one forward pass."""


@dataclass(frozen=True, eq=False)
class Standing:
    """All that passes from one round to the next.

    Attributes:
        weights: the global model.
        velocity: of the server's momentum, by parameter; empty before its first step.
        clients: the defense's state at each client.
        server: the defense's state at the server.
        taken: rounds that each client took part in.
    """

    weights: Weights
    velocity: Tensors = field(default_factory=dict)
    clients: tuple[State, ...] = ()
    server: State = field(default_factory=dict)
    taken: tuple[int, ...] = ()


class Work(NamedTuple):
    """What one client does in a round: its number, its images and its plan, and the generator of its draws."""

    client: int
    batch: Batch
    plan: Plan
    generator: torch.Generator


class Server(NamedTuple):
    """The server's step: `learning_rate` for gradients (a difference of weights counts whole), and momentum.

    With momentum, the step is ``v = momentum v + step``, as FedAvgM's (Hsu et al. 2019, arXiv:1909.06335, section 4.3).
    """

    learning_rate: float = 1.0
    momentum: float = 0.0


class Played(NamedTuple):
    """A round: where it led, and what left each client that took part."""

    after: Standing
    sent: tuple[Update, ...]


def start(network: nn.Module, defense: Defense, clients: int, generator: torch.Generator) -> tuple[nn.Module, Standing]:
    """The network after the defense's `model` moment, and the standing before the first round."""
    network, state = defense.model(network, defense.init(), generator)
    # States are values: moments return new ones, so that all may start from the same.
    return network, Standing(Weights.of(network), {}, (state,) * clients, state, (0,) * clients)


def play_round(
    model: nn.Module,
    before: Standing,
    work: Sequence[Work],
    defense: Defense,
    server: Server,
    generator: torch.Generator,
) -> Played:
    """One round.

    Args:
        model: through the defense's `model` moment, and prepared for the plans.
        before: where the round starts.
        work: of the clients that take part, at least one.
        defense: of clients and server. Parts that act only at the server are applied there, with the same result.
        server: its step.
        generator: of the defense's `aggregate` moment.

    Raises:
        InputError: what `client_round` and the defense raise; an update or a model that is not finite.
    """
    clients, taken, sent = list(before.clients), list(before.taken), []
    for client, batch, plan, own in work:
        played = client_round(model, before.weights, batch, plan, defense, clients[client], own)
        _check_finite(played.sent.tensors, f"the update of client {client}")
        clients[client], taken[client] = played.state, taken[client] + 1
        sent.append(played.sent)
    seen, state = defense.aggregate(sent, before.server, generator)
    weights, velocity = _step(before, aggregate(before.weights, seen, server.learning_rate), server.momentum)
    _check_finite(weights.parameters, "the global model")
    return Played(Standing(weights, velocity, tuple(clients), state, tuple(taken)), tuple(sent))


def _step(before: Standing, mean: Weights, momentum: float) -> tuple[Weights, Tensors]:
    if not momentum:
        return mean, {}
    old = before.weights.parameters
    velocity = {
        name: momentum * before.velocity.get(name, torch.zeros_like(old[name])) + (new - old[name])
        for name, new in mean.parameters.items()
    }
    return Weights({name: old[name] + v for name, v in velocity.items()}, mean.buffers), velocity


def _check_finite(tensors: Tensors, what: str) -> None:
    if not all(bool(t.isfinite().all()) for t in tensors.values()):
        raise DivergedError(
            f"{what} is not finite: training diverged; lower --learning-rate, or the noise or scale of the defense"
        )


def logits_of(network: nn.Module, weights: Weights, images: Tensor) -> Tensor:
    """The global model's logits (N, K) on the CPU for images (N, C, H, W), in eval mode.

    The model gets copies: it may write into what it is given, and the images are those of the data set.
    """
    was = network.training
    network.eval()
    state = {**weights.parameters, **weights.buffers}
    try:
        with torch.no_grad():
            return torch.cat([functional_call(network, state, (part.clone(),)).cpu() for part in images.split(_CHUNK)])
    finally:
        network.train(was)
