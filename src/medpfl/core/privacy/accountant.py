"""Epsilon of the subsampled Gaussian mechanism, computed by two independent accountants.

Both are numerical and tight up to a stated error: Opacus's PRV accountant (Gopi et al. 2021, arXiv:2106.02848), and
dp-accounting's privacy loss distributions (Koskela et al. 2020, arXiv:1906.03049). The extra ``dp`` installs them, and
they are imported when used.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import lru_cache

from medpfl.core.errors import InputError, check_positive

__all__ = ["Epsilon", "epsilon"]

_LEAST = 0.05
"""Minimum noise multiplier for computing epsilon: below it, the accountants run out of memory."""


@dataclass(frozen=True)
class Epsilon:
    """Epsilon spent, by each accountant.

    Attributes:
        prv: epsilon by Opacus; at most 0.5 percent or 0.01 too large.
        pld: epsilon by dp-accounting.
        delta: delta at which both are stated.
    """

    prv: float
    pld: float
    delta: float

    @property
    def value(self) -> float:
        """The larger of the two epsilons."""
        return max(self.prv, self.pld)

    def __str__(self) -> str:
        return f"epsilon {self.prv:.3g} (PRV), {self.pld:.3g} (PLD) at delta {self.delta:g}"


def epsilon(noise: float, rate: float, steps: int, delta: float) -> Epsilon:
    """Return the epsilon of `steps` Gaussian mechanisms, each on a Poisson sample.

    Args:
        noise: noise multiplier: standard deviation divided by sensitivity.
        rate: probability that a record is in a sample; 1 means every sample, without amplification.
        steps: number of mechanisms whose outputs the attacker has.
        delta: delta in (0, 1).

    Raises:
        InputError: a number is out of its range, there is too little noise, or the extra ``dp`` is not installed.
    """
    _check(noise, rate, steps, delta)
    if noise < _LEAST:
        raise InputError(f"noise is {noise}: below {_LEAST}, epsilon is in the hundreds and promises nothing")
    return Epsilon(_prv(noise, rate, steps, delta), _pld(noise, rate, steps, delta), delta)


def _check(noise: float, rate: float, steps: int, delta: float) -> None:
    check_positive(noise=noise)
    if not 0 < rate <= 1:
        raise InputError(f"the sampling rate is {rate}: it must be above 0 and at most 1")
    if type(steps) is not int or steps < 1:
        raise InputError(f"steps is {steps}: it must be a whole number, at least 1")
    if not 0 < delta < 1:
        raise InputError(f"delta is {delta}: it must lie between 0 and 1, and be well below 1 / records")
    try:
        import dp_accounting  # noqa: F401
        import opacus.accountants  # noqa: F401
    except ImportError:
        raise InputError("epsilon needs two accountants: pip install 'medpfl[dp]'") from None


@lru_cache(maxsize=1000)  # an audit asks for the same numbers several times, and each takes a good second
def _prv(noise: float, rate: float, steps: int, delta: float) -> float:
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [(noise, rate, steps)]
    with warnings.catch_warnings():
        # Its Renyi accountant, asked for a first guess, warns of its own orders; its logarithm of 0 at rate 1.
        warnings.simplefilter("ignore")
        rough = float(accountant.get_epsilon(delta, eps_error=0.01))
        return rough if rough > 2 else float(accountant.get_epsilon(delta, eps_error=max(rough / 200, 1e-4)))


@lru_cache(maxsize=1000)
def _pld(noise: float, rate: float, steps: int, delta: float) -> float:
    import dp_accounting
    from dp_accounting.pld import PLDAccountant

    event = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise))
    return float(PLDAccountant().compose(dp_accounting.SelfComposedDpEvent(event, steps)).get_epsilon(delta))
