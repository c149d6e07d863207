"""Training rounds: clients play the same round as in an audit, and the server aggregates their updates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from medpfl.core.errors import DivergedError
from medpfl.core.plan import Plan
from medpfl.core.roles import Defense, State
from medpfl.core.types import Batch, Tensors, Update, Weights
from medpfl.federated.client import client_round
from medpfl.federated.server import aggregate

__all__ = ["Done", "Played", "Server", "Standing", "Work", "close_round", "logits_of", "play_client", "start"]

_CHUNK = 256
"""Number of images in one forward pass."""


@dataclass(frozen=True, eq=False)
class Standing:
    """The state that passes from one round to the next.

    Attributes:
        weights: the global model's weights.
        velocity: the server's momentum by parameter; empty before its first step.
        clients: the defense's state at each client.
        server: the defense's state at the server.
        taken: number of rounds that each client took part in.
    """

    weights: Weights
    velocity: Tensors = field(default_factory=dict)
    clients: tuple[State, ...] = ()
    server: State = field(default_factory=dict)
    taken: tuple[int, ...] = ()


class Work(NamedTuple):
    """One client's task in a round: its number, its images, its plan, and the generator for its draws."""

    client: int
    batch: Batch
    plan: Plan
    generator: torch.Generator


class Done(NamedTuple):
    """A client's finished round: the update that it sends, the defense's state, and its number of images."""

    client: int
    sent: Update
    state: State
    images: int


class Server(NamedTuple):
    """The server's step: `learning_rate` for gradients (weight differences are added in full), and momentum.

    With momentum, the step is ``v = momentum v + step``, as in FedAvgM (Hsu et al. 2019, arXiv:1909.06335, section
    4.3).
    """

    learning_rate: float = 1.0
    momentum: float = 0.0


class Played(NamedTuple):
    """A played round: the state after it, and the updates of the participating clients."""

    after: Standing
    sent: tuple[Update, ...]


def start(network: nn.Module, defense: Defense, clients: int, generator: torch.Generator) -> tuple[nn.Module, Standing]:
    """Return the network after the defense's `model` moment, and the state before the first round."""
    network, state = defense.model(network, defense.init(), generator)
    # States are values: moments return new ones, so that all may start from the same.
    return network, Standing(Weights.of(network), {}, (state,) * clients, state, (0,) * clients)


def play_client(model: nn.Module, weights: Weights, work: Work, defense: Defense, state: State) -> Done:
    """Play one client's round.

    Args:
        model: model after the defense's `model` moment, prepared for the plan.
        weights: the global model's weights before the round.
        work: the client's task.
        defense: the defense for clients and server. Parts that act only at the server are applied to each client's
            update, with the same result.
        state: the defense's state at the client.

    Raises:
        InputError: as in `client_round`.
    """
    client, batch, plan, generator = work
    played = client_round(model, weights, batch, plan, defense, state, generator)
    return Done(client, played.sent, played.state, len(batch))


def close_round(
    before: Standing, done: Sequence[Done], defense: Defense, server: Server, generator: torch.Generator
) -> Played:
    """Aggregate a round's updates, and take the server's step.

    Args:
        before: the state before the round.
        done: what the clients' rounds left, by client; at least one.
        defense: the defense for clients and server.
        server: the server's step.
        generator: generator for the defense's `aggregate` moment.

    Raises:
        InputError: as in the defense.
        DivergedError: if an update or the model is not finite.
    """
    clients, taken = list(before.clients), list(before.taken)
    for client, update, state, _ in done:
        _check_finite(update.tensors, f"the update of client {client}")
        clients[client], taken[client] = state, taken[client] + 1
    sent = [one.sent for one in done]
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


class Sliced(Protocol):
    """Images (N, C, H, W), of which a slice is a tensor: they may be on disk."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: slice, /) -> Tensor: ...


def logits_of(network: nn.Module, weights: Weights, images: Sliced) -> Tensor:
    """Return the global model's logits (N, K) on the CPU for images (N, C, H, W), in eval mode.

    The images are read and moved to the weights' device in chunks. The model receives copies, because it may overwrite
    its input, and the images belong to the data set.
    """
    was = network.training
    network.eval()
    state = {**weights.parameters, **weights.buffers}
    device = next((tensor.device for tensor in state.values()), None)
    try:
        with torch.no_grad():
            parts = (images[start : start + _CHUNK] for start in range(0, len(images), _CHUNK))
            moved = (part.to(device or part.device, copy=True) for part in parts)
            return torch.cat([functional_call(network, state, (part,)).cpu() for part in moved])
    finally:
        network.train(was)
