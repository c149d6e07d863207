"""A defense at the place where a finished update leaves a client."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from medpfl.core.errors import InputError
from medpfl.core.roles import Defense, State
from medpfl.core.types import Update
from medpfl.federated.client import checked_sent
from medpfl.inputs.parts import defenses_of
from medpfl.recording.record import buffers_in

__all__ = ["defend_update", "defense_at_the_door", "parameters_of"]

_MOMENTS = {
    "model": "changes the model",
    "batch": "changes the images",
    "gradient": "acts on the gradients of single images",
    "aggregate": "needs the updates of several clients",
}


def defense_at_the_door(defense: str | Defense) -> Defense:
    """Return the defense of a spec, if it can act on a finished update.

    Raises:
        InputError: it acts inside the training, in the aggregation, or only at the server.
    """
    made = defenses_of([defense])[-1]
    for moment, does in _MOMENTS.items():
        if made.acts(moment):
            raise InputError(
                f"{made!r} {does}: it cannot act on a finished update. Put it into the training itself, or choose a "
                "defense that changes updates, such as Clipping or GaussianNoise"
            )
    if made.where == "server":
        raise InputError(f"{made!r} acts at the server: a client that adds it needs where='client'")
    return made


def defend_update(
    defense: Defense,
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    state: State,
    *,
    sent: Literal["weights", "difference"] = "weights",
    num_samples: int | None = None,
    parameters: set[str] | None = None,
    seed: int | None = None,
) -> tuple[dict[str, Tensor], State]:
    """Return the state dict that leaves the client instead of `after`, and the defense's new state.

    Args:
        defense: a defense that acts on updates.
        before: global weights that the client started from; read only if weights are sent.
        after: state dict that the client wants to send, on the CPU.
        state: the defense's state; empty before the first round.
        sent: kind of the tensors in `after`. Buffers in it are values in either case.
        num_samples: number of images that the client states.
        parameters: names of the parameters; by default, all that are not buffers by their names.
        seed: seed of the defense's draws, for tests; by default one from the system's source of secrets.

    Raises:
        InputError: a parameter is missing in `before`, or the defense returned other tensors.
    """
    own = set(after) - buffers_in(after) if parameters is None else parameters & set(after)
    if sent == "weights" and (missing := sorted(own - set(before))):
        raise InputError(f"'{missing[0]}' was not in the global model, so that its change is not known")
    values = {name: _wide(after[name]) for name in after if name in own}
    if sent == "weights":
        values = {name: t - _wide(before[name]) for name, t in values.items()}
    buffers = {k: t for k, t in after.items() if k not in own}
    start = {k: t for k, t in before.items() if k in buffers}  # for defenses that act on the change of buffers
    raw = Update(values, "difference", buffers, num_samples, start)
    generator = torch.Generator().manual_seed(secrets.randbits(63) if seed is None else seed)
    made, state = checked_sent(defense.update(raw, state or defense.init(), generator), defense, raw)
    result = dict(after)
    for name, value in made.tensors.items():
        if not torch.equal(value, values[name]):  # what the defense left alone keeps its bytes
            whole = value + _wide(before[name]) if sent == "weights" else value
            result[name] = whole.to(after[name].dtype)
    result |= {name: t.to(after[name].dtype) for name, t in (made.buffers or {}).items() if name in after}
    return result, state


def parameters_of(model: nn.Module | None) -> set[str] | None:
    """Return the names of a model's trained parameters; ``None`` without a model."""
    return None if model is None else {name for name, p in model.named_parameters() if p.requires_grad}


def _wide(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32))
