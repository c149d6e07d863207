"""Contents of Flower's messages: the weights, the number of examples, the round."""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from flwr.app import Array, ArrayRecord, Message
from torch import Tensor

from medpfl.core.errors import InputError
from medpfl.core.experiments.limits import IMAGES, ROUNDS

__all__ = ["COUNTS", "Sent", "array_record", "count_of", "is_training", "round_of", "state_in", "trained_weights"]

COUNTS = ("num-examples", "num_examples")
"""Names under which Flower's strategies look for the number of examples."""

_ROUNDS = ("server-round", "server_round", "current_round", "round")


class Sent(NamedTuple):
    """Weights in a reply: the key of their record, the weights before, and the weights after."""

    key: str
    before: dict[str, Tensor]
    after: dict[str, Tensor]


def is_training(message: Message) -> bool:
    """Return True for a message that asks for training, ``train`` or ``train.<action>``."""
    return message.metadata.message_type.partition(".")[0] == "train"


def state_in(record: ArrayRecord) -> dict[str, Tensor]:
    """Return a record's arrays as tensors by name."""
    return {name: torch.from_numpy(array.numpy().copy()) for name, array in record.items()}


def array_record(state: Mapping[str, Tensor], like: ArrayRecord) -> ArrayRecord:
    """Return tensors as a record; arrays whose values did not change are those of `like` themselves."""
    kept = state_in(like)
    return ArrayRecord(
        {
            name: like[name] if torch.equal(t, kept[name]) else Array(t.detach().cpu().numpy())
            for name, t in state.items()
        }
    )


def trained_weights(request: Mapping[str, dict[str, Tensor]], reply: Message) -> Sent:
    """Return the weights in a reply: its first record with the same arrays as one in the request.

    Args:
        request: the request's array records by key.
        reply: the client's reply.

    Raises:
        InputError: no record of the reply has the names and shapes of one in the request.
    """
    for key, record in reply.content.array_records.items():
        after = state_in(record)
        for before in (request.get(key, {}), *request.values()):
            if before and _shapes(before) == _shapes(after):
                return Sent(key, before, after)
    held = ", ".join(reply.content.array_records) or "none"
    raise InputError(f"no array record of the reply ({held}) has the arrays of one in the request")


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: t.shape for name, t in state.items()}


def count_of(reply: Message, name: str | None = None) -> int | None:
    """Return the number of examples that a reply states in clear, or ``None``.

    Args:
        reply: the client's reply.
        name: its name among the metrics; by default Flower's own names.
    """
    for record in reply.content.metric_records.values():
        for key in COUNTS if name is None else (name,):
            value: Any = record.get(key)
            if isinstance(value, int | float) and value == int(value) and 1 <= value <= IMAGES:
                return int(value)
    return None


def round_of(message: Message) -> int | None:
    """Return the round of a request: from its configuration, or else from its group."""
    told = [record.get(name) for record in message.content.config_records.values() for name in _ROUNDS]
    group = message.metadata.group_id
    told.append(int(group) if group.isdecimal() else None)
    found = [one for one in told if isinstance(one, int) and not isinstance(one, bool) and 0 <= one <= ROUNDS]
    return found[0] if found else None
