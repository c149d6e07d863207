"""``python -m benchmarks recipes``: compare DLG, iDLG, CPL and the analytic attack with the textbook loop.

Our attacks take all victims of a set in one stack. The loop takes one at a time, and stops at the same tolerance.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch

from benchmarks.rows import now
from benchmarks.scenes import Scene, available, scene
from benchmarks.textbook import textbook
from medpfl.attacks import CPL, DLG, RGAP, iDLG
from medpfl.attacks.matching.labels import LastLayer
from medpfl.attacks.matching.solved_start import Analytic
from medpfl.attacks.matching.starts import Normal, Patterned
from medpfl.defenses import LaplaceNoise
from medpfl.metrics import ssim
from medpfl.metrics.rates import interval

RECIPES = {
    "DLG": ("dlg", DLG(), Normal(), True),
    "iDLG": ("idlg", iDLG(), Normal(), False),
    "CPL": ("cpl", CPL(), Patterned(), False),
    "RGAP/dlg": ("dlg", RGAP(), None, False),
    "RGAP/idlg": ("idlg", RGAP(), None, False),
    "RGAP+DLG": ("dlg", DLG(start=Analytic()), None, True),
    "RGAP+iDLG": ("idlg", iDLG(start=Analytic()), None, False),
}
"""By row: the network, our attack, the textbook loop's initial image, and True if the loop optimizes labels.

A row without an initial image (``None``) has no counterpart in the textbook loop.
"""


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks recipes", description=__doc__)
    parser.add_argument("--full", action="store_true", help="48 images per set and 3 draws of the weights")
    parser.add_argument("--images", type=int, help="images per set and draw (16)")
    parser.add_argument("--textbook", type=int, default=2, help="images for the textbook loop too (%(default)s)")
    parser.add_argument("--draws", type=int, help="draws of the weights (1)")
    parser.add_argument("--stop", type=float, help="relative distance to stop at (the recipe's tolerance)")
    parser.add_argument("--noise", type=float, default=0.0, help="scale of the Laplace noise on updates (no noise)")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    chosen = parser.parse_args(arguments)
    chosen.images = chosen.images or (48 if chosen.full else 16)
    chosen.draws = chosen.draws or (3 if chosen.full else 1)
    return chosen


def lines(chosen: argparse.Namespace, go_on: Callable[[], bool] = lambda: True) -> Iterator[str]:
    """Yield the table's lines. Once `go_on` returns False, the remaining rows are named and skipped."""
    yield (
        "set         recipe     images  zero  ASR [95 %]          SSIM   evals  s/image  ms/eval"
        " | textbook: ASR  evals  ms/eval  ratio"
    )
    for name in available():
        for recipe in chosen.recipes:
            yield line(name, recipe, chosen) if go_on() else f"{name:<12}{recipe:<11}not run: time is up"


def line(name: str, recipe: str, chosen: argparse.Namespace) -> str:
    """Return one row: all draws of a set under one attack."""
    variant, attack, start, joint = RECIPES[recipe]
    if chosen.stop and not isinstance(attack, RGAP):  # RGAP's tolerance belongs to its least squares
        attack = replace(attack, tolerance=chosen.stop)
    scores, evaluations, seconds, zero = [], [], 0.0, 0
    theirs, ratios, their_evaluations, their_seconds = [], [], [], 0.0
    for draw in range(chosen.draws):
        noise = LaplaceNoise(chosen.noise) if chosen.noise else None
        case = scene(name, variant, chosen.images, seed=100 + draw, defense=noise)
        began = now()
        guess = attack(case.seen, torch.Generator().manual_seed(draw))
        spent = now() - began
        ours = ssim(guess.guesses[:, 0], case.truths)
        scores.append(ours)
        evaluations.append(guess.evaluations.double())
        seconds, zero = seconds + spent, zero + case.zero
        for v in range(min(chosen.textbook, len(case.truths)) if start else 0):
            score, count, took = loop(case, v, start, joint, attack.tolerance)
            theirs.append(score)
            their_evaluations.append(count)
            their_seconds += took
            if score >= 0.9 and ours[v] >= 0.9:
                ratios.append(took / (spent / len(case.truths)))
    score, evals = torch.cat(scores), torch.cat(evaluations)
    hits = int((score >= 0.9).sum())
    low, high = interval(hits, len(score))
    ratio = f"{sum(ratios) / len(ratios):6.1f}" if ratios else "     -"
    other = f"{sum(s >= 0.9 for s in theirs) / len(theirs):.2f}" if theirs else "-"
    return (
        f"{name:<12}{recipe:<11}{len(score):>6}{zero:>6}  {hits / len(score):.2f} [{low:.2f}, {high:.2f}]  "
        f"{score.mean():>8.3f}{evals.mean():>8.0f}{seconds / len(score):>9.2f}{1e3 * seconds / evals.sum():>9.2f} | "
        f"{other:>12}{sum(their_evaluations) / max(len(their_evaluations), 1):>7.0f}"
        f"{1e3 * their_seconds / max(sum(their_evaluations), 1):>9.2f} {ratio}"
    )


def loop(case: Scene, v: int, start: Normal | Patterned, joint: bool, stop: float) -> tuple[float, int, float]:
    """Return SSIM, evaluations and seconds of the textbook loop on one victim."""
    sent = [t[v] for t in case.seen.views[0].update.tensors.values()]
    first = start((1, *case.truths.shape[1:]), torch.Generator().manual_seed(v))
    labels = None if joint else LastLayer().infer(case.seen, first)
    label = None if labels is None else labels[v]
    began = now()
    outcome = textbook(case.network, sent, first, label, case.classes, stop)
    took = now() - began
    return float(ssim(outcome.guess[None].nan_to_num(0.0), case.truths[v : v + 1])), outcome.evaluations, took
