"""LocalDP: Flower's mod that clips an update and adds Gaussian noise at the client."""

from __future__ import annotations

from dataclasses import dataclass
from math import log, sqrt

import torch
from torch import Tensor

from medpfl.core.errors import InputError, check_positive
from medpfl.core.plan import Plan
from medpfl.core.privacy.tradeoff import Mechanism
from medpfl.core.roles import Defense, State
from medpfl.core.spec import shown
from medpfl.core.types import Channel, Tensors, Update
from medpfl.defenses.clipping import Clipping
from medpfl.defenses.filters import rebuilt, sent_arrays
from medpfl.defenses.gaussian import GaussianNoise

__all__ = ["LocalDP"]


@dataclass(frozen=True, repr=False)
class LocalDP(Defense):
    """Flower's mod that clips everything sent and adds Gaussian noise: `ClientDP` with another formula.

    ``flwr.client.mod.LocalDpMod`` (1.42). The differences u of all arrays, batch-norm statistics included, become
    ``u min(1, clipping_norm / |u|) + N(0, s^2)`` with ``s = sensitivity sqrt(2 ln(1.25 / delta)) / epsilon``. Arrays
    without axes count for the norm, but are not clipped; whole numbers, such as batch counters, get the noise rounded
    toward 0. Noise may make a running variance negative, and then the global model gives no numbers.

    Promises (epsilon, delta)-differential privacy, against the server, for all data of one client. `spent` computes it
    from the noise multiplier ``s / clipping_norm``, not from the argument `epsilon`: the formula holds for an epsilon
    below 1 and a `sensitivity` not below `clipping_norm`, and the mod checks neither. One product ships
    ``LocalDP(1.0, 1e-4, 10.0)``: its noise multiplier is 4.8e-5, which is no noise. Breaks: the guarantee itself has
    none; for a large epsilon, see `DPSGD`. Deviates: an update of zeros stays, where the mod divides by zero.

    Attributes:
        clipping_norm: the largest norm of the update, above 0, in the update's units.
        sensitivity: factor on the noise, above 0; for the promise, `clipping_norm` or more.
        epsilon, delta: the numbers in the formula, above 0; delta below 1.

    Raises:
        InputError: if a number is out of range. In a round: if the update has buffers, but not those before the round.
    """

    clipping_norm: float = shown(1.0)
    sensitivity: float = shown(1.0)
    epsilon: float = shown(1.0)
    delta: float = 1e-5
    unit = "client"
    covers_buffers = True

    def __post_init__(self) -> None:
        check_positive(clipping_norm=self.clipping_norm, sensitivity=self.sensitivity, epsilon=self.epsilon)
        if not 0 < self.delta < 1:
            raise InputError(f"delta is {self.delta}: it must lie between 0 and 1")

    @property
    def deviation(self) -> float:
        """The noise's standard deviation in each value."""
        return self.sensitivity * sqrt(2 * log(1.25 / self.delta)) / self.epsilon

    def update(self, value: Update, state: State, generator: torch.Generator) -> tuple[Update, State]:
        """Clip everything sent, then add noise."""
        arrays = sent_arrays(value)
        factor = min(1.0, self.clipping_norm / max(_squares(arrays) ** 0.5, 1e-300))
        noise = GaussianNoise(self.deviation)
        changed = {}
        for name, t in arrays.items():
            like = t if t.is_floating_point() else t.double()
            drawn = self.deviation * noise.draw(like, generator).to(like)
            changed[name] = (t * factor if _clips(t) else t) + drawn.to(t)
        return rebuilt(value, changed), state

    def mechanism(self, plan: Plan, rounds: int) -> Mechanism:
        """Return the Gaussian mechanism for one client; the argument `epsilon` plays no part beyond the noise."""
        return Mechanism(self.deviation / self.clipping_norm, 1.0, rounds)

    def settled(self, first: bool) -> bool:
        """Return False: the share of the buffers in the norm is inferred from the sent update."""
        return False

    def disclose(self, sent: Update, plan: Plan | None = None, before: Channel | None = None) -> Channel:
        """Return the channel: clipping, then noise.

        The norm includes the buffers' differences. They are sent too, so that the server can tell their share.
        """
        noise = GaussianNoise(self.deviation)
        if not sent.buffers and all(map(_clips, sent.tensors.values())):
            return noise.disclose(sent, plan, Clipping(self.clipping_norm).disclose(sent, plan, before))
        arrays = sent_arrays(sent) if sent.buffers_before is not None else dict(sent.tensors)
        beside = {name: t.double() for name, t in arrays.items() if name not in sent.tensors}
        scaled = {name: t for name, t in beside.items() if _clips(arrays[name])}
        size = sum(t.numel() for t in scaled.values())
        share = max(_squares(scaled) - size * self.deviation**2, 0.0)
        whole = _squares({name: t for name, t in beside.items() if name not in scaled})
        room = max(self.clipping_norm**2 - share, 1e-6 * self.clipping_norm**2)
        like = next(iter(sent.tensors.values()))
        known = {":room": like.new_tensor(room), ":whole": like.new_tensor(whole)}
        return noise.disclose(sent, plan, (before or Channel()).then(_scaled_beside, known=known))


def _clips(t: Tensor) -> bool:
    return t.ndim > 0 and t.is_floating_point()


def _squares(tensors: Tensors) -> float:
    return float(sum(t.double().square().sum().item() for t in tensors.values()))


def _scaled_beside(tensors: Tensors, known: Tensors) -> dict[str, Tensor]:
    """Clip the tensors to the room that the buffers leave them within the norm."""
    squares = torch.stack([t.square().sum() for t in tensors.values()]).sum() + known[":whole"]
    factor = known[":room"].sqrt() * torch.maximum(squares, known[":room"]).rsqrt()
    return {name: t * factor if t.ndim else t for name, t in tensors.items()}
