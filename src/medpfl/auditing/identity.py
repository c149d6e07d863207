"""What tells one run from another: its tensors, and the code behind them."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from medpfl.isolation.parent import Isolated

__all__ = ["code_of", "code_of_part", "fingerprint"]


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Of tensors by name: whether they are the same."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().cpu().contiguous().view(-1).double().numpy().tobytes())
    return digest.hexdigest()[:16]


def code_of(network: nn.Module, parts: Sequence[Any] = ()) -> str:
    """Of a network's layers and source, and of the user's own attacks and defenses.

    Two networks with the same weights may compute different things.
    """
    each = [one for part in parts for one in getattr(part, "parts", [part])]
    layers = re.sub(r" at 0x[0-9a-f]+", "", str(network))
    text = layers + _source(type(network)) + "".join(map(code_of_part, each))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def code_of_part(part: Any) -> str:
    """Of the code behind a user's own attack or defense; ``""`` of ours.

    What an attack in a process of its own says here is what this function gave there.
    """
    if isinstance(part, Isolated):
        return part.code()
    own = not type(part).__module__.startswith("medpfl.")
    return hashlib.sha256(_source(type(part)).encode()).hexdigest() if own else ""


def _source(kind: type) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):  # made in an interpreter, or in C
        return ""
