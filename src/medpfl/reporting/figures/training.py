"""Figures over a training's rounds: the model's scores, the data sent or privacy spent, and the model's step."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import isnan
from typing import TYPE_CHECKING

from medpfl.core.rounds import Round
from medpfl.reporting.figures.svg import COLORS, inline
from medpfl.reporting.words import epsilons, number, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["canvas", "legend", "marks", "privacy_figure", "score_figure", "step_figure"]

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
    tips = marks(
        axes,
        numbers,
        [_known(one["balanced_accuracy"]) for one in scores],
        "safe",
        [
            f"round {row.round}: balanced accuracy {percent(one['balanced_accuracy'])}, "
            f"accuracy {percent(one['accuracy'])}, AUROC {number(one['auroc'])}"
            for row, one in zip(rows, scores, strict=True)
        ],
    )
    axes.set(ylim=(0, 1.02))
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    legend(axes)
    last = scores[-1]
    spoken = f"balanced accuracy {percent(last['balanced_accuracy'])}, AUROC {number(last['auroc'])}"
    return inline(figure, "scores", f"Scores on the {name} images by round; after the last: {spoken}", tips)


def marks(axes: Axes, xs: Sequence[float], ys: Sequence[float], color: str, texts: Sequence[str]) -> dict[str, str]:
    """Draw a mark at each known point of a line, at most 60, and return their texts for `inline`."""
    tips: dict[str, str] = {}
    known = [(x, y, text) for x, y, text in zip(xs, ys, texts, strict=True) if not isnan(y)]
    for x, y, text in known[:: len(known) // 61 + 1]:
        gid = f"point-{len(axes.get_lines())}"
        axes.plot([x], [y], "o", markersize=5, color=COLORS[color], gid=gid, label=f"_{gid}", clip_on=False)
        tips[gid] = text
    return tips


def _known(value: float | None) -> float:
    """Return the number, or NaN for ``None``, so that the line has a gap there."""
    return float("nan") if value is None else value


def privacy_figure(rows: Sequence[Round]) -> str:
    """Draw epsilon by round if the defense states one, else the bytes sent so far."""
    figure, axes = canvas()
    numbers = [row.round for row in rows]
    lines: dict[str, list[float]] = {}
    if rows[-1].epsilon is not None:
        for unit, _ in rows[-1].epsilon:
            name = f"epsilon so far ({unit})" if unit else "epsilon so far"
            lines[name] = [_known(dict(row.epsilon or ()).get(unit)) for row in rows]
        spoken = f"epsilon so far, {epsilons(rows[-1].epsilon)} at the end"
    else:
        lines["MB sent so far"] = [total / 1e6 for total in accumulate(row.bytes_sent for row in rows)]
        spoken = f"megabytes sent so far, {number(lines['MB sent so far'][-1], '.3g')} at the end"
    tips: dict[str, str] = {}
    for (name, values), color in zip(lines.items(), ("leak", "safe", "doubt"), strict=False):
        axes.plot(numbers, values, color=COLORS[color], linewidth=1.6, label=name)
        texts = [f"round {n}: {number(value, '.3g')} {_of(name)}" for n, value in zip(numbers, values, strict=True)]
        tips |= marks(axes, numbers, values, color, texts)
    axes.set_ylim(bottom=0)
    legend(axes)
    return inline(figure, "privacy", f"By round: {spoken}", tips)


def _of(line: str) -> str:
    """Return a line's unit of measurement.

    >>> _of("MB sent so far"), _of("epsilon so far (image)")
    ('MB', 'epsilon (image)')
    """
    return line.replace(" sent", "").replace(" so far", "")


def step_figure(rows: Sequence[Round]) -> str:
    """Draw the norm of the global model's step by round."""
    figure, axes = canvas()
    numbers, norms = [row.round for row in rows[1:]], [_known(row.update_norm) for row in rows[1:]]
    axes.plot(numbers, norms, color=COLORS["muted"], linewidth=1.6, label="norm of the step")
    axes.set_ylim(bottom=0)
    legend(axes)
    texts = [f"round {n}: norm {number(norm, '.3g')}" for n, norm in zip(numbers, norms, strict=True)]
    return inline(
        figure, "step", "Norm of the global model's step by round", marks(axes, numbers, norms, "muted", texts)
    )


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
    lines = [line for axes in all_axes for line in axes.get_lines() if not str(line.get_label()).startswith("_")]
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
