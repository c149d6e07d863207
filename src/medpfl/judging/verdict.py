"""Verdicts and the reasons to doubt them. A failed attack is not safety, and few images are no evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medpfl.core.types import Finding
from medpfl.core.verdicts import INCONCLUSIVE, LEAKS, NO_LEAK
from medpfl.judging.cells import Evidence, scored
from medpfl.judging.evidence import Tally, clusters_of, updates_needed
from medpfl.judging.types import READ, RECOGNIZED, Numbers
from medpfl.metrics.rates import mean_interval

__all__ = [
    "LIMITS",
    "Tested",
    "doubts_of",
    "limits_of",
    "p_values",
    "untested",
    "updates_to_decide",
    "verdict_of",
]

LIMITS = ("too-few", "small-gallery", "worst-candidate")
"""The flags that `limits_of` gives."""


@dataclass(frozen=True)
class Tested:
    """A cell before its verdict.

    Attributes:
        numbers: of the cell.
        evidence: what decides about its images.
        leaks_by: the ways in which they leak, tested together with all other cells.
    """

    numbers: Numbers
    evidence: Evidence
    leaks_by: tuple[str, ...]

    @property
    def broken(self) -> bool:
        """True if too few guesses are finite to judge the attack by them."""
        return self.numbers.images == 0 or self.numbers.nonfinite > 0.5


def p_values(evidence: Evidence) -> dict[str, float]:
    """Return, for each way in which images may leak, the probability of so much by guesses without the update.

    Recognition counts only where the guesses also do better than each baseline on the images that both tried.
    """
    found = {}
    if evidence.read is not None:
        found[READ] = evidence.read.p_value
    if evidence.recognized is not None:
        found[RECOGNIZED] = evidence.recognized.p_value if evidence.paired else 1.0
    return found


def untested(cell: Tested, control: Tested | None, tolerance: float) -> str | None:
    """Return the flag that says why a failure in this cell tells nothing of the defense, or ``None``.

    ``control-failed``: the attack does not work without the defense either. ``control-low``: there, it is not shown to
    get more images than the tolerance, so that getting fewer here says nothing. ``control-weak``: there, it only
    recognizes the images of a client, and here, the server has no update of one client but a sum of several, which is
    harder to read.

    Args:
        cell: of the defense.
        control: of the same attack without a defense.
        tolerance: share of images.
    """
    if control is None or not control.leaks_by:
        return "control-failed"
    tallies = [tally for tally in (control.evidence.read, control.evidence.recognized) if tally is not None]
    if not any(tally.interval[0] - tally.known_floor > tolerance for tally in tallies):
        return "control-low"
    own, bare = cell.numbers, control.numbers
    # Of several clients; a few images more may be due to updates that are zero without the defense, and left out.
    a_sum = own.images * bare.clusters >= 2 * bare.images * own.clusters
    return "control-weak" if a_sum and READ not in control.leaks_by else None


def limits_of(evidence: Evidence, tolerance: float) -> list[str]:
    """Return the flags that say why the tolerance is not shown to be kept; empty where it is.

    ``too-few``: the upper end of the 95 % interval of the images read, or of those recognized above what is explained,
    reaches the tolerance. ``small-gallery``: there are not enough images to recognize one among. ``worst-candidate``:
    only by the candidates that the attack did not choose is the tolerance passed. Guesses that recognize nearly all
    images without the update leave nothing to test, which is a gallery too small for them.
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
    """Return one of the three outcomes.

    Args:
        leaks_by: the ways in which images or patients leak.
        qualified: whether the failure of the attack would say something.
        limits: from `limits_of`.
    """
    if leaks_by:
        return LEAKS
    return NO_LEAK if qualified and not limits else INCONCLUSIVE


def doubts_of(rows: Sequence[Finding], cell: Tested, reason: str | None) -> list[str]:
    """Return the flags of a cell.

    Args:
        rows: of the cell.
        cell: its numbers, and the ways in which it leaks.
        reason: why its failure says nothing of the defense, from `untested` or from what is disclosed.
    """
    own, failed = scored(rows), not cell.leaks_by
    raised = {
        "control-failed": reason == "control-failed",
        "control-low": failed and reason == "control-low",
        "control-weak": failed and reason == "control-weak",
        "naive-attack": failed and reason == "naive-attack",
        "undisclosed": failed and reason == "undisclosed",
        "misdisclosed": failed and reason == "misdisclosed",
        "prior-only": bool(own) and failed and not _beats_baselines(own, cell.numbers),
        "zero-gradient": len(own) < len(rows),
        "not-converged": _share(own, "not-converged") > 0.5,
        "nonfinite": cell.numbers.nonfinite > 0,
        "wrong-derivative": _share(own, "wrong-derivative") > 0,
    }
    return [flag for flag, up in raised.items() if up]


def updates_to_decide(evidence: Evidence, tolerance: float) -> int | None:
    """Return how many updates would decide about images if all rates stayed as they are; ``None``: no number would."""
    tallies = [tally for tally in (evidence.read, evidence.recognized) if tally is not None]
    return updates_needed(tallies or [Tally((False,), (0,))], tolerance)


def _share(rows: Sequence[Finding], flag: str) -> float:
    return sum(flag in row.flags for row in rows) / len(rows) if rows else 0.0


def _beats_baselines(rows: Sequence[Finding], numbers: Numbers) -> bool:
    """Return whether the mean SSIM is above every baseline's, image by image where the baseline has the image."""
    gains = [
        [float(row.scores["ssim"] or 0) - float(row.scores[name] or 0) for row in rows]
        for name in ("mean_image_ssim", "nearest_ssim")
        if all(row.scores.get(name) is not None for row in rows)
    ]
    if (random := numbers.ssim_random_update) is not None:
        gains.append([float(row.scores["ssim"] or 0) - random for row in rows])
    return all(_above_zero(gain, rows) for gain in gains)


def _above_zero(gains: list[float], rows: Sequence[Finding]) -> bool:
    low, _ = mean_interval(gains, clusters=clusters_of(rows))
    return min(gains) > 0 if low is None else low > 0
