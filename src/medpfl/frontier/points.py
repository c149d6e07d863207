"""A setting as a point of the frontier: what its strongest attack reads, and what its model is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medpfl.core.rounds import Round
from medpfl.core.verdicts import INCONCLUSIVE, LEAKS, NO_LEAK, UNDEFENDED
from medpfl.judging.types import Cell, Rate, Union
from medpfl.metrics.rates import mean_interval
from medpfl.reporting.bounds import placed

__all__ = ["Point", "points_of"]

Point = dict[str, Any]
"""A setting as JSON holds it, see `points_of`."""


def points_of(
    audits: Mapping[str, Sequence[Cell]], trainings: Mapping[str, Sequence[Sequence[Round]]], judged: str
) -> list[Point]:
    """A point for each setting; the undefended one is the first.

    Of each metric of leakage a point has the value of the strongest attack with its interval (``asr``, ``asr_low``,
    ``asr_high``), which attack that is, the upper end of what all attacks get together (``asr_end``; by update, as of
    `medpfl.judging.evidence.Tally.excess`; of the mean SSIM, that of the strongest), and the lower end of the strongest
    undefended attack (``asr_control``). ``recognized`` is what all attacks together identify above what guesses without
    the update explain. ``verdict`` and ``updates_needed`` are those of all attacks together, ``label_verdict`` the
    worst of theirs on labels, ``None`` where no attack infers them. ``bound`` is that of a differentially private
    defense over the rounds that the attack sees (`medpfl.auditing.bounds`), else ``None``. ``accuracy`` is balanced
    accuracy, the mean over seeds; with several seeds its interval is Student's over them, else that of the images.
    ``loss`` is what the undefended model has more.

    Args:
        audits: by setting, the cells of the audit that it is in, the undefended ones too.
        trainings: by setting, the rounds of its training under each seed; empty where it diverged.
        judged: the set of images whose scores count.
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
    union, bare = (part[0].union if part else Union() for part in (own, control))  # none where training diverged
    labels = {cell.label_verdict for cell in own}
    point: Point = {
        "images": max((cell.images for cell in own), default=0),
        "verdict": union.verdict,
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
    """Return what was identified above the floor; the upper end is by update, and above the known floor."""
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
        # An attack of which the end is not known may have read anything.
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
    spent = [row.epsilon for row in last if row.epsilon is not None]
    return {
        "accuracy": sum(values) / len(values),
        "accuracy_low": None if low is None else max(low, 0.0),
        "accuracy_high": None if high is None else min(high, 1.0),
        "auroc": sum(areas) / len(areas) if len(areas) == len(scores) else None,
        "accuracies": values,
        "interval": "seeds" if len(values) > 1 else "images",
        "epsilon": max(spent) if len(spent) == len(last) else None,
        "delta": last[0].delta,
        "gap": None,
    }
