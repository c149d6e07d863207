"""The frontier figure: the strongest attack's score against the model's balanced accuracy, for each setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import hypot
from typing import TYPE_CHECKING, Any

from medpfl.core.experiments.settings import Json
from medpfl.reporting.figures.svg import COLORS, inline
from medpfl.reporting.words import between, label, number, percent, percents, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["NAMES", "family", "frontier_figure"]

NAMES = {
    "asr": "images reconstructed (ASR)",
    "ssim": "mean SSIM",
    "identified": "images re-identified",
    "recognized": "images re-identified beyond chance",
}
Points = Sequence[Json]
_SIZE = (9.2, 5.4)  # inches
_NEAR = (0.02, 0.05)
_LOOKS = tuple(zip(("safe", "doubt", "muted", "ink"), "osD^", strict=True))  # not the color of a leak


def family(spec: str) -> str:
    """Return the names of a defense's parts, without their settings."""
    return " | ".join(part.partition("(")[0].strip() for part in label(spec).split(" | "))


def frontier_figure(points: Points, chosen: Json, metric: str) -> str:
    """Draw a leakage metric against balanced accuracy, both with intervals.

    Filled marks are Pareto-optimal; a wide stepped line joins them. They, the undefended setting and the recommended
    one bear their numbers. A thin line joins one defense's strengths. A ring marks the recommended setting, a dashed
    line the limit.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE)
    axes = figure.add_axes((0.07, 0.09, 0.91, 0.82))
    known = [(i, p) for i, p in enumerate(points) if p[metric] is not None and p["accuracy"] is not None]
    looks = {
        name: _LOOKS[i % len(_LOOKS)] for i, name in enumerate(dict.fromkeys(family(p["defense"]) for p in points))
    }
    _steps(axes, [p for _, p in known if metric in p["unbeaten"]], metric)
    for name, (color, _) in looks.items():
        own = [p for _, p in known if family(p["defense"]) == name]
        axes.plot(*_places(own, metric), color=COLORS[color], linewidth=0.7, alpha=0.6, zorder=1.5)
    tips = {f"setting-{i}": _tip(i, point, metric) for i, point in known}
    for i, point in known:
        _point(axes, point, metric, looks[family(point["defense"])], f"setting-{i}")
        if point["defense"] == chosen["defense"]:
            axes.plot(point["accuracy"], point[metric], "o", markersize=15, mfc="none", mec=COLORS["ink"], zorder=4)
    _numbers(
        axes,
        [(i, p) for i, p in known if not i or metric in p["unbeaten"] or p["defense"] == chosen["defense"]],
        metric,
    )
    for bound in (float(one.partition("<=")[2]) for one in chosen["limits"] if one.startswith(f"{metric}<=")):
        axes.axhline(bound, color=COLORS["leak"], linestyle="--", linewidth=1)
    _frame(axes, NAMES[metric])
    _legend(axes, looks)
    _name_chosen(axes, [p for _, p in known], chosen, metric)
    spoken = "; ".join(f"{label(p['defense'])}: {number(p[metric])} at {number(p['accuracy'])}" for _, p in known)
    return inline(figure, f"frontier-{metric}", f"{NAMES[metric]} against balanced accuracy: {spoken}", tips)


def _tip(place: int, point: Json, metric: str) -> str:
    """Return a point's values in words."""
    show, spread = (number, between) if metric == "ssim" else (percent, percents)
    ends = spread(point[f"{metric}_low"], point[f"{metric}_high"])
    accuracy = (
        f"balanced accuracy {percent(point['accuracy'])} ({percents(point['accuracy_low'], point['accuracy_high'])})"
    )
    return f"{place}: {label(point['defense'])}: {NAMES[metric]} {show(point[metric])} ({ends}), {accuracy}"


