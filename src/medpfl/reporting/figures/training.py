"""Figures over a training's rounds: the model's scores, and the data sent or privacy spent."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from medpfl.core.rounds import Round
from medpfl.reporting.figures.svg import COLORS, inline
from medpfl.reporting.words import number, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["canvas", "legend", "privacy_figure", "score_figure"]

_WIDTH, _BELOW, _HEIGHT, _ABOVE, _LINE = 4.6, 0.45, 2.16, 0.16, 0.18  # inches: the axes, and one legend line
_LINES = {
    "balanced_accuracy": ("balanced accuracy", "safe", "-"),
    "accuracy": ("accuracy", "muted", "--"),
    "auroc": ("AUROC", "doubt", "-."),
}


def score_figure(rows: Sequence[Round], name: str) -> str:
    """Draw balanced accuracy with its interval, accuracy and AUROC on one of the sets."""
    figure, axes = canvas()
    numbers, scores = [row.round for row in rows], [row.scores[name] for row in rows]
    low, high = ([_known(one[f"balanced_accuracy_{end}"]) for one in scores] for end in ("low", "high"))
    axes.fill_between(numbers, low, high, color=COLORS["safe"], alpha=0.15, linewidth=0)
    for key, (text, color, style) in _LINES.items():
        axes.plot(numbers, [_known(one[key]) for one in scores], style, color=COLORS[color], linewidth=1.6, label=text)
    axes.set(ylim=(0, 1.02))
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    legend(axes)
    last = scores[-1]
    spoken = f"balanced accuracy {percent(last['balanced_accuracy'])}, AUROC {number(last['auroc'])}"
    return inline(figure, "scores", f"Scores on the {name} images by round; after the last: {spoken}")


def _known(value: float | None) -> float:
    """Return the number, or NaN for ``None``, so that the line has a gap there."""
    return float("nan") if value is None else value


def privacy_figure(rows: Sequence[Round]) -> str:
    """Draw the global model's step by round, with epsilon if the defense states one, else with bytes sent so far."""
    figure, axes = canvas()
    numbers = [row.round for row in rows]
    if rows[-1].epsilon is not None:
        values = [_known(row.epsilon) for row in rows]
        text, spoken = "epsilon so far", f"epsilon so far, {number(rows[-1].epsilon, '.3g')} at the end"
    else:
        values = [total / 1e6 for total in accumulate(row.bytes_sent for row in rows)]
        text, spoken = "MB sent so far", f"megabytes sent so far, {number(values[-1], '.3g')} at the end"
    axes.plot(numbers, values, color=COLORS["leak"], linewidth=1.6, label=text)
    norms = [row.update_norm for row in rows[1:]]
    right = axes.twinx()
    right.plot(numbers[1:], norms, "--", color=COLORS["muted"], linewidth=1.3, label="norm of the step (right)")
    right.tick_params(colors=COLORS["muted"], labelsize=9)
    for side, spine in right.spines.items():
        spine.set_visible(side == "right")
        spine.set_color(COLORS["line"])
    axes.set_ylim(bottom=0)
    right.set_ylim(bottom=0)
    legend(axes, right)
    return inline(figure, "privacy", f"By round: {spoken}; and the norm of the global model's step")


def canvas(lines: int = 1) -> tuple[Figure, Axes]:
    """Return an empty figure over rounds, with room above for a legend with `lines` lines."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    height = _BELOW + _HEIGHT + _ABOVE + _LINE * lines
    figure = Figure(figsize=(_WIDTH, height))
    axes = figure.add_axes((0.13, _BELOW / height, 0.76, _HEIGHT / height))
    axes.tick_params(colors=COLORS["muted"], labelsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlabel("round", color=COLORS["muted"], fontsize=9)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("bottom", "left"))
        spine.set_color(COLORS["line"])
    return figure, axes


def legend(*all_axes: Axes, columns: int = 3) -> None:
    """Draw a legend with the lines' names above the axes."""
    lines = [line for axes in all_axes for line in axes.get_lines()]
    all_axes[-1].legend(
        lines,
        [str(line.get_label()) for line in lines],
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=columns,
        frameon=False,
        fontsize=8.5,
        labelcolor=COLORS["ink"],
        borderaxespad=0.2,
        handlelength=1.6,
        columnspacing=1.2,
    )
