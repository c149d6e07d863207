"""One client's round: its data, its defense, and the update it sends."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.roles import Defense, State
from medpfl.core.types import Batch, Tensors, Update, Weights
from medpfl.core.user_code.global_draws import seeded
from medpfl.federated.draws import Draws, draw
from medpfl.federated.local import joined, local_update

__all__ = ["ClientRound", "checked_sent", "client_round"]


@dataclass(frozen=True, eq=False)
class ClientRound:
    """A client's round. Only `sent` reaches the server.

    Attributes:
        batch: its private images after the defense's `batch` moment, on which it trained.
        draws: its batch order and dropout masks.
        raw: the update before the defense's `update` moment.
        sent: the update sent to the server.
        state: the defense's state after the round.
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
    """Play one client's round: batch moment, local update with the gradient moment inside, update moment.

    Args:
        model: model prepared for the plan, after the defense's `model` moment.
        weights: the global model's weights.
        batch: N images (N, C, H, W) in [0, 1] with classes (N,).
        plan: settings of the local training, as told by the server.
        defense: the client's defense.
        state: the defense's state before the round.
        generator: CPU generator for the batch order, the masks and the defense.
        draws: the batch order and dropout masks; ``None`` draws them from the generator. If they are given, two rounds
            with different generators differ only by the defense's own draws.

    Raises:
        InputError: if images are out of range, or the batch does not fit the plan.
    """
    _check(batch, plan)
    with seeded(generator):
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
        before = None if raw.buffers is None else weights.buffers
        raw = replace(raw, num_samples=len(batch) if "num_samples" in plan.sends else None, buffers_before=before)
        sent, state = checked_sent(defense.update(raw, state, generator), defense, raw)
    return ClientRound(batch, draws, raw, sent, state)


def _check(batch: Batch, plan: Plan) -> None:
    if len(batch) != plan.images:
        raise InputError(f"the plan is for {plan.images} images, the batch holds {len(batch)}")
    low, high = batch.images.aminmax()
    if not (low >= 0 and high <= 1):
        raise InputError(f"images must lie in [0, 1], these lie in [{low:.3g}, {high:.3g}]")


def checked_sent(made: Any, defense: Defense, raw: Update) -> tuple[Update, State]:
    """Check the result of a defense's `update`, and return it.

    Args:
        made: the result.
        defense: the defense that returned it.
        raw: the update that the defense received.

    Raises:
        InputError: if the result is not a pair (update, state), or its tensors have other names or shapes than `raw`.
    """
    due = "return (update, state), where the update has the same tensor names and shapes as the given one"
    if not isinstance(made, tuple) or len(made) != 2 or not isinstance(made[0], Update):
        raise InputError(f"{defense!r}: its update returned a {type(made).__name__}: {due}")
    sent, state = made
    expected = {name: tuple(t.shape) for name, t in raw.tensors.items()}
    found = {name: tuple(t.shape) if isinstance(t, Tensor) else type(t).__name__ for name, t in sent.tensors.items()}
    for name in sorted(expected.keys() | found.keys(), key=str):
        if expected.get(name) != found.get(name):
            what = "does not return" if name not in found else "returns"
            shape = "" if name not in found else f" as {found[name]}, but was given {expected.get(name, 'none')}"
            raise InputError(f"{defense!r}: its update {what} '{name}'{shape}: {due}")
    return sent, state
