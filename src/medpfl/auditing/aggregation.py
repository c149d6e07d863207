"""Secure aggregation in an audit: whose updates are in a sum, and what one masked message looks like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from medpfl.auditing.defense_parts import at_client, parts_of
from medpfl.core.channels.exchange import Exchange
from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.roles import Defense
from medpfl.core.types import Update
from medpfl.federated.client import ClientRound

__all__ = ["Group", "Sum", "aggregates", "check_sum", "decrypts", "masks", "one_masked", "staying", "summed"]

Group = tuple[tuple[int, Tensor], ...]
"""The clients whose updates reach the server together, one where nothing is summed: number and image indices (N,)."""


class Sum(NamedTuple):
    """A round of several clients.

    Attributes:
        exchange: what the server has of it.
        rounds: of the clients that stayed.
        images: indices of all their images, client after client.
    """

    exchange: Exchange
    rounds: list[ClientRound]
    images: Tensor


def aggregates(defense: Defense) -> bool:
    """Whether the server gets a sum over clients, and no update of one client."""
    return at_client(defense).acts("aggregate")


def masks(defense: Defense) -> bool:
    """Whether single clients' messages are on the wire, masked."""
    return aggregates(defense) and _aggregating(defense).aggregation.messages == "masked"


def decrypts(defense: Defense) -> bool:
    """Whether the server has the mean only if a client that can decrypt hands it over in clear."""
    return aggregates(defense) and _aggregating(defense).aggregation.messages == "encrypted"


def staying(defense: Defense, clients: int) -> int:
    """Clients that are in a sum."""
    return _aggregating(defense).staying(clients)


def summed(defense: Defense, group: Group, rounds: Sequence[ClientRound], generator: torch.Generator) -> Sum:
    """The sum over a group of clients, as the defense makes it."""
    exchange = _aggregating(defense).exchange([played.sent for played in rounds], generator)
    stayed = [i for i in range(len(rounds)) if i not in exchange.dropped]
    return Sum(exchange, [rounds[i] for i in stayed], torch.cat([group[i][1] for i in stayed]))


def one_masked(defense: Defense, made: Sum) -> ClientRound:
    """The round of the first client that stayed, with its masked message read as if it were an update."""
    part, first = _aggregating(defense), made.rounds[0]
    sent = part.read(next(iter(made.exchange.masked.values())), first.sent)
    return ClientRound(first.batch, first.draws, first.raw, sent, first.state)


def check_sum(defense: Defense, clients: int, plan: Plan) -> None:
    """Raises `InputError` where a round of so many clients cannot give a sum."""
    if clients < 2:
        raise InputError(f"{defense!r}: a sum needs two clients or more: --clients 2, or more in --partition")
    part = _aggregating(defense)
    for name in part.aggregation.needs:
        if name not in plan.sends:
            raise InputError(f"{defense!r}: the mean is weighted by {name}, which --sends leaves out")
    samples = plan.images if "num_samples" in plan.sends else None
    like = [Update({"": torch.zeros(1)}, num_samples=samples) for _ in range(clients)]
    made = part.exchange(like, torch.Generator().manual_seed(0))
    if clients - len(made.dropped) != (said := part.staying(clients)):
        raise InputError(f"{defense!r}: {said} of {clients} clients stay, it says, and {len(made.dropped)} fall silent")


def _aggregating(defense: Defense) -> Defense:
    found = [part for part in parts_of(at_client(defense)) if part.acts("aggregate")]
    if len(found) != 1:
        raise InputError(f"{defense!r}: {len(found)} of its parts sum over clients, and only one can")
    return found[0]
