"""PercentilePrivacy: NVIDIA FLARE's filter that drops the smallest values and clips the largest."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np
import torch
from torch import Tensor

from medpfl.core.errors import InputError, check_positive
from medpfl.core.experiments.limits import check_whole
from medpfl.core.plan import Plan
from medpfl.core.roles import Defense, State
from medpfl.core.spec import shown
from medpfl.core.types import Channel, Tensors, Update
from medpfl.defenses.filters import clipped_channel, rebuilt, sent_arrays

__all__ = ["PercentilePrivacy"]

_MOST_STEPS = 10**9


@dataclass(frozen=True, repr=False)
class PercentilePrivacy(Defense):
    """NVIDIA FLARE's filter that drops the smallest values of an update and clips the largest.

    ``nvflare.app_common.filters.percentile_privacy.PercentilePrivacy`` (2.9), named after selective sharing (Shokri and
    Shmatikov, CCS 2015). All values are divided by the number of local steps. Those with a magnitude below the
    `percentile` of all magnitudes become 0, the others are clipped to [-gamma, gamma], and all are multiplied by the
    number of steps again. It acts on the differences of batch-norm statistics as well. Arrays without axes, such as
    batch counters, stay as they are, but count for the percentile.

    Promises nothing: no noise, and no epsilon. The server sees nine in ten values exactly with stock settings. In
    contrast to selective sharing, nothing is random. Breaks: adaptive `iDLG` reconstructs as without a defense.
    Deviates: counters keep their type, where the original sends them in float64; a model's buffers that are not in its
    state dict count for the percentile too. With ``gamma <= 0`` or a `percentile` outside 0 to 100 the original does
    nothing, without an error.

    Attributes:
        percentile: percentile of all magnitudes below which a value becomes 0, from 0 to 100.
        gamma: the largest magnitude of a value per step, above 0, in the update's units.
        steps: number of local steps that the client states in the message's metadata (``NUM_STEPS_CURRENT_ROUND``); 1
            if it states none.

    Raises:
        InputError: if a number is out of range. In a round: if the update has buffers, but not those before the round.
    """

    percentile: float = shown(10)
    gamma: float = shown(0.01)
    steps: int = 1

    def __post_init__(self) -> None:
        check_positive(gamma=self.gamma)
        check_whole("steps", self.steps, 1, _MOST_STEPS)
        if not 0 <= self.percentile <= 100:
            raise InputError(f"percentile is {self.percentile}: it must lie between 0 and 100")

    def update(self, value: Update, state: State, generator: torch.Generator) -> tuple[Update, State]:
        """Drop the smallest values and clip the largest."""
        arrays = sent_arrays(value)
        each = {
            name: t / self.steps if t.is_floating_point() else t.double() / self.steps for name, t in arrays.items()
        }
        least = self._cutoff(each)
        kept = {name: self._filtered(t, least) if t.ndim else arrays[name] for name, t in each.items()}
        return rebuilt(value, kept), state

    def _cutoff(self, each: Tensors) -> float:
        """Return the percentile of all magnitudes, as NumPy interpolates it."""
        values = [t.abs().flatten().cpu() for t in each.values()]
        return float(np.percentile(np.concatenate([_array(t) for t in values]), self.percentile))

    def _filtered(self, values: Tensor, least: float) -> Tensor:
        dropped = values.double().abs() < least
        return values.masked_fill(dropped, 0).clamp(-self.gamma, self.gamma) * self.steps

    def settled(self, first: bool) -> bool:
        """Return False: which values were dropped is inferred from the sent update."""
        return False

    def disclose(self, sent: Update, plan: Plan | None = None, before: Channel | None = None) -> Channel:
        """Return the channel: clipping, and a bound for dropped values, which is the smallest magnitude sent.

        More zeros than the percentile can drop were zeros before, and then nothing was dropped. If noise was added
        later, the smallest noisy values are taken for the dropped ones.
        """
        limit = self.gamma * self.steps
        arrays = sent_arrays(sent) if sent.buffers_before is not None else sent.tensors
        size, zeros = sum(t.numel() for t in arrays.values()), sum(int((t == 0).sum()) for t in arrays.values())
        values = torch.cat([t.abs().flatten() for t in sent.tensors.values() if t.ndim] or [torch.zeros(1)])
        if not self.percentile or zeros > ceil(self.percentile / 100 * (size - 1)):
            return clipped_channel(before, limit)
        least = float(values[values > 0].min()) if bool(values.any()) else limit
        if not zeros:
            least = float(np.percentile(_array(values.cpu()), self.percentile))
        bounds = {
            name: ((t == 0) if zeros else (t.abs() < least)) * torch.full_like(t, least if t.ndim else 0.0)
            for name, t in sent.tensors.items()
        }
        return clipped_channel(before, limit, bounds=bounds)


def _array(values: Tensor) -> np.ndarray:
    """Return a tensor as an array; NumPy has no bfloat16."""
    return (values.float() if values.dtype == torch.bfloat16 else values).detach().numpy()
