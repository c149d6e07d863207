"""SVTPrivacy: NVIDIA FLARE's filter by the sparse vector technique."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, isclose
from typing import NamedTuple

import torch
from torch import Tensor

from medpfl.core.errors import InputError, check_positive
from medpfl.core.experiments.limits import check_whole
from medpfl.core.plan import Plan
from medpfl.core.roles import Defense, State
from medpfl.core.spec import shown
from medpfl.core.types import Channel, Tensors, Update
from medpfl.defenses.compression import certain, flat, largest, unflat
from medpfl.defenses.filters import clipped_channel, rebuilt, sent_arrays
from medpfl.defenses.laplace import LaplaceNoise

__all__ = ["SVTPrivacy"]

_MOST_STEPS = 10**9


class _Budget(NamedTuple):
    """Epsilon of one round by the filter's own account: for the threshold, the queries, and the values sent."""

    threshold: float
    query: float
    release: float


@dataclass(frozen=True, repr=False)
class SVTPrivacy(Defense):
    """NVIDIA FLARE's filter that sends a random selection of clipped values with Laplace noise.

    ``nvflare.app_common.filters.svt_privacy.SVTPrivacy`` (2.9), after the sparse vector technique. Of n values, divided
    by the number of local steps, ``c = ceil(fraction n)`` are drawn among the accepted ones. A value x is accepted if
    ``min(|x|, gamma)`` plus Laplace noise exceeds `tau` plus Laplace noise; rejected values are tried again until c are
    accepted. A drawn value is sent as ``clip(x, -gamma, gamma)`` plus Laplace noise of scale ``2 gamma / noise_var``;
    all others are 0. It acts on the differences of batch-norm statistics as well. Arrays without axes, such as batch
    counters, take part in the draw, but are sent as they are.

    Promises no epsilon worth the name. By its own account it spends ``epsilon + noise_var c`` in each round: 70.1 for
    7,000 values with stock settings, and in proportion more for larger models. The threshold's proof does not cover
    repeated trials, and counters are sent without noise. With stock settings the noise has 28 times the size of a
    value: what is sent hides the image, and the update too, so that the model hardly learns. Breaks: with less noise,
    every attack that knows which values were not sent. Deviates: counters keep their type; a model's buffers that are
    not in its state dict count too. The draws have the original's law, but another order.

    Attributes:
        fraction: share of values to send, above 0 and at most 1; fewer if drawn with replacement.
        epsilon: the account's budget for threshold and queries, above 0.
        noise_var: the account's budget for each value sent, above 0. It is no variance.
        gamma: the largest magnitude of a value per step, above 0, in the update's units.
        tau: the threshold before noise.
        replace: whether values are drawn with replacement.
        epsilon_threshold, epsilon_query: parts of `epsilon`, above 0; ``None``: ``1 : (2 c)^(2/3)``, or the rest.
        epsilon_release: the account's budget for all values sent, above 0; ``None``: ``c noise_var``.
        steps: number of local steps that the client states in the message's metadata (``NUM_STEPS_CURRENT_ROUND``); 1
            if it states none.

    Raises:
        InputError: if a number is out of range. In a round: if no value can exceed the threshold (the original then
            runs forever), or the update has buffers, but not those before the round.
    """

    fraction: float = shown(0.1)
    epsilon: float = shown(0.1)
    noise_var: float = 0.1
    gamma: float = 1e-5
    tau: float = 1e-6
    replace: bool = True
    epsilon_threshold: float | None = None
    epsilon_query: float | None = None
    epsilon_release: float | None = None
    steps: int = 1

    def __post_init__(self) -> None:
        given = {name: getattr(self, f"epsilon_{name}") for name in _Budget._fields}
        given = {f"epsilon_{name}": value for name, value in given.items() if value is not None}
        check_positive(epsilon=self.epsilon, noise_var=self.noise_var, gamma=self.gamma, **given)
        check_whole("steps", self.steps, 1, _MOST_STEPS)
        if not 0 < self.fraction <= 1:
            raise InputError(f"fraction is {self.fraction}: it must be above 0 and at most 1")
        budget = self._budget(1)
        if min(budget.threshold, budget.query) <= 0 or not isclose(budget.threshold + budget.query, self.epsilon):
            raise InputError(
                f"epsilon_threshold and epsilon_query must be above 0, and their sum must be epsilon ({self.epsilon})"
            )

    def _count(self, size: int) -> int:
        """Return how many of `size` values are drawn."""
        return min(ceil(size * self.fraction), size)

    def _budget(self, count: int) -> _Budget:
        threshold, query = self.epsilon_threshold, self.epsilon_query
        if threshold is None:
            threshold = self.epsilon / (1 + (2 * count) ** (2 / 3)) if query is None else self.epsilon - query
        if query is None:
            query = self.epsilon - threshold
        return _Budget(threshold, query, self.epsilon_release or count * self.noise_var)

    def _noise(self, count: int) -> float:
        """Return the scale of the Laplace noise on a value sent, before the multiplication by `steps`."""
        return 2 * self.gamma * count / self._budget(count).release

    def update(self, value: Update, state: State, generator: torch.Generator) -> tuple[Update, State]:
        """Draw the values to send, clip them and add noise."""
        arrays = sent_arrays(value)
        (own,) = flat({name: t.double().cpu() for name, t in arrays.items()}, "global")
        clipped = (own / self.steps).clamp(-self.gamma, self.gamma)
        count = self._count(len(own))
        chosen = self._drawn(clipped.abs(), count, generator)
        noise = self._noise(count) * _laplace(len(chosen), generator)
        sent = torch.zeros_like(own).index_copy(0, chosen, (clipped[chosen] + noise) * self.steps)
        parts = unflat([sent], arrays)
        return rebuilt(value, {name: parts[name] if t.ndim else t for name, t in arrays.items()}), state

    def _drawn(self, sizes: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Return the indices of the values to send."""
        budget = self._budget(count)
        threshold = self.tau + self.gamma / budget.threshold * float(_laplace(1, generator))
        trials = _trials(sizes - threshold, 2 * self.gamma * count / budget.query, generator)
        last = trials.kthvalue(count).values
        if last.isinf():
            raise InputError(
                f"{self!r}: fewer than {count} values can exceed the threshold {threshold:.3g}: lower tau or fraction"
            )
        accepted = (trials <= last).nonzero()[:, 0]
        if self.replace:
            return accepted[torch.randint(len(accepted), (count,), generator=generator)].unique()
        return accepted[torch.randperm(len(accepted), generator=generator)[:count]]

    def account(self, size: int, rounds: int) -> str:
        """Return the filter's own epsilon for an update with `size` values, and why it promises little."""
        count = self._count(size)
        budget = self._budget(count)
        chosen, total = budget.threshold + budget.query, rounds * sum(budget)
        return (
            f"by the filter's own account, epsilon {total:.3g} at delta 0 for the client, over {rounds} "
            f"round{'s' * (rounds > 1)}: {chosen:.3g} to choose values and {budget.release:.3g} for the noise on "
            f"{count:,} of them, in each round. Its proof does not cover how it chooses. "
            + ("This is no epsilon worth the name" if total > 10 else "MedPFL does not confirm this epsilon")
        )

    def settled(self, first: bool) -> bool:
        """Return False: which values were drawn is inferred from the sent update."""
        return False

    def disclose(self, sent: Update, plan: Plan | None = None, before: Channel | None = None) -> Channel:
        """Return the channel: clipping, the noise's precision, and precision 0 for values that were not sent.

        If noise was added later, the largest noisy values are taken for the ones sent.
        """
        count = self._count(sum(t.numel() for t in (*sent.tensors.values(), *(sent.buffers or {}).values())))
        precision = min((self._noise(count) * self.steps) ** -2 / 2, 1e30)
        (group,) = flat(sent.tensors, "global")
        known = unflat([(group != 0) & largest(group, min(1.0, count / len(group)))], sent.tensors)
        told: Tensors = {
            name: known[name] * torch.full_like(t, precision) if t.ndim else torch.full_like(t, certain(t))
            for name, t in sent.tensors.items()
        }
        return clipped_channel(before, self.gamma * self.steps, precision=told, laplace=True)


def _laplace(count: int, generator: torch.Generator) -> Tensor:
    return LaplaceNoise(1.0).draw(torch.empty(count, dtype=torch.float64), generator)


def _trials(excess: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    """Draw how many trials it takes until each value's excess plus new Laplace noise is at least 0.

    The number of trials has a geometric distribution. It is infinite where the probability is 0 in float64.
    """
    tail = torch.exp(-excess.abs() / scale) / 2
    fails = torch.where(excess > 0, tail, 1 - tail)
    chance = torch.where(excess > 0, 1 - tail, tail)
    slope = torch.where(excess > 0, fails.log(), torch.log1p(-tail))
    drawn = (1 - torch.rand(excess.shape, generator=generator, dtype=torch.float64)).log()
    return torch.where(chance > 0, (drawn / slope).ceil().clamp(min=1), torch.inf)
