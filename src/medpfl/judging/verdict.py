"""The rules for verdicts and flags. A failed attack does not prove safety, and few images are no evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medpfl.core.types import Finding
from medpfl.core.verdicts import INCONCLUSIVE, LEAKS, NO_LEAK
from medpfl.judging.cells import Evidence, gains_of, scored
from medpfl.judging.evidence import Tally, clusters_of, updates_needed
from medpfl.judging.types import READ, RECOGNIZED, Numbers
from medpfl.metrics.rates import mean_interval

__all__ = [
    "LIMITS",
    "Tested",
    "doubts_of",
    "limits_of",
    "out_of_budget",
    "p_values",
    "untested",
    "updates_to_decide",
    "verdict_of",
]

LIMITS = ("too-few", "small-gallery", "worst-candidate")
"""The flags that `limits_of` may return."""


@dataclass(frozen=True)
class Tested:
    """A cell before its verdict.

    Attributes:
        numbers: the cell's scores.
        evidence: evidence for the verdict on its images.
        leaks_by: ways in which they leak, tested together with all other cells.
    """

    numbers: Numbers
    evidence: Evidence
    leaks_by: tuple[str, ...]

    @property
    def broken(self) -> bool:
        """True if no image was scored, or if most guesses are not finite, so the attack cannot be judged."""
        return self.numbers.images == 0 or self.numbers.nonfinite > 0.5


def p_values(evidence: Evidence) -> dict[str, float]:
    """Return, for each way in which images may leak, the probability that guesses without the update do as well.

    Re-identification counts only if the guesses also beat each baseline on the images that both tried; if not, its
    probability is 1.
    """
    found = {}
    if evidence.read is not None:
        found[READ] = evidence.read.p_value
    if evidence.recognized is not None:
        found[RECOGNIZED] = evidence.recognized.p_value if evidence.paired else 1.0
    return found


def untested(cell: Tested, control: Tested | None, tolerance: float) -> str | None:
    """Return the flag that says why a failure in this cell is no evidence about the defense, or ``None``.

    - ``control-failed``: the attack fails without the defense too.
    - ``control-low``: without the defense, the attack is not shown to exceed the tolerance, so staying below it here
      says nothing.
    - ``control-weak``: without the defense, the attack only re-identifies one client's images, and here the server has
      only a sum over several clients, which is harder to attack.

    Args:
        cell: the cell under the defense.
        control: the same attack's cell without a defense; ``None`` if there is none.
        tolerance: share of images.
    """
    if control is None or not control.leaks_by:
        return "control-failed"
    tallies = [tally for tally in (control.evidence.read, control.evidence.recognized) if tally is not None]
    if not any(tally.interval[0] - tally.known_floor > tolerance for tally in tallies):
        return "control-low"
    own, bare = cell.numbers, control.numbers
    # A factor of 2, since a few images more may also come from updates left out of the control because they are zero.
    a_sum = own.images * bare.clusters >= 2 * bare.images * own.clusters
    return "control-weak" if a_sum and READ not in control.leaks_by else None


def limits_of(evidence: Evidence, tolerance: float) -> list[str]:
    """Return the flags that say why the tolerance is not shown to be kept; an empty list if it is.

    - ``too-few``: the upper end of a 95 % interval reaches the tolerance, for images reconstructed, or for images
      re-identified above the known floor; or no image was scored.
    - ``worst-candidate``: it reaches the tolerance only if candidates count that the attack did not choose.
    - ``small-gallery``: the gallery is too small to test re-identification. This includes the case where guesses
      without the update re-identify nearly all images, so nothing is left to test.
    """
    if evidence.read is None:
        return ["too-few"]
    found = []
    if any(tally is not None and tally.excess >= tolerance for tally in (evidence.read, evidence.recognized)):
        found.append("too-few")
    elif evidence.worst is not None and evidence.worst.excess >= tolerance:
        found.append("worst-candidate")
    tested = evidence.recognized is not None and evidence.recognized.leaves(tolerance)
    return found if tested else [*found, "small-gallery"]


def verdict_of(leaks_by: Sequence[str], qualified: bool, limits: Sequence[str]) -> str:
    """Return one of the three verdicts.

    Args:
        leaks_by: ways in which images or patients leak.
        qualified: True if the attack's failure would be evidence about the defense.
        limits: flags from `limits_of`.
    """
    if leaks_by:
        return LEAKS
    return NO_LEAK if qualified and not limits else INCONCLUSIVE


def doubts_of(rows: Sequence[Finding], cell: Tested, reason: str | None) -> list[str]:
    """Return a cell's flags.

    Args:
        rows: the cell's rows.
        cell: its scores, and the ways in which it leaks.
        reason: flag that says why its failure is no evidence about the defense, from `untested` or from the
            defense's disclosure; ``None`` if it is evidence.
    """
    own, failed = scored(rows), not cell.leaks_by
    raised = {
        "control-failed": reason == "control-failed",
        "control-low": failed and reason == "control-low",
        "control-weak": failed and reason == "control-weak",
        "naive-attack": failed and reason == "naive-attack",
        "disclosure-unused": failed and reason == "disclosure-unused",
        "undisclosed": failed and reason == "undisclosed",
        "misdisclosed": failed and reason == "misdisclosed",
        "prior-only": bool(own) and failed and not _beats_baselines(own, cell.numbers),
        "zero-gradient": len(own) < len(rows),
        "not-converged": _share(own, "not-converged") > 0.5,
        "incomplete": reason == "incomplete",
        "out-of-budget": out_of_budget(own),
        "nonfinite": cell.numbers.nonfinite > 0,
        "wrong-derivative": _share(own, "wrong-derivative") > 0,
    }
    return [flag for flag, up in raised.items() if up]


def out_of_budget(rows: Sequence[Finding]) -> bool:
    """Return True if the attack stopped at its budget on most images, so that its failure is no evidence."""
    return _share(rows, "out-of-budget") > 0.5


def updates_to_decide(evidence: Evidence, tolerance: float) -> int | None:
    """Return how many updates would decide if all rates stayed the same; ``None`` if no number would."""
    tallies = [tally for tally in (evidence.read, evidence.recognized) if tally is not None]
    return updates_needed(tallies or [Tally((False,), (0,))], tolerance)


def _share(rows: Sequence[Finding], flag: str) -> float:
    return sum(flag in row.flags for row in rows) / len(rows) if rows else 0.0


def _beats_baselines(rows: Sequence[Finding], numbers: Numbers) -> bool:
    """Return True if the mean SSIM exceeds every baseline's, in paired comparison where the baseline is per image."""
    return all(_above_zero(gain, rows) for gain in gains_of(rows, numbers.ssim_random_update))


def _above_zero(gains: list[float], rows: Sequence[Finding]) -> bool:
    low, _ = mean_interval(gains, clusters=clusters_of(rows))
    return min(gains) > 0 if low is None else low > 0
