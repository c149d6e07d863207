"""Secure aggregation: the server gets masked integers of each client, and can unmask their sum only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

import torch
from torch import Tensor

from medpfl.core.channels.exchange import Exchange, MaskedVector
from medpfl.core.errors import InputError, check_positive
from medpfl.core.plan import Plan
from medpfl.core.roles import Aggregation, Defense, State
from medpfl.core.spec import shown
from medpfl.core.types import Channel, Update
from medpfl.defenses.averaging import clients_of, filled, flattened, of_mean
from medpfl.defenses.compression import rounding_variance
from medpfl.defenses.masking import Masks, ring

__all__ = ["SecAggPlus"]


@dataclass(frozen=True, repr=False)
class SecAggPlus(Defense):
    """Flower's SecAgg+ as the server sees it: quantized, clipped, masked vectors, and their weighted mean.

    SecAgg+ (Bell et al. 2020, CCS, "Secure single-server aggregation with (poly)logarithmic overhead"), with the
    arithmetic and the defaults of Flower's workflow: weight ``w = num_samples / max_weight``; integers
    ``round((clip(w x, -clip, clip) + clip) levels / (2 clip))``, rounded at random without bias; masks of each
    client's own and of each pair of neighbors on a ring, all modulo `modulus`. Key agreement and secret sharing
    are taken to work; masks are drawn from the generator. Here x is the update; in Flower, the new weights.
    Weaker than the model: Flower 1.41 makes each mask of 32 bits of its secret, few enough to be searched through.

    Promises that one masked vector is uniform, whatever the update, as long as fewer than `threshold` clients
    collude with the server; and nothing about the sum, which leaks as an update of a larger batch does.
    `num_samples` stays in clear. Breaks: every malicious server that makes one client dominate the sum (Robbing the
    Fed, LOKI, MedLeak), or sends models of its own to each (SRATTA, with honest ones, tells clients apart).

    Attributes:
        threshold: shares of a key that rebuild it; so many neighbors of a client, itself included, have to stay.
        shares: neighbors of each client, itself included, an odd number from 3 on; ``None``: all clients (SecAgg).
        clip: range of the weighted coordinates, above 0.
        max_weight: the largest `num_samples`; large ones coarsen the rounding.
        levels, modulus: of the integers; clients times `levels` must stay below `modulus`.
        dropouts: clients, drawn at random, that fall silent in the round after they shared their keys.

    Raises:
        InputError: a number out of its range. In a round: too few clients stay.
    """

    threshold: int = shown(2)
    shares: int | None = None
    clip: float = 8.0
    max_weight: float = 1000.0
    levels: int = 2**22
    modulus: int = 2**32
    dropouts: int = 0
    aggregation = Aggregation("masked", ("num_samples",))

    def __post_init__(self) -> None:
        if self.shares is not None and (type(self.shares) is not int or self.shares < 3 or self.shares % 2 == 0):
            raise InputError(f"shares is {self.shares}: it must be an odd whole number, at least 3, or None")
        if type(self.threshold) is not int or not 2 <= self.threshold < (self.shares or inf):
            raise InputError(f"threshold is {self.threshold}: it must be at least 2 and less than shares")
        check_positive(clip=self.clip, max_weight=self.max_weight)
        whole = type(self.levels) is int and type(self.modulus) is int
        if not whole or not 2 <= self.levels < self.modulus <= 2**48:
            raise InputError("levels and modulus must be whole numbers with 2 <= levels < modulus <= 2**48")
        if type(self.dropouts) is not int or self.dropouts < 0:
            raise InputError(f"dropouts is {self.dropouts}: it must be a whole number, at least 0")

    def staying(self, clients: int) -> int:
        """Return how many of the clients do not drop out."""
        return clients - self.dropouts

    def aggregate(
        self, value: Sequence[Update], state: State, generator: torch.Generator
    ) -> tuple[Sequence[Update], State]:
        """The one weighted mean that the server gets."""
        return [self.exchange(value, generator).mean], state

    def exchange(self, updates: Sequence[Update], generator: torch.Generator) -> Exchange:
        """Plays the round.

        Args:
            updates: of two clients or more, with `num_samples`; floating-point buffers are averaged too.
            generator: of rounding, masks, the ring and who drops out.

        Raises:
            InputError: a client without `num_samples`, or with more than `max_weight` or next to nothing of it;
                too many clients for the modulus; a client of whose neighbors fewer than `threshold` stay.
        """
        self._check(updates)
        vectors = [self.quantized(update, generator) for update in updates]
        neighbors = ring(len(updates), self.shares or len(updates), generator)
        dropped = torch.randperm(len(updates), generator=generator)[: self.dropouts].tolist()
        stayed = [i for i in range(len(updates)) if i not in dropped]
        self._check_threshold(neighbors, stayed)
        masks = Masks(neighbors, len(vectors[0]), self.modulus, generator)
        seen = {i: (vectors[i] + masks.of(i)) % self.modulus for i in stayed}
        total = (sum(seen.values(), torch.zeros_like(vectors[0])) - masks.left(stayed)) % self.modulus
        masked = {i: MaskedVector(v, self.modulus, updates[i].num_samples or 0) for i, v in seen.items()}
        return Exchange(masked, tuple(sorted(dropped)), self._mean(total, [updates[i] for i in stayed]))

    def disclose(self, sent: Update, plan: Plan | None = None, before: Channel | None = None) -> Channel:
        """Of the sum: the variance of the rounding in the mean update, on the average over a tensor.

        It is a sixth of a squared step for each client at most; less where updates are small beside the step.

        What the parts before it disclose is of each client's update, and their noise is averaged. Parts that read
        what they disclose off a single update cannot, of a sum: with them a composed defense discloses nothing.

        Args:
            sent: the mean update; `num_samples` over the plan's images is the number of clients.
            plan: of every client; without one, the update is of one client.
            before: of the parts before this one.
        """
        clients = clients_of(sent, plan)
        step = self.max_weight / ((sent.num_samples or 1) * self._per_unit)
        rounding = {k: torch.full_like(t, 1 / self._variance(t, step, clients)) for k, t in sent.tensors.items()}
        return of_mean(before, clients).then(precision=rounding)

    def _variance(self, mean: Tensor, step: float, clients: int) -> float:
        """Of the rounding in a tensor of the mean, by each client's `step` in it."""
        if self.levels % 2:  # zero lies between two levels: small coordinates are rounded as others are
            return clients * step**2 / 6
        return rounding_variance(mean, step, clients)

    def read(self, masked: MaskedVector, like: Update) -> Update:
        """One client's message as if it were not masked: what an attack on it alone has to work with.

        Args:
            masked: the message.
            like: an update with the same tensors.
        """
        share = max(self._weight(replace(like, num_samples=masked.num_samples)), 1) / self.levels
        values = (masked.values[1:].double() / self._per_unit - self.clip) / share
        return filled(values, like)

    def quantized(self, update: Update, generator: torch.Generator) -> Tensor:
        """The integers (1 + size,) of one update before they are masked, in [0, levels]."""
        weight = self._weight(update)
        places = ((flattened(update) * weight / self.levels).clamp(-self.clip, self.clip) + self.clip) * self._per_unit
        above = places.ceil()
        lower = torch.rand(above.shape, generator=generator, dtype=torch.float64) < above - places
        return torch.cat([torch.tensor([weight]), (above - lower.double()).long()])

    def _weight(self, update: Update) -> int:
        return round((update.num_samples or 0) / self.max_weight * self.levels)

    @property
    def _per_unit(self) -> float:
        return self.levels / (2 * self.clip)

    def _mean(self, total: Tensor, updates: Sequence[Update]) -> Update:
        """The weighted mean from the sum of integers; what is not a floating-point number is the first client's."""
        first, share = updates[0], float(total[0]) / self.levels
        values = (total[1:].double() / self._per_unit - len(updates) * self.clip) / share
        return replace(filled(values, first), num_samples=sum(u.num_samples or 0 for u in updates))

    def _check(self, updates: Sequence[Update]) -> None:
        if len(updates) < 2:
            raise InputError(f"secure aggregation needs two clients or more: there are {len(updates)}")
        if len(updates) * self.levels >= self.modulus:
            raise InputError(f"{len(updates)} clients times {self.levels} levels do not fit below {self.modulus}")
        for place, update in enumerate(updates):
            if not 0 < self._weight(update) <= self.levels:
                raise InputError(
                    f"client {place} sends num_samples {update.num_samples}: it must be at most max_weight "
                    f"({self.max_weight:g}), and at least one of {self.levels} parts of it"
                )

    def _check_threshold(self, neighbors: Sequence[set[int]], stayed: Sequence[int]) -> None:
        for place, own in enumerate(neighbors):
            left = len(own & set(stayed))
            if left < self.threshold:
                raise InputError(
                    f"{left} of the {len(own)} clients that hold shares of client {place} stayed, {self.threshold} "
                    "are needed: the server cannot unmask the sum, and the round is lost"
                )
