"""Statistics behind a verdict: tests against a floor, upper confidence limits by update, and Holm's correction."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from scipy.special import betainc

from medpfl.core.types import Finding
from medpfl.metrics.rates import cluster_interval, effective_counts, interval

__all__ = [
    "ALPHA",
    "GALLERY",
    "Tally",
    "beats_in_pairs",
    "clusters_of",
    "holm",
    "identified",
    "mean_identified",
    "updates_needed",
]

ALPHA = 0.025
"""Error probability of a one-sided decision, as at either end of a 95 % interval."""

GALLERY = 20
"""Smallest gallery in which re-identification is tested."""

_MOST_UPDATES = 100_000

K = TypeVar("K", bound=Hashable)


def clusters_of(rows: Sequence[Finding]) -> list[tuple[int, int]]:
    """Return each row's cluster, which is its update. Draws of weights attack the same images, so they share it."""
    return [(row.stack, row.victim) for row in rows]


def identified(row: Finding) -> bool | None:
    """Return True if a row's image was re-identified; ``None`` in a gallery too small to tell it from luck."""
    return row.identified if row.gallery >= GALLERY else None


def mean_identified(row: Finding) -> bool | None:
    """Return the same for a guess that is the mean image."""
    told = row.scores.get("mean_image_identified")
    return None if told is None or row.gallery < GALLERY else bool(told)


@dataclass(frozen=True)
class Tally:
    """Successes among trials, each trial's update, and how often guesses without the update succeed.

    Attributes:
        hits: each trial's outcome; a trial is an image or a patient.
        updates: each trial's update, or cluster of updates.
        floor: rate in [0, 1] explained by guesses without the update; only a rate above it is a leak.
        known_floor: the part without sampling error; only this part is subtracted before a rate is compared with the
            tolerance.
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
        """The number of independent updates."""
        return len(set(self.updates))

    @property
    def interval(self) -> tuple[float, float]:
        """The rate's 95 % interval, by cluster."""
        return cluster_interval(self.hits, self.updates)

    @property
    def p_value(self) -> float:
        """The probability of at least this many successes if each trial succeeded with probability `floor`.

        It is the binomial tail for the effective trial count (Korn and Graubard 1998). It is below 0.025 exactly if
        the 95 % interval's lower end exceeds the floor.
        """
        if not any(self.hits):
            return 1.0
        if self.floor <= 0:
            return 0.0
        if self.floor >= 1:
            return 1.0
        successes, trials = effective_counts(self.hits, self.updates)
        return float(betainc(successes, trials - successes + 1, self.floor))

    @property
    def excess(self) -> float:
        """The 95 % interval's upper end minus the known floor, with the update as the unit.

        All images in an update count as one trial, even if their outcomes differ: they may all fail for one reason.
        """
        updates = self.independent
        return interval(self.rate * updates, updates)[1] - self.known_floor

    def leaves(self, tolerance: float) -> bool:
        """Return True if the known floor leaves room for more than `tolerance` above it."""
        return self.known_floor < 1 - tolerance


def holm(p_values: Mapping[K, float], alpha: float = ALPHA) -> set[K]:
    """Return the hypotheses rejected at a family-wise error rate of `alpha` (Holm 1979, Scand. J. Stat. 6).

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
    """Return True if `own` has more successes than `other` on the images that both tried, or if there are none."""
    both = own.keys() & other.keys()
    return not both or sum(own[key] for key in both) > sum(other[key] for key in both)


def updates_needed(tallies: Iterable[Tally], tolerance: float) -> int | None:
    """Return how many updates would decide, for "leaks" or "no leak found", if all rates stayed the same.

    Return ``None`` if no number up to 100,000 would.
    """
    tallies = list(tallies)
    leaking = [_least(tally, tolerance, leak=True) for tally in tallies]
    clearing = [_least(tally, tolerance, leak=False) for tally in tallies]
    ways = [n for n in leaking if n is not None]
    if clearing and None not in clearing:
        ways.append(max(n for n in clearing if n is not None))
    return min(ways, default=None)


def _least(tally: Tally, tolerance: float, leak: bool) -> int | None:
    """Return the fewest updates at which one end of the interval clears its threshold, by bisection.

    For a leak, the lower end must exceed the floor. Otherwise, the upper end must be less than the tolerance above the
    known floor. Return ``None`` if 100,000 updates are not enough.
    """

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
