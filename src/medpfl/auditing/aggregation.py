"""Secure aggregation in an audit: sums over clients, and single masked messages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, overload

import torch
from torch import Tensor

from medpfl.auditing.defense_parts import at_client
from medpfl.core.channels.exchange import Exchange
from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.roles import Defense
from medpfl.core.types import Update
from medpfl.core.user_code.global_draws import seeded
from medpfl.federated.client import ClientRound

__all__ = [
    "Group",
    "Groups",
    "Sum",
    "aggregates",
    "check_sum",
    "decrypts",
    "masks",
    "one_masked",
    "staying",
    "summed",
]

Group = tuple[tuple[int, Tensor], ...]
"""Clients whose updates reach the server as one, each as (client number, image indices (N,)); one client if no sum."""


@dataclass(frozen=True, eq=False)
class Groups(Sequence[Group]):
    """Consecutive groups of clients, each made when it is used: all groups of a large audit take much memory.

    Attributes:
        victims: image indices (U, N) of all updates.
        numbers: the updates in these groups.
        together: number of clients in a group.
    """

    victims: Tensor
    numbers: range
    together: int

    def __len__(self) -> int:
        return len(self.numbers) // self.together

    @overload
    def __getitem__(self, index: int) -> Group: ...

    @overload
    def __getitem__(self, index: slice) -> Groups: ...

    def __getitem__(self, index: int | slice) -> Group | Groups:
        chosen, each = range(len(self))[index], self.together
        if isinstance(chosen, range):
            return replace(self, numbers=self.numbers[chosen.start * each : chosen.stop * each])
        return tuple((number, self.victims[number]) for number in self.numbers[chosen * each : (chosen + 1) * each])


class Sum(NamedTuple):
    """One round in which the server gets a sum over clients.

    Attributes:
        exchange: everything the server receives.
        rounds: rounds of the remaining clients.
        images: indices of all their images, in the order of the clients.
    """

    exchange: Exchange
    rounds: list[ClientRound]
    images: Tensor


def aggregates(defense: Defense) -> bool:
    """Return True if the server gets only a sum over clients, never one client's update."""
    return at_client(defense).acts("aggregate")


def masks(defense: Defense) -> bool:
    """Return True if clients send masked messages."""
    return aggregates(defense) and at_client(defense).aggregation.messages == "masked"


def decrypts(defense: Defense) -> bool:
    """Return True if clients send encrypted messages, so the server gets the mean only from a client."""
    return aggregates(defense) and at_client(defense).aggregation.messages == "encrypted"


def staying(defense: Defense, clients: int) -> int:
    """Return how many of `clients` are in a sum after dropouts."""
    return at_client(defense).staying(clients)


def summed(defense: Defense, group: Group, rounds: Sequence[ClientRound], generator: torch.Generator) -> Sum:
    """Sum the updates of a group of clients with the defense."""
    with seeded(generator):
        exchange = at_client(defense).exchange([played.sent for played in rounds], generator)
    stayed = [i for i in range(len(rounds)) if i not in exchange.dropped]
    return Sum(exchange, [rounds[i] for i in stayed], torch.cat([group[i][1] for i in stayed]))


def one_masked(defense: Defense, made: Sum) -> ClientRound:
    """Return the first remaining client's round, with its masked message in place of its update."""
    part, first = at_client(defense), made.rounds[0]
    sent = part.read(next(iter(made.exchange.masked.values())), first.sent)
    return ClientRound(first.batch, first.draws, first.raw, sent, first.state)


def check_sum(defense: Defense, clients: int, plan: Plan) -> None:
    """Raise `InputError` if a round with this many clients cannot give a sum."""
    if clients < 2:
        raise InputError(f"{defense!r}: a sum needs two clients or more: set --clients 2, or more in --partition")
    part = at_client(defense)
    for name in part.aggregation.needs:
        if name not in plan.sends:
            raise InputError(f"{defense!r} weights the mean by {name}, which clients do not send: add it to --sends")
    samples = plan.images if "num_samples" in plan.sends else None
    like = [Update({"": torch.zeros(1)}, num_samples=samples) for _ in range(clients)]
    made = part.exchange(like, torch.Generator().manual_seed(0))
    if clients - len(made.dropped) != (said := part.staying(clients)):
        raise InputError(f"{defense!r} says that {said} of {clients} clients stay, but {len(made.dropped)} drop out")