def _name_chosen(axes: Axes, points: Points, chosen: Json, metric: str) -> None:
    """Write the recommended setting's name beside its mark, where the fewest other marks are."""
    found = [point for point in points if point["defense"] == chosen["defense"]]
    if not found:
        return
    x, y = found[0]["accuracy"], found[0][metric]
    text = f"recommended: {shorten(label(found[0]['defense']), 48)}"
    place, width = axes.transData.transform, 5.2 * len(text)
    here, others = place((x, y)), [place((point["accuracy"], point[metric])) for point in points]
    box, scale = axes.get_window_extent(), axes.figure.dpi / 72

    def room(offset: tuple[float, float]) -> float:
        """Return the distance from the text's corners and center to the nearest mark, less what leaves the axes."""
        left, base = here[0] + scale * offset[0], here[1] + scale * offset[1]
        right = left + scale * width
        outside = max(0, box.x0 - left, right - box.x1, box.y0 - base, base - box.y1)
        near = min(hypot(mark[0] - a, mark[1] - base) for mark in others for a in (left, (left + right) / 2, right))
        return near - 20 * outside

    offsets = [(dx, dy) for dx in (24, -width / 2, -width - 24) for dy in (-60, -34, 34, 60, 90)]
    best = max(offsets, key=room)
    axes.annotate(
        text, (x, y), best, textcoords="offset points", fontsize=10, fontweight="bold", color=COLORS["ink"], zorder=7,
        parse_math=False, arrowprops={"arrowstyle": "-", "color": COLORS["ink"], "linewidth": 0.8, "shrinkB": 8},
    )  # fmt: skip


def _point(axes: Axes, point: Json, metric: str, look: tuple[str, str], gid: str) -> None:
    color, shape = COLORS[look[0]], look[1]
    x, y = point["accuracy"], point[metric]
    errors = {"ecolor": color, "elinewidth": 0.8, "alpha": 0.55, "fmt": "none", "zorder": 2}
    axes.errorbar(x, y, xerr=_ends(point, "accuracy"), yerr=_ends(point, metric), **errors)
    filled = color if metric in point["unbeaten"] else COLORS["paper"]
    above = 5.5 if metric in point["unbeaten"] else 5
    axes.plot(x, y, shape, markersize=7, mfc=filled, mec=color, mew=1.4, zorder=above, clip_on=False, gid=gid)


def _numbers(axes: Axes, known: Sequence[tuple[int, Json]], metric: str) -> None:
    """Write the points' numbers; points too close together share one label."""
    groups: list[tuple[float, float, list[int]]] = []
    for place, point in known:
        x, y = point["accuracy"], point[metric]
        near = [own for a, b, own in groups if abs(a - x) < _NEAR[0] and abs(b - y) < _NEAR[1]]
        if near:
            near[0].append(place)
        else:
            groups.append((x, y, [place]))
    style: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8.5, "color": COLORS["ink"], "zorder": 6}
    for x, y, places in groups:
        axes.annotate(", ".join(map(str, places)), (x, y), (6, 5), **style)


def _ends(point: Json, name: str) -> Any:
    """Return the interval's distances below and above the value, or ``None`` if an end is unknown."""
    low, high = point[f"{name}_low"], point[f"{name}_high"]
    return None if low is None or high is None else [[max(point[name] - low, 0)], [max(high - point[name], 0)]]


def _steps(axes: Axes, points: Points, metric: str) -> None:
    """Draw the Pareto front as steps, since nothing was measured between two points."""
    ordered = sorted(points, key=lambda p: (p["accuracy"], p[metric]))
    axes.step(*_places(ordered, metric), where="pre", color=COLORS["line"], linewidth=2.2, zorder=1)


def _places(points: Points, metric: str) -> list[Any]:
    return [[p["accuracy"] for p in points], [p[metric] for p in points]]


def _frame(axes: Axes, name: str) -> None:
    axes.margins(0.06)
    axes.set_ylim(min(-0.02, axes.get_ylim()[0]), 1.04)
    axes.tick_params(colors=COLORS["muted"], labelsize=9)
    axes.set_xlabel("balanced accuracy", color=COLORS["muted"], fontsize=9)
    axes.set_ylabel(name, color=COLORS["muted"], fontsize=9)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("bottom", "left"))
        spine.set_color(COLORS["line"])


def _legend(axes: Axes, looks: Mapping[str, tuple[str, str]]) -> None:
    from matplotlib.lines import Line2D

    made = [
        Line2D([], [], color=COLORS[color], marker=shape, linestyle="none", label=name)
        for name, (color, shape) in looks.items()
    ]
    axes.legend(
        handles=made, loc="lower left", bbox_to_anchor=(-0.01, 1), ncols=4, frameon=False, fontsize=8.5,
        labelcolor=COLORS["ink"], handletextpad=0.3, columnspacing=1.2,
    )  # fmt: skip
