"""Success bounds from differential privacy: no attack can do better, given the success of guessing without the output.

**Claim.** A record x is random, and all other records are known. An attack succeeds if an event E defined by x and the
guess occurs ("SSIM is at least 0.9", "the guess points to x among M"). Let kappa be the largest probability of E for
any guess made without the mechanism's output. Then any attack on the output succeeds with probability at most
``1 - f(kappa)``, where ``f(a)`` is the smallest type II error of a test at level a between

- the null hypothesis Q: the record is **absent** (its gradient is replaced by zero), and
- the alternative P: it is present.

**Proof.** Under Q the output is independent of x, so E has probability at most kappa. For each x, "E occurs" is a test
of Q against P. It has a level k(x), whose mean is at most kappa, and its power at x is at most ``1 - f(k(x))``. By
Jensen's inequality the mean power is at most ``1 - f(kappa)``, because ``1 - f`` is concave and increasing. (For a
uniform prior and RDP: Balle et al. 2022, arXiv:2201.04845; with trade-off functions: Kaissis et al. 2023,
arXiv:2307.03928.)

The neighboring relation is thus adding one record, in this direction only. Replacing a record, which could change the
clipped sum twice as much, does not matter: the null hypothesis may be any distribution without x. The bound covers one
record (for `DPSGD`, an image; for `ClientDP`, all data of a client, and hence each of its images). It holds on average
over the prior; it does not cover the worst record, or several records of one patient together.

**Gaussian mechanism** with noise z times the sensitivity: Q = N(0, z^2) and P = N(1, z^2). By the Neyman-Pearson lemma
``1 - f(a) = Phi(Phi^-1(a) + mu)`` with mu = 1 / z (Dong et al. 2022, arXiv:1905.02383, equation 6). The composition of
n such mechanisms is one with mu = sqrt(n) / z. **Poisson sampling** at rate q makes P the mixture
(1 - q) N(0, z^2) + q N(1, z^2). The likelihood ratio is still increasing, so the best test is the same and
``1 - f(a) = (1 - q) a + q Phi(Phi^-1(a) + mu)``. **Several sampled steps** have no closed form. For every real e,
``power <= exp(e) a + D(e)`` with the hockey-stick divergence ``D(e) = sup_S P(S) - exp(e) Q(S)``; for each a, equality
holds at one e. D is computed from the composed privacy loss distribution of P against Q (dp-accounting, rounded to the
safe side), so every e gives a bound.

**Several private parts in one defense** (``DPSGD() | ClientDP()``): a later part only post-processes what an earlier
one sends, and a later part's guarantee holds for any input. So each part's bound holds, and `tightest` returns the
smallest at the given kappa (which bound is smallest may depend on kappa). The parts' noises are not combined, so the
result is valid but may be looser than necessary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from math import ceil, exp, floor, sqrt
from typing import Any

import numpy as np

from medpfl.core.errors import InputError, check_positive

__all__ = ["Mechanism", "Profile", "tightest"]

Profile = tuple[tuple[float, float], ...]
"""Pairs (e, D(e)); D is decreasing."""

_LEAST = 0.05
"""Minimum noise multiplier for composing privacy losses: below it, they take too much memory."""
_CELLS, _TAIL = 20_000, 1e-12
"""Number of cells of one step's discretized privacy loss; probability that may be counted as an infinite loss."""
_ORDERS, _FAR = 4_000, 30.0
"""Number of values of e that are tried, and their largest: ``exp(e) kappa`` is above 1 there for any kappa in use."""
_KAPPAS = np.concatenate([np.logspace(-7, -1, 61), np.linspace(0.12, 1.0, 45)])


@dataclass(frozen=True)
class Mechanism:
    """Gaussian mechanisms with sensitivity 1, each on a Poisson sample, whose outputs the attacker has.

    Attributes:
        noise: noise multiplier (standard deviation divided by sensitivity), above 0.
        rate: probability that a record is in a sample, in (0, 1].
        steps: number of mechanisms, at least 1.
        known: the `profile`, if it was computed before.

    Raises:
        InputError: a number is out of its range.
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
        """The mu of all steps together if each contains the record; only at rate 1 is this Gaussian DP."""
        return sqrt(self.steps) / self.noise

    def bound(self, kappa: float) -> float:
        """Return the success bound of any attack, if guessing without the output succeeds with probability `kappa`.

        >>> round(Mechanism(noise=1.0).bound(0.01), 3), round(Mechanism(noise=1.0, rate=0.1).bound(0.01), 4)
        (0.092, 0.0182)

        Raises:
            InputError: kappa is outside [0, 1], or there are several sampled steps with too little noise or without
                the extra ``dp``.
        """
        if not 0 <= kappa <= 1:
            raise InputError(f"kappa is {kappa}: it must be a probability, from 0 to 1")
        if self.rate == 1 or self.steps == 1:
            from scipy.special import ndtr, ndtri  # slow to import

            seen = float(ndtr(ndtri(kappa) + self.mu))
            return (1 - self.rate) * kappa + self.rate * seen
        return min(1.0, *(exp(e) * kappa + divergence for e, divergence in self.profile))

    @cached_property
    def profile(self) -> Profile:
        """The hockey-stick divergences of P (record present) from Q (record absent); empty if not needed.

        Raises:
            InputError: the extra ``dp`` is not installed, or there is too little noise.
        """
        if self.known or self.rate == 1 or self.steps == 1:
            return self.known
        return _composed(self.noise, self.rate, self.steps)


def tightest(mechanisms: Sequence[Mechanism], kappa: float) -> float:
    """Return the smallest bound at `kappa` among one or more mechanisms that all acted on the same output.

    >>> round(tightest([Mechanism(noise=1.0), Mechanism(noise=0.5, rate=0.1)], 0.01), 4)
    0.0462

    Raises:
        InputError: as for `Mechanism.bound`.
    """
    return min(one.bound(kappa) for one in mechanisms)


def _composed(noise: float, rate: float, steps: int) -> Profile:
    try:
        import dp_accounting.pld  # noqa: F401
    except ImportError:
        raise InputError("a bound over several sampled steps needs an accountant: pip install 'medpfl[dp]'") from None
    if noise < _LEAST:
        raise InputError(f"noise is {noise}: below {_LEAST}, several sampled steps cannot be composed")
    return _profile(noise, rate, steps)


@lru_cache(maxsize=100)
def _profile(noise: float, rate: float, steps: int) -> Profile:
    from dp_accounting.pld import pld_pmf, privacy_loss_mechanism

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
    """Return the pairs (e, D(e)) that give the best bound at some kappa."""
    orders = np.linspace(low, min(composed.get_epsilon_for_delta(_TAIL * 10), _FAR), _ORDERS)
    divergences = np.asarray(composed.get_delta_for_epsilon(orders))
    bounds = np.exp(orders)[:, None] * _KAPPAS + divergences[:, None]
    best = sorted(set(bounds.argmin(0).tolist()))
    return tuple((float(orders[i]), float(divergences[i])) for i in best)
