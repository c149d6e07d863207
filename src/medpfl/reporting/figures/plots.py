"""Figures for a notebook or a script, drawn with matplotlib's own style, and returned with their axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from medpfl.core.experiments.settings import Json
from medpfl.core.rounds import Round
from medpfl.core.verdicts import INCONCLUSIVE, LEAKS, NO_LEAK
from medpfl.judging.types import Cell, Rate
from medpfl.reporting.words import attacker, label, similarity

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Plot", "caption_of", "plot_cells", "plot_pictures", "plot_points", "plot_rounds"]

Plot = tuple["Figure", "Axes"]
"""A matplotlib figure and its axes."""

_COLORS = {LEAKS: "tab:red", NO_LEAK: "tab:blue", INCONCLUSIVE: "tab:orange"}
_RATES = {"asr": ("reconstructed", "o"), "identified": ("re-identified", "s")}
_MEASURES = {"asr": "reconstructed (ASR)", "identified": "re-identified", "ssim": "mean SSIM"}


def plot_cells(cells: Sequence[Cell]) -> Plot:
    """Draw the rates of each attack and defense with their 95 % intervals, in the color of the verdict."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 1.2 + 0.45 * len(cells)), layout="constrained")
    for place, cell in enumerate(cells):
        for shift, (score, (_, mark)) in zip((-0.12, 0.12), _RATES.items(), strict=True):
            rate = cell.rate(score)
            if rate.value is not None:
                color = _COLORS[cell.verdict]
                axes.errorbar(rate.value, place + shift, xerr=_errors(rate), fmt=mark, color=color, capsize=2)
    axes.set_yticks(range(len(cells)), [f"{attacker(cell)}\n{label(cell.defense)}" for cell in cells], fontsize=8)
    axes.invert_yaxis()
    axes.set(xlim=(-0.03, 1.03), xlabel="share of images, with 95 % interval")
    for text, mark in _RATES.values():
        axes.plot([], [], mark, color="gray", label=text)
    for verdict in dict.fromkeys(cell.verdict for cell in cells):
        axes.plot([], [], "-", color=_COLORS[verdict], label=verdict)
    figure.legend(loc="outside upper right", ncols=5, fontsize=8, frameon=False)
    return figure, axes


def _errors(rate: Rate) -> list[list[float]] | None:
    """Return the interval as distances below and above, in the form of ``errorbar``."""
    if rate.value is None or rate.low is None or rate.high is None:
        return None
    return [[max(0.0, rate.value - rate.low)], [max(0.0, rate.high - rate.value)]]


def plot_points(points: Sequence[Json], recommended: str | None, measure: str = "asr") -> Plot:
    """Draw leakage against balanced accuracy, a mark for each setting, and name the recommended one.

    Args:
        points: the frontier's points.
        recommended: spec of the recommended setting; ``None`` if there is none.
        measure: ``"asr"``, ``"identified"`` or ``"ssim"``.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for point in (one for one in points if one["accuracy"] is not None and one[measure] is not None):
        rates = [Rate(point[name], point[f"{name}_low"], point[f"{name}_high"]) for name in ("accuracy", measure)]
        own = point["defense"] == recommended
        x, y = (rate.value or 0.0 for rate in rates)
        axes.errorbar(
            x, y, xerr=_errors(rates[0]), yerr=_errors(rates[1]), fmt="*" if own else "o", markersize=12 if own else 6,
            color=_COLORS[point["verdict"]], alpha=1.0 if own else 0.7, elinewidth=0.8, capsize=2,
        )  # fmt: skip
        text = f"recommended: {label(point['defense'])}" if own else label(point["defense"])
        axes.annotate(text, (x, y), (4, 4), textcoords="offset points", fontsize=7)
    axes.set(xlabel="balanced accuracy", ylabel=f"{_MEASURES[measure]}, strongest attack")
    return figure, axes


def plot_rounds(rows: Sequence[Round], name: str) -> Plot:
    """Draw balanced accuracy with its interval, accuracy and AUROC on one of the image sets, by round."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    numbers, scores = [row.round for row in rows], [row.scores[name] for row in rows]

    def values(key: str) -> list[float]:
        return [float("nan") if (value := one[key]) is None else value for one in scores]

    low, high = values("balanced_accuracy_low"), values("balanced_accuracy_high")
    axes.fill_between(numbers, low, high, alpha=0.15, linewidth=0, label="95 % interval")
    for key, text in {"balanced_accuracy": "balanced accuracy", "accuracy": "accuracy", "auroc": "AUROC"}.items():
        axes.plot(numbers, values(key), marker=".", label=text)
    axes.set(ylim=(0, 1.02), xlabel="round", ylabel=f"score on the {name} images")
    axes.legend(fontsize=8)
    return figure, axes


def plot_pictures(pairs: Sequence[tuple[np.ndarray, np.ndarray, str]]) -> tuple[Figure, np.ndarray]:
    """Draw target images above their guesses, with a caption for each; return the figure and the axes (2, N).

    Args:
        pairs: target image and guess, uint8 (H, W) or (H, W, 3), and a caption.
    """
    import matplotlib.pyplot as plt

    size = (1.5 * len(pairs) + 0.6, 3.8)
    figure, axes = plt.subplots(2, len(pairs), figsize=size, squeeze=False, layout="constrained")
    for column, (truth, guess, caption) in zip(axes.T, pairs, strict=True):
        for place, image in zip(column, (truth, guess), strict=True):
            place.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            place.set(xticks=[], yticks=[])
        column[0].set_title(caption, fontsize=7)
    for place, text in zip(axes[:, 0], ("target image", "reconstruction"), strict=True):
        place.set_ylabel(text, fontsize=8)
    return figure, axes


def caption_of(attack: str, defense: str, ssim: float | None) -> str:
    """Return the caption of a picture."""
    return f"{label(attack)}\n{label(defense)}\nSSIM {similarity(ssim)}"
