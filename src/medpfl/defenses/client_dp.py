"""Differential privacy of whole clients: the update is clipped and noised before it leaves."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from medpfl.core.errors import check_positive
from medpfl.core.plan import Plan
from medpfl.core.privacy.tradeoff import Mechanism
from medpfl.core.roles import Defense, State
from medpfl.core.spec import shown
from medpfl.core.types import Channel, Update
from medpfl.defenses.clipping import Clipping
from medpfl.defenses.gaussian import GaussianNoise

__all__ = ["ClientDP"]


@dataclass(frozen=True, repr=False)
class ClientDP(Defense):
    """Clips the update to a norm and adds Gaussian noise at the client: ``Clipping | GaussianNoise``.

    DP-FedAvg's mechanism (McMahan et al. 2018, arXiv:1710.06963, section 2), here with the noise of each client
    for itself (local, as Flower's ``LocalDpMod``): ``x min(1, clip / |x|) + N(0, (noise clip)^2)``.

    Promises (epsilon, delta)-differential privacy of all that one client holds, against the server, as `spent`
    computes it: much stronger than of one image, and much dearer. It does not cover what a plan sends beside
    the update. Noise that only the server adds, ``Clipping(1.0) | GaussianNoise(1.0, where='server')``,
    promises nothing against the server. Breaks: the guarantee has none; at a large epsilon, as of `DPSGD`.

    Attributes:
        clip: the largest norm of the update, above 0, in its units.
        noise: standard deviation of a coordinate's noise over `clip` (the noise multiplier), above 0.

    Raises:
        InputError: a number that is not above 0.
    """

    clip: float = shown(1.0)
    noise: float = shown(1.0)
    unit = "client"

    def __post_init__(self) -> None:
        check_positive(clip=self.clip, noise=self.noise)

    def _parts(self) -> tuple[Clipping, GaussianNoise]:
        return Clipping(self.clip), GaussianNoise(self.clip * self.noise)

    def update(self, value: Update, state: State, generator: torch.Generator) -> tuple[Update, State]:
        """Clipped, then noised."""
        for part in self._parts():
            value, _ = part.update(value, {}, generator)
        return value, state

    def mechanism(self, plan: Plan, rounds: int) -> Mechanism:
        """Return what the adversary sees of one client, whatever its plan; who was picked amplifies nothing."""
        return Mechanism(self.noise, 1.0, rounds)

    def settled(self, first: bool) -> bool:
        """As the first part: after noise, how much was clipped is read off the update."""
        return first

    def disclose(self, sent: Update, plan: Plan | None = None, before: Channel | None = None) -> Channel:
        """As of the two parts."""
        for part in self._parts():
            before = part.disclose(sent, plan, before)
        return before or Channel()
