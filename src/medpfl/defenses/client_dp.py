"""Client-level differential privacy: each client clips its update and adds noise before sending it."""

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
    """Norm clipping and Gaussian noise at the client: ``Clipping | GaussianNoise``.

    The mechanism of DP-FedAvg (McMahan et al. 2018, arXiv:1710.06963, section 2), but with local noise: each client
    adds its own, as in Flower's ``LocalDpMod``. The client sends ``x min(1, clip / |x|) + N(0, (noise clip)^2)``.

    Promises (epsilon, delta)-differential privacy, against the server, for all data of one client; `spent` computes
    it. This is much stronger than privacy for one image, and costs much more accuracy. It does not cover what the plan
    sends besides the update. Noise added only by the server, ``Clipping(1.0) | GaussianNoise(1.0, where='server')``,
    promises nothing against the server. Breaks: the guarantee itself has none; for a large epsilon, see `DPSGD`.

    Attributes:
        clip: the largest norm of the update, above 0, in the update's units.
        noise: noise multiplier, above 0: the noise's standard deviation in each coordinate, divided by `clip`.

    Raises:
        InputError: if a number is not above 0.
    """

    clip: float = shown(1.0)
    noise: float = shown(1.0)
    unit = "client"

    def __post_init__(self) -> None:
        check_positive(clip=self.clip, noise=self.noise)

    def _parts(self) -> tuple[Clipping, GaussianNoise]:
        return Clipping(self.clip), GaussianNoise(self.clip * self.noise)

    def update(self, value: Update, state: State, generator: torch.Generator) -> tuple[Update, State]:
        """Clip the update, then add noise."""
        for part in self._parts():
            value, _ = part.update(value, {}, generator)
        return value, state

    def mechanism(self, plan: Plan, rounds: int) -> Mechanism:
        """Return the Gaussian mechanism for one client; it is the same under every plan.

        Client sampling does not amplify privacy against the server, which knows whom it picked.
        """
        return Mechanism(self.noise, 1.0, rounds)

    def settled(self, first: bool) -> bool:
        """Return `first`: after other parts, the clipping factor is inferred from the sent update."""
        return first

    def disclose(self, sent: Update, plan: Plan | None = None, before: Channel | None = None) -> Channel:
        """Return the channel: clipping, then noise."""
        for part in self._parts():
            before = part.disclose(sent, plan, before)
        return before or Channel()
