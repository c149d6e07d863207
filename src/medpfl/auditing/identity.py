"""What tells one run from another: its tensors, and the code behind them."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

__all__ = ["code_of", "fingerprint"]


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
    own = [type(part) for part in each if not type(part).__module__.startswith("medpfl.")]
    layers = re.sub(r" at 0x[0-9a-f]+", "", str(network))
    text = layers + "".join(map(_source, [type(network), *own]))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _source(kind: type) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):  # made in an interpreter, or in C
        return ""
