"""What rates show and what they cannot show, by update: tests against a floor, upper ends, and Holm's correction."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from scipy import stats

from medpfl.core.types import Finding
from medpfl.metrics.rates import cluster_interval, effective_counts, interval

__all__ = ["ALPHA", "Tally", "beats_in_pairs", "clusters_of", "holm", "updates_needed"]

ALPHA = 0.025
"""Error probability of one-sided decisions: the lower and the upper end of a 95 % interval have it each."""

_MOST_UPDATES = 100_000

K = TypeVar("K", bound=Hashable)


def clusters_of(rows: Sequence[Finding]) -> list[tuple[int, int]]:
    """Return the update behind each row. Draws of weights attack the same images, so they share a cluster."""
    return [(row.stack, row.victim) for row in rows]


@dataclass(frozen=True)
class Tally:
    """Successes among trials, the update behind each trial, and what guesses without the update reach.

    Attributes:
        hits: one for each image or patient.
        updates: the update, or the cluster of updates, that each trial belongs to.
        floor: rate in [0, 1] that a guess without the update explains; a leak must exceed it.
        known_floor: the part of `floor` that is known without sampling error; only this much is
            subtracted before a rate is said to be small.
    """

    hits: tuple[bool, ...]
    updates: tuple[Hashable, ...]
    floor: float = 0.0
    known_floor: float = 0.0

    @property
    def rate(self) -> float:
        """The share of successes."""
        return sum(self.hits) / len(self.hits)

    @property
    def independent(self) -> int:
        """Number of independent updates."""
        return len(set(self.updates))

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the rate, by cluster."""
        return cluster_interval(self.hits, self.updates)

    @property
    def p_value(self) -> float:
        """Probability of at least so many successes if each came with the probability `floor`.

        The binomial tail on the effective number of trials (Korn and Graubard 1998): below 0.025 exactly where the
        lower end of the 95 % interval exceeds the floor.
        """
        if not any(self.hits):
            return 1.0
        if self.floor <= 0:
            return 0.0
        if self.floor >= 1:
            return 1.0
        successes, trials = effective_counts(self.hits, self.updates)
        return float(stats.beta.cdf(self.floor, successes, trials - successes + 1))

    @property
    def excess(self) -> float:
        """Upper end of the 95 % interval of the rate above the known floor, with the update as the unit.

        Images of one update count as one trial here however they vary: they may all fail for one reason.
        """
        updates = self.independent
        return interval(self.rate * updates, updates)[1] - self.known_floor

    def leaves(self, tolerance: float) -> bool:
        """Return whether the known floor leaves room for more than the tolerance above it."""
        return self.known_floor < 1 - tolerance


def holm(p_values: Mapping[K, float], alpha: float = ALPHA) -> set[K]:
    """Return the hypotheses that are rejected with a family-wise error of `alpha` (Holm 1979, Scand. J. Stat. 6).

    >>> sorted(holm({"a": 0.001, "b": 0.02, "c": 0.5}))
    ['a']
    """
    rejected: set[K] = set()
    for place, (key, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        if p >= alpha / (len(p_values) - place):
            break
        rejected.add(key)
    return rejected


def beats_in_pairs(own: Mapping[Hashable, bool], other: Mapping[Hashable, bool]) -> bool:
    """Return whether there are more successes than the other has, on the images that both tried."""
    both = own.keys() & other.keys()
    return not both or sum(own[key] for key in both) > sum(other[key] for key in both)


def updates_needed(tallies: Iterable[Tally], tolerance: float) -> int | None:
    """Return how many updates would decide if all rates stayed as they are: enough for "leaks", or for "no leak found".

    ``None`` where no number up to 100,000 would.
    """
    tallies = list(tallies)
    leaking = [_least(tally, tolerance, leak=True) for tally in tallies]
    clearing = [_least(tally, tolerance, leak=False) for tally in tallies]
    ways = [n for n in leaking if n is not None]
    if clearing and None not in clearing:
        ways.append(max(n for n in clearing if n is not None))
    return min(ways, default=None)


def _least(tally: Tally, tolerance: float, leak: bool) -> int | None:
    """Return the least number of updates for which one side of the interval clears its mark, by bisection."""

    def decides(updates: int) -> bool:
        low, high = interval(tally.rate * updates, updates)
        return low > tally.floor if leak else high < tally.known_floor + tolerance

    if not decides(_MOST_UPDATES):
        return None
    few, many = 0, _MOST_UPDATES
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if decides(middle) else (middle, many)
    return many
