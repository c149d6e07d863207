"""One client in one round: its data, its defense, and what leaves it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.roles import Defense, State
from medpfl.core.types import Batch, Tensors, Update, Weights
from medpfl.federated.draws import Draws, draw
from medpfl.federated.local import joined, local_update

__all__ = ["ClientRound", "checked_sent", "client_round"]


@dataclass(frozen=True, eq=False)
class ClientRound:
    """What happened at a client; only `sent` is on the wire.

    Attributes:
        batch: what it trained on: its private images after the defense's `batch` moment.
        draws: its batch order and dropout masks.
        raw: the update before the defense's `update` moment.
        sent: the update that left.
        state: the defense's, after the round.
    """

    batch: Batch
    draws: Draws
    raw: Update
    sent: Update
    state: State


def client_round(
    model: nn.Module,
    weights: Weights,
    batch: Batch,
    plan: Plan,
    defense: Defense,
    state: State,
    generator: torch.Generator,
    draws: Draws | None = None,
) -> ClientRound:
    """Plays a client: batch moment, local update with the gradient moment inside, update moment.

    Args:
        model: prepared for the plan, and already through the defense's `model` moment.
        weights: the global model.
        batch: N images (N, C, H, W) in [0, 1] with classes (N,).
        plan: what the server told it to do.
        defense: its defense.
        state: the defense's state before the round.
        generator: on the CPU; of the order, the masks and the defense.
        draws: the batch order and the dropout masks; ``None`` draws them from the generator. With them given, two
            rounds under two generators differ by what the defense drew alone.

    Raises:
        InputError: images out of range, or a batch that does not fit the plan.
    """
    _check(batch, plan)
    batch, state = defense.batch(batch, state, generator)
    draws = draw(model, batch, plan, generator) if draws is None else draws

    def total(parts: Iterator[Tensors]) -> Tensors:
        nonlocal state
        made = defense.summed(parts, state, generator)
        if made is None:
            whole, state = defense.gradient(joined(parts), state, generator)
            return {name: each.sum(0) for name, each in whole.items()}
        sums, state = made
        return sums

    raw = local_update(
        model,
        batch,
        plan,
        weights,
        draws,
        total=total if defense.acts("gradient") else None,
        buffers="buffers" in plan.sends,
    )
    if "num_samples" in plan.sends:
        raw = Update(raw.tensors, raw.kind, raw.buffers, len(batch))
    sent, state = checked_sent(defense.update(raw, state, generator), defense, raw)
    return ClientRound(batch, draws, raw, sent, state)


def _check(batch: Batch, plan: Plan) -> None:
    if len(batch) != plan.images:
        raise InputError(f"the plan is for {plan.images} images, the batch holds {len(batch)}")
    low, high = batch.images.aminmax()
    if not (low >= 0 and high <= 1):
        raise InputError(f"images must lie in [0, 1], these lie in [{low:.3g}, {high:.3g}]")


def checked_sent(made: Any, defense: Defense, raw: Update) -> tuple[Update, State]:
    """Return what a defense's `update` returned.

    Args:
        made: that.
        defense: which returned it.
        raw: the update that it got.

    Raises:
        InputError: no pair of an update and a state, or an update of other tensors.
    """
    due = "return (update, state), the update with tensors of the names and shapes of the one that it gets"
    if not isinstance(made, tuple) or len(made) != 2 or not isinstance(made[0], Update):
        raise InputError(f"{defense!r}: its update returned a {type(made).__name__}: {due}")
    sent, state = made
    expected = {name: tuple(t.shape) for name, t in raw.tensors.items()}
    found = {name: tuple(t.shape) if isinstance(t, Tensor) else type(t).__name__ for name, t in sent.tensors.items()}
    for name in sorted(expected.keys() | found.keys(), key=str):
        if expected.get(name) != found.get(name):
            what = "does not return" if name not in found else "returns"
            shape = "" if name not in found else f" as {found[name]}, and it gets {expected.get(name, 'none')}"
            raise InputError(f"{defense!r}: its update {what} '{name}'{shape}: {due}")
    return sent, state
