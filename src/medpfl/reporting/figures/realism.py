"""The figure of the realism meter: a panel for each measure, and a lane for each case."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from medpfl.core.experiments.settings import Json
from medpfl.core.verdicts import INCONCLUSIVE, LEAKS, NO_LEAK
from medpfl.judging.types import READ, RECOGNIZED
from medpfl.reporting.figures.leak import STYLES
from medpfl.reporting.figures.svg import COLORS, inline
from medpfl.reporting.words import between, number, percent, percents, shorten, signed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["realism_figure"]

_WIDTH, _LANE, _FOOT, _HEAD = 9.2, 0.3, 0.36, 0.34  # inches
_LEFT, _PANEL, _GAP, _LONGEST = 0.33, 0.18, 0.045, 44  # shares of the width, and characters


class Panel(NamedTuple):
    """A measure: its key, its name, the way of leaking that it counts, and the key of the best guess's rate."""

    key: str
    name: str
    way: str = ""
    floor: str = ""


_PANELS = (
    Panel("asr", "reconstructed (ASR)", READ, "asr_floor"),
    Panel("ssim_gain", "SSIM above a guess"),
    Panel("identified", "re-identified", RECOGNIZED, "identified_floor"),
)


_NAMES = {"favorable": "the most favorable case", "together": "all assumptions dropped together"}


def realism_figure(cases: Sequence[Json], leaks: Sequence[Sequence[str]]) -> str:
    """Draw each measure in each case with its interval, over a band for the interval of the first case.

    Args:
        cases: entries of ``realism.csv``, the most favorable one first.
        leaks: the ways in which images leak in each case.
    """
    from matplotlib.figure import Figure

    height = _HEAD + _FOOT + _LANE * len(cases)
    figure, tips = Figure(figsize=(_WIDTH, height)), {}
    for place, panel in enumerate(_PANELS):
        left = _LEFT + place * (_PANEL + _GAP)
        axes = figure.add_axes((left, _FOOT / height, _PANEL, 1 - (_FOOT + _HEAD) / height))
        _frame(axes, panel, cases)
        for y, (case, ways) in enumerate(zip(cases, leaks, strict=True)):
            if _mark(axes, y, panel, case, ways):
                tips[f"{panel.key}-{y}"] = f"{_name(case)}: {_told(panel, case)}"
        if place == 0:
            for y, case in enumerate(cases):
                axes.text(
                    -_LEFT / _PANEL, y, shorten(_name(case), _LONGEST), va="center", fontsize=9, color=COLORS["ink"],
                    transform=axes.get_yaxis_transform(), parse_math=False,
                )  # fmt: skip
    spoken = "; ".join(f"{_name(case)}: {', '.join(_told(panel, case) for panel in _PANELS)}" for case in cases)
    return inline(figure, "realism", f"By case, with 95 % intervals: {spoken}", tips)


def _name(case: Json) -> str:
    return _NAMES.get(str(case["case"]), str(case["text"]))


def _told(panel: Panel, case: Json) -> str:
    value, low, high = (case[f"{panel.key}{end}"] for end in ("", "_low", "_high"))
    if panel.way:
        return f"{panel.name} {percent(value)} ({percents(low, high)})"
    return f"{panel.name} {signed(value, number)} ({between(low, high)})"


def _frame(axes: Axes, panel: Panel, cases: Sequence[Json]) -> None:
    ends = [case[f"{panel.key}{end}"] for case in cases for end in ("", "_low", "_high")]
    low, high = min([0.0, *(end for end in ends if end is not None)]), 1.0
    axes.set(xlim=(low, high), ylim=(len(cases) - 0.5, -0.5), yticks=[])
    axes.tick_params(colors=COLORS["muted"], labelsize=9)
    axes.set_title(panel.name, fontsize=9.5, fontweight="bold", color=COLORS["ink"], loc="left")
    if panel.way:
        axes.set_xticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(COLORS["line"])
    for y in range(len(cases)):
        axes.plot([low, high], [y, y], color=COLORS["line"], linewidth=0.8, zorder=0)
    first = cases[0]
    if first[f"{panel.key}_low"] is not None:
        axes.axvspan(
            first[f"{panel.key}_low"], first[f"{panel.key}_high"], color=COLORS["muted"], alpha=0.14, linewidth=0
        )
    if not panel.way:
        axes.axvline(0, color=COLORS["ink"], linewidth=1)


def _mark(axes: Axes, y: int, panel: Panel, case: Json, ways: Sequence[str]) -> bool:
    """Draw a measure, and return True if it is known."""
    value, low, high = (case[f"{panel.key}{end}"] for end in ("", "_low", "_high"))
    verdict = case["verdict"]
    state = LEAKS if panel.way in ways else NO_LEAK if verdict == NO_LEAK else INCONCLUSIVE
    color, marker, filled = STYLES[state] if panel.way else ("ink", "o", False)
    if panel.floor and case[panel.floor] is not None:
        axes.plot([case[panel.floor]] * 2, [y - 0.3, y + 0.3], color=COLORS["ink"], linewidth=1.6, clip_on=False)
    if value is None:
        return False
    style = {"color": COLORS[color], "solid_capstyle": "butt", "clip_on": False}
    if low is not None and high is not None:
        axes.plot([low, high], [y, y], linewidth=2.4, **style)
    face = COLORS[color if filled else "paper"]
    gid = f"{panel.key}-{y}"
    axes.plot([value], [y], marker, markersize=6.5, markerfacecolor=face, markeredgewidth=1.5, gid=gid, **style)
    return True
