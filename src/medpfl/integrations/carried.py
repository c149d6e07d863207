"""A defense's state as bytes that a framework keeps for a client between rounds.

Apart from `medpfl.integrations.defending`: what reads bytes does not build what a person names.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from medpfl.core.errors import InputError
from medpfl.core.roles import State

__all__ = ["packed", "unpacked"]


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
