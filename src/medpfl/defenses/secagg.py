"""Secure aggregation: the server gets masked integers from each client, and can unmask only their sum."""

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
    """Secure aggregation as in Flower's SecAgg+: the server unmasks only the clients' weighted mean.

    SecAgg+ (Bell et al. 2020, CCS, "Secure single-server aggregation with (poly)logarithmic overhead"), with the
    arithmetic and defaults of Flower's workflow. The weight is ``w = num_samples / max_weight``. Clients send the
    integers ``round((clip(w x, -clip, clip) + clip) levels / (2 clip))``, rounded at random without bias, plus their
    own mask and one mask per pair of neighbors on a ring, all modulo `modulus`. Here x is the update; in Flower, it is
    the new weights. Key agreement and secret sharing are assumed to work, and masks are drawn from the generator.
    Flower itself is weaker than this model: version 1.41 derives each mask from 32 bits of its secret, few enough for
    exhaustive search.

    Promises that one masked vector is uniform, whatever the update, as long as fewer than `threshold` clients collude
    with the server. It promises nothing about the sum, which leaks like an update from a larger batch. `num_samples`
    is sent in clear. Breaks: any malicious server that makes one client dominate the sum (Robbing the Fed, LOKI,
    MedLeak) or sends each client a different model. SRATTA tells clients apart even with honest models.

    Attributes:
        threshold: number of shares that rebuild a key; as many neighbors of each client, including itself, have to
            stay.
        shares: neighbors per client, including itself, odd and at least 3; ``None``: all clients (SecAgg).
        clip: bound on the weighted coordinates, above 0.
        max_weight: the largest `num_samples`; large values make the rounding coarser.
        levels: largest integer before masking.
        modulus: modulus for the masked integers; clients times `levels` must stay below it.
        dropouts: number of clients, drawn at random, that fall silent in the round after they shared their keys.

    Raises:
        InputError: if a number is out of range. In a round: if too few clients stay.
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
        """Return how many clients do not drop out."""
        return clients - self.dropouts

    def aggregate(
        self, value: Sequence[Update], state: State, generator: torch.Generator
    ) -> tuple[Sequence[Update], State]:
        """Return the one weighted mean that the server gets."""
        return [self.exchange(value, generator).mean], state

    def exchange(self, updates: Sequence[Update], generator: torch.Generator) -> Exchange:
        """Play one round.

        Args:
            updates: updates from at least two clients, with `num_samples`; floating-point buffers are averaged too.
            generator: random generator for rounding, masks, the ring and dropouts.

        Raises:
            InputError: if a client sends no `num_samples`, more than `max_weight`, or too few to count; if there are
                too many clients for the modulus; or if fewer than `threshold` neighbors of a client stay.
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
        """Return the mean's precision, from the rounding's average variance in each tensor.

        For each client the variance is at most a sixth of the squared step, and less if updates are small compared to
        the step. A coordinate that every client clipped has precision 0. A mean does not show what single clients
        clipped.

        Earlier parts disclose the channel of each client's update; in the mean, their noise is averaged. Parts that
        infer what they disclose from a single update cannot do so from a sum, so a composed defense with such a part
        discloses nothing.

        Args:
            sent: the mean update; its `num_samples` divided by the plan's images is the number of clients.
            plan: every client's plan; without one, the update comes from one client.
            before: the earlier parts' channel.
        """
        clients = clients_of(sent, plan)
        step = self.max_weight / ((sent.num_samples or 1) * self._per_unit)
        end = clients * step * self.levels / 2 - step / 2
        rounding = {
            name: torch.full_like(t, 1 / self._variance(t, step, clients)) * _below(t, end)
            for name, t in sent.tensors.items()
        }
        return of_mean(before, clients).then(precision=rounding)

    def _variance(self, mean: Tensor, step: float, clients: int) -> float:
        """Return the rounding's variance in one tensor of the mean, where `step` is one client's step in the mean."""
        if self.levels % 2:  # zero lies between two levels: small coordinates are rounded as others are
            return clients * step**2 / 6
        return rounding_variance(mean, step, clients)

    def read(self, masked: MaskedVector, like: Update) -> Update:
        """Return one client's message decoded as if it were not masked, as an attack on it alone would have to.

        Args:
            masked: the client's message.
            like: an update with the same tensors.
        """
        share = max(self._weight(replace(like, num_samples=masked.num_samples)), 1) / self.levels
        values = (masked.values[1:].double() / self._per_unit - self.clip) / share
        return filled(values, like)

    def quantized(self, update: Update, generator: torch.Generator) -> Tensor:
        """Return one update's integers (1 + size,), in [0, levels], before masking."""
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
        """Return the weighted mean, computed from the sum of integers.

        Tensors that are not floating-point are taken from the first client.
        """
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
                    f"({self.max_weight:g}), and at least max_weight / {self.levels}"
                )

    def _check_threshold(self, neighbors: Sequence[set[int]], stayed: Sequence[int]) -> None:
        for place, own in enumerate(neighbors):
            left = len(own & set(stayed))
            if left < self.threshold:
                raise InputError(
                    f"{left} of the {len(own)} clients with key shares of client {place} stayed, but {self.threshold} "
                    "are needed: the server cannot unmask the sum, and the round is lost"
                )


def _below(values: Tensor, end: float) -> Tensor:
    """Return a mask of the values below an end in magnitude, which their own precision may round."""
    return values.abs() < end * (1 - 2 * torch.finfo(values.dtype).eps)
