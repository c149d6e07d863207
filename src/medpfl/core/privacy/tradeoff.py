"""What differential privacy allows any attack: a bound on its success, given the success of guessing without it.

**Claim.** A record x is drawn by nature, all other records are known. An attack succeeds if an event E of x and its
guess happens ("SSIM is at least 0.9", "the guess points to x among M"). Let kappa be the largest probability of E for
a guess that is made without what the mechanism sends. Then its probability for any attack on what is sent is at most
``1 - f(kappa)``, where ``f(a)`` is the least error of the second kind of a test at level a between

- the null hypothesis Q: the record is **not** there (its gradient is replaced by zero), and
- the alternative P: it is.

**Proof.** Under Q, what is sent is independent of x, so that E has probability at most kappa; "E happens" is a test of
Q against P, for each x of a level k(x) whose mean is at most kappa, and its power at x is at most ``1 - f(k(x))``. The
mean of these is at most ``1 - f(kappa)``, since ``1 - f`` is concave and grows. (For a uniform prior and RDP: Balle et
al. 2022, arXiv:2201.04845; with trade-off functions: Kaissis et al. 2023, arXiv:2307.03928.)

So the neighboring relation is that of adding one record, in this direction alone. Of replacing one record by another
the clipped sum may change twice as much, and nothing of it is needed: the null hypothesis is any law without x. The
bound is of one record (of `DPSGD`, an image; of `ClientDP`, all that a client holds, and so any image of it), on
average over the prior, not of the worst record, and not of several records of one patient together.

**Gaussian mechanism**, noise z times the sensitivity: Q = N(0, z^2), P = N(1, z^2), and by Neyman and Pearson
``1 - f(a) = Phi(Phi^-1(a) + mu)`` with mu = 1 / z (Dong et al. 2022, arXiv:1905.02383, equation 6); n of them are one
with mu = sqrt(n) / z. **A Poisson sample** of rate q makes P the mixture (1 - q) N(0, z^2) + q N(1, z^2). Its
likelihood ratio grows too, so that the best test is the same and ``1 - f(a) = (1 - q) a + q Phi(Phi^-1(a) + mu)``.
**Several of those** have no closed form: for every real e, ``power <= exp(e) a + D(e)`` with the hockey-stick
divergence ``D(e) = sup_S P(S) - exp(e) Q(S)``, with equality at one e for each a. D is that of the composed privacy
loss distribution of P against Q (dp-accounting, rounded to the safe side): any choice of e is a bound.

**Several private parts in one defense** (``DPSGD() | ClientDP()``): the later ones are post-processing of what the
earlier send, and a guarantee of a later one holds whatever came before it. So each one's bound holds, and the least at
this kappa, `tightest`, is taken: the order of their bounds may depend on kappa. It counts no noise twice, so that it
is valid and may be wider than need be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil, exp, floor, sqrt
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri

from medpfl.core.errors import InputError, check_positive

__all__ = ["Mechanism", "Profile", "tightest"]

Profile = tuple[tuple[float, float], ...]
"""Pairs (e, D(e)); D falls."""

_LEAST = 0.05
"""Noise multiplier from which privacy losses are composed: below, they take too much memory."""
_CELLS, _TAIL = 20_000, 1e-12
"""Of the discretized privacy loss of one step, and the probability that may be counted as an infinite loss."""
_ORDERS, _FAR = 4_000, 30.0
"""How many e are tried, up to where ``exp(e) kappa`` is above 1 for any kappa of interest."""
_KAPPAS = np.concatenate([np.logspace(-7, -1, 61), np.linspace(0.12, 1.0, 45)])


@dataclass(frozen=True)
class Mechanism:
    """Gaussian mechanisms of sensitivity 1, each on a Poisson sample, of which an adversary has all outputs.

    Attributes:
        noise: standard deviation over sensitivity, above 0.
        rate: probability of a record to be in a sample, in (0, 1].
        steps: how many there are, at least 1.
        known: the `profile`, where it was computed before.

    Raises:
        InputError: a number out of its range.
    """

    noise: float
    rate: float = 1.0
    steps: int = 1
    known: Profile = field(default=(), repr=False, compare=False)

    def __post_init__(self) -> None:
        check_positive(noise=self.noise)
        if not 0 < self.rate <= 1:
            raise InputError(f"the sampling rate is {self.rate}: it must be above 0 and at most 1")
        if type(self.steps) is not int or self.steps < 1:
            raise InputError(f"steps is {self.steps}: it must be a whole number, at least 1")

    @property
    def mu(self) -> float:
        """Of all steps, were the record in all of them; this is Gaussian differential privacy only at rate 1."""
        return sqrt(self.steps) / self.noise

    def bound(self, kappa: float) -> float:
        """The largest probability of success of any attack, where guessing without the mechanism has `kappa`.

        >>> round(Mechanism(noise=1.0).bound(0.01), 3), round(Mechanism(noise=1.0, rate=0.1).bound(0.01), 4)
        (0.092, 0.0182)

        Raises:
            InputError: kappa out of [0, 1]; several steps on samples without the extra ``dp``, or with little noise.
        """
        if not 0 <= kappa <= 1:
            raise InputError(f"kappa is {kappa}: it is a probability, from 0 to 1")
        if self.rate == 1 or self.steps == 1:
            seen = float(ndtr(ndtri(kappa) + self.mu))
            return (1 - self.rate) * kappa + self.rate * seen
        return min(1.0, *(exp(e) * kappa + divergence for e, divergence in self.profile))

    @cached_property
    def profile(self) -> Profile:
        """Hockey-stick divergences of the record being there against its not being there; empty if not needed.

        Raises:
            InputError: the extra ``dp`` is not installed, or too little noise.
        """
        if self.known or self.rate == 1 or self.steps == 1:
            return self.known
        return _composed(self.noise, self.rate, self.steps)


def tightest(mechanisms: Sequence[Mechanism], kappa: float) -> float:
    """The least bound at `kappa` of mechanisms that all acted on what is seen; at least one.

    >>> round(tightest([Mechanism(noise=1.0), Mechanism(noise=0.5, rate=0.1)], 0.01), 4)
    0.0462

    Raises:
        InputError: as `Mechanism.bound`.
    """
    return min(one.bound(kappa) for one in mechanisms)


def _composed(noise: float, rate: float, steps: int) -> Profile:
    try:
        from dp_accounting.pld import pld_pmf, privacy_loss_mechanism
    except ImportError:
        raise InputError("a bound over several sampled steps needs an accountant: pip install 'medpfl[dp]'") from None
    if noise < _LEAST:
        raise InputError(f"noise is {noise}: below {_LEAST}, several sampled steps are not composed")
    loss = privacy_loss_mechanism.GaussianPrivacyLoss(
        noise, sampling_prob=rate, adjacency_type=privacy_loss_mechanism.AdjacencyType.REMOVE
    )  # "remove": from the law with the record to the law without it
    ends: Any = loss.connect_dots_bounds()
    gap = (ends.epsilon_upper - ends.epsilon_lower) / _CELLS
    low, high = floor(ends.epsilon_lower / gap), ceil(ends.epsilon_upper / gap)
    divergences: Any = loss.get_delta_for_epsilon(gap * np.arange(low, high + 1))
    one = pld_pmf.create_pmf_pessimistic_connect_dots_fixed_gap(gap, low, high, divergences)
    return _needed(one.self_compose(steps, _TAIL), max(steps * gap * low, -_FAR))


def _needed(composed: Any, low: float) -> Profile:
    """Of many pairs those that bound best at some kappa."""
    orders = np.linspace(low, min(composed.get_epsilon_for_delta(_TAIL * 10), _FAR), _ORDERS)
    divergences = np.asarray(composed.get_delta_for_epsilon(orders))
    bounds = np.exp(orders)[:, None] * _KAPPAS + divergences[:, None]
    best = sorted(set(bounds.argmin(0).tolist()))
    return tuple((float(orders[i]), float(divergences[i])) for i in best)
