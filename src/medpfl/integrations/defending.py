"""A defense at the place where a finished update leaves a client, and its state between rounds."""

from __future__ import annotations

import json
import secrets
import struct
from collections.abc import Mapping
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from medpfl.core.errors import InputError
from medpfl.core.roles import Defense, State
from medpfl.core.types import Update
from medpfl.federated.client import checked_sent
from medpfl.inputs.parts import defenses_of
from medpfl.recording.record import buffers_in

__all__ = ["defend_update", "defense_at_the_door", "packed", "parameters_of", "unpacked"]

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
    raw = Update(values, "difference", {k: t for k, t in after.items() if k not in own}, num_samples)
    generator = torch.Generator().manual_seed(secrets.randbits(63) if seed is None else seed)
    made, state = checked_sent(defense.update(raw, state or defense.init(), generator), defense, raw)
    result = dict(after)
    for name, value in made.tensors.items():
        if not torch.equal(value, values[name]):  # what the defense left alone keeps its bytes
            whole = value + _wide(before[name]) if sent == "weights" else value
            result[name] = whole.to(after[name].dtype)
    result |= {name: t.to(after[name].dtype) for name, t in (made.buffers or {}).items() if name in after}
    return result, state


def packed(state: State) -> bytes:
    """Return a defense's state as bytes: eight bytes with the length of a JSON text, the text, and safetensors."""
    tensors: dict[str, Tensor] = {}

    def plain(value: Any, place: str) -> Any:
        if isinstance(value, Mapping):
            return {"inside": {key: plain(one, f"{place}/{key}") for key, one in value.items()}}
        if isinstance(value, Tensor):
            tensors[place] = value.detach().cpu().contiguous().clone()
            return {"tensor": place}
        return {"value": value}

    text = json.dumps(plain(state, "")).encode()
    return struct.pack("<Q", len(text)) + text + save(tensors)


def unpacked(data: bytes) -> State:
    """Return the state in bytes that `packed` made.

    Raises:
        InputError: the bytes are damaged.
    """
    try:
        (length,) = struct.unpack("<Q", data[:8])
        return _unplain(json.loads(data[8 : 8 + length]), load(data[8 + length :]))
    except (SafetensorError, struct.error, KeyError, TypeError, ValueError):
        raise InputError("the defense's state after the last round is damaged: start the federation anew") from None


def _unplain(told: Any, tensors: Mapping[str, Tensor]) -> Any:
    if "inside" in told:
        return {key: _unplain(one, tensors) for key, one in told["inside"].items()}
    return tensors[told["tensor"]] if "tensor" in told else told["value"]


def parameters_of(model: nn.Module | None) -> set[str] | None:
    """Return the names of a model's trained parameters; ``None`` without a model."""
    return None if model is None else {name for name, p in model.named_parameters() if p.requires_grad}


def _wide(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32))
