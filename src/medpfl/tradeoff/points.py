"""Points of the frontier: each setting's leakage under the strongest attack, and its model's accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medpfl.core.rounds import Epsilons, Round
from medpfl.core.verdicts import INCONCLUSIVE, LEAKS, NO_LEAK, UNDEFENDED
from medpfl.judging.types import Cell, Rate, Union
from medpfl.metrics.rates import mean_interval
from medpfl.reporting.bounds import placed

__all__ = ["Point", "points_of"]

Point = dict[str, Any]
"""A setting's entry in ``frontier.json``, see `points_of`."""


def points_of(
    audits: Mapping[str, Sequence[Cell]], trainings: Mapping[str, Sequence[Sequence[Round]]], judged: str
) -> list[Point]:
    """Return a point for each setting, the undefended one first.

    A point holds, for each leakage metric (here ``asr``):

    - the strongest attack's value and interval: ``asr``, ``asr_low``, ``asr_high``;
    - that attack, and if it knows the defense: ``asr_attack``, ``asr_knows_defense``;
    - the upper end for all attacks together, counted by update (`medpfl.judging.evidence.Tally.excess`):
      ``asr_end``. For the mean SSIM, it is the largest upper end of any attack;
    - the lower end for the strongest undefended attack: ``asr_control``.

    Other entries:

    - ``recognized``: re-identification by all attacks together, above the floor of guesses without the update;
    - ``verdict``, ``updates``, ``updates_needed``: those of all attacks together; ``images_per_update``: images in one
      update, or in one sum of updates;
    - ``label_verdict``: the worst verdict on labels; ``None`` if no attack infers labels;
    - ``bound``: a differentially private defense's success bound over the rounds that the attack sees
      (`medpfl.auditing.privacy.bounds`), else ``None``;
    - ``accuracy``: balanced accuracy, the mean over seeds. Its interval is Student's over seeds if there are several,
      else the images';
    - ``loss``: the undefended model's accuracy minus this one's.

    Args:
        audits: for each setting, the cells of its audit, including the undefended ones.
        trainings: for each setting, the rounds of its training under each seed; empty if it diverged.
        judged: name of the image set whose scores count.
    """
    points = [
        {"defense": spec, **_leakage(spec, cells), **_accuracy(trainings[spec], judged)}
        for spec, cells in audits.items()
    ]
    best = points[0]["accuracy"]
    return [{**p, "loss": None if None in (best, p["accuracy"]) else best - p["accuracy"]} for p in points]


def _leakage(spec: str, cells: Sequence[Cell]) -> Point:
    own = [cell for cell in cells if cell.defense == spec]
    control = [cell for cell in cells if cell.defense == UNDEFENDED]
    union, bare = (part[0].union if part else Union() for part in (own, control))  # no cells if training diverged
    labels = {cell.label_verdict for cell in own}
    point: Point = {
        "images": max((cell.images for cell in own), default=0),
        "verdict": union.verdict,
        "updates": union.updates,
        "images_per_update": union.per_update,
        "updates_needed": union.updates_needed,
        "label_verdict": next((v for v in (LEAKS, INCONCLUSIVE, NO_LEAK) if v in labels), None),
    }
    for name in ("asr", "ssim", "identified"):
        point |= _strongest(own, name)
        point[f"{name}_control"] = _strongest(control, name)[f"{name}_low"]
    point |= {"asr_end": union.asr_excess, "identified_end": union.identified.high, **_recognized(union)}
    point["recognized_control"] = _recognized(bare)["recognized_low"]
    point["bound"] = next(iter(placed(own)), None)
    flags = dict.fromkeys([*union.flags, *(flag for cell in own for flag in cell.flags)])
    return {**point, "control_works": bare.verdict == LEAKS, "flags": list(flags)}


def _recognized(union: Union) -> Point:
    """Return the re-identification rate above the floor; its upper end counts updates and uses the exact floor."""
    rate, floor = union.identified, union.identified_floor or 0.0
    ends = {"recognized": rate.value, "recognized_low": rate.low, "recognized_high": rate.high}
    found = {name: None if end is None else max(end - floor, 0.0) for name, end in ends.items()}
    return {**found, "recognized_end": union.identified_excess, "recognized_attack": None}


def _strongest(cells: Sequence[Cell], name: str) -> Point:
    known = [cell for cell in cells if cell.rate(name).known]
    ends = [cell.rate(name).high for cell in cells]
    top = max(known, key=lambda cell: (cell.rate(name).value or 0.0, cell.rate(name).high or 0.0), default=None)
    best = Rate() if top is None else top.rate(name)
    return {
        name: best.value,
        f"{name}_low": best.low,
        f"{name}_high": best.high,
        f"{name}_attack": None if top is None else top.attack,
        f"{name}_knows_defense": None if top is None else top.knows_defense,
        # An attack with an unknown upper end may have succeeded on any image.
        f"{name}_end": max(end for end in ends if end is not None) if ends and None not in ends else None,
    }


def _accuracy(trainings: Sequence[Sequence[Round]], judged: str) -> Point:
    if not trainings:
        gap = "the training diverged"
        return dict.fromkeys(("accuracy", "accuracy_low", "accuracy_high", "auroc", "epsilon")) | {
            "accuracies": [], "interval": None, "delta": None, "gap": gap,
        }  # fmt: skip
    last = [rows[-1] for rows in trainings]
    scores = [row.scores[judged] for row in last]
    values = [score["balanced_accuracy"] or 0.0 for score in scores]
    areas = [score["auroc"] for score in scores if score["auroc"] is not None]
    low, high = (scores[0][f"balanced_accuracy_{end}"] for end in ("low", "high"))
    if len(values) > 1:
        low, high = mean_interval(values)
    return {
        "accuracy": sum(values) / len(values),
        "accuracy_low": None if low is None else max(low, 0.0),
        "accuracy_high": None if high is None else min(high, 1.0),
        "auroc": sum(areas) / len(areas) if len(areas) == len(scores) else None,
        "accuracies": values,
        "interval": "seeds" if len(values) > 1 else "images",
        "epsilon": _largest([row.epsilon for row in last]),
        "delta": last[0].delta,
        "gap": None,
    }


def _largest(spent: Sequence[Epsilons | None]) -> Epsilons | None:
    """Return the largest epsilon over the seeds for each privacy unit; ``None`` if one seed's is unknown."""
    found: dict[str, float] = {}
    for one in spent:
        if one is None:
            return None
        for unit, value in one:
            found[unit] = max(value, found.get(unit, 0.0))
    return tuple(found.items())
