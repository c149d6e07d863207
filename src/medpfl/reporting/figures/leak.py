"""The two figures of a report: each attack's rates, and the SSIM of its guesses.

Both have a lane for each attack under a heading for each defense. The label stands above the mark, so that long specs
have the full width, even on a phone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from medpfl.core.messages import counted
from medpfl.core.verdicts import INCONCLUSIVE, LEAKS, NO_LEAK
from medpfl.judging.types import READ, RECOGNIZED, Cell
from medpfl.reporting.figures.selection import cell_rows
from medpfl.reporting.figures.svg import COLORS, inline
from medpfl.reporting.phrases import Cells
from medpfl.reporting.tables import Whole, with_unions
from medpfl.reporting.words import attacker, known, label, percent, percents, shorten, similarity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from medpfl.core.types import Finding

__all__ = ["leak_figure", "similarity_figure"]

WIDTH, LANE, FOOT = 4.6, 0.42, 0.5  # inches
GAP = 0.36  # between the two marks of a lane, in lanes
STYLES = {LEAKS: ("leak", "^", True), NO_LEAK: ("safe", "o", False), INCONCLUSIVE: ("doubt", "d", False)}


@dataclass(frozen=True)
class Lane:
    """One line in a figure: a cell, or a defense's heading."""

    y: float
    text: str
    cell: Cell | None = None


def leak_figure(summary: Cells) -> str:
    """Draw the reconstruction and re-identification rates, with intervals and the best guess without the update.

    A lane's upper mark is the reconstruction rate, its lower, smaller mark the re-identification rate. A mark has the
    color of a leak only if its own rate is a leak.
    """
    figure, axes, lanes = _canvas(with_unions(summary), (0.0, 1.0), 1 + GAP)
    tips: dict[str, str] = {}
    for place, lane in enumerate(lanes):
        if lane.cell is not None:
            told = lane.cell.identified.value
            recognized = f", re-id. {percent(told)}" if known(told) else ""
            _label(axes, lane, f"ASR {percent(lane.cell.asr.value)}{recognized}")
            for way, y in ((READ, lane.y), (RECOGNIZED, lane.y - GAP)):
                if _rate(axes, y, lane.cell, way, f"{way}-{place}"):
                    tips[f"{way}-{place}"] = _tip(lane.cell, way)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    axes.set_xlabel("share of images", color=COLORS["muted"], fontsize=9)
    return inline(
        figure,
        "leak",
        "Share of images reconstructed and re-identified, with 95 % intervals: " + _spoken(summary),
        tips,
    )


def _tip(cell: Cell, way: str) -> str:
    """Return a mark's values in words."""
    rate, name = (cell.asr, "reconstructed") if way == READ else (cell.identified, "re-identified")
    ends = percents(rate.low, rate.high, cell.union.tolerance)
    interval = f" (95 % interval {ends})" if rate.ends is not None else ""
    without = max((one for one in _without(cell, way) if one is not None), default=None)
    floor = "" if without is None else f"; {percent(without)} without the update"
    return f"{attacker(cell)}, {label(cell.defense)}: {percent(rate.value)} {name}{interval}{floor}"


def similarity_figure(summary: Cells, rows: Sequence[Finding]) -> str:
    """Draw the SSIM of each guess as a tick."""
    values = [[row.scores["ssim"] or 0.0 for row in cell_rows(cell, rows)] for cell in _in_lanes(summary)]
    lowest = min([0.0, *(v[0] for v in values if v)])
    figure, axes, lanes = _canvas(summary, (lowest, 1.0))
    drawn, tips = iter(values), {}
    for place, lane in enumerate(lanes):
        if lane.cell is not None:
            own = next(drawn)
            _label(axes, lane, f"mean {similarity(lane.cell.ssim.value)}")
            _strip(axes, lane.y, lane.cell, own, f"guesses-{place}")
            if own:
                tips[f"guesses-{place}"] = (
                    f"{attacker(lane.cell)}, {label(lane.cell.defense)}: SSIM of {counted(len(own), 'image')} "
                    f"from {similarity(min(own))} to {similarity(max(own))}, mean {similarity(lane.cell.ssim.value)}"
                )
    axes.set_xticks([0, 0.25, 0.5, 0.75, 0.9], ["0", "0.25", "0.5", "0.75", "0.9"])
    axes.set_xlabel("SSIM of each guess", color=COLORS["muted"], fontsize=9)
    return inline(figure, "ssim", "SSIM between guess and target for every image, by defense and attack", tips)


def _in_lanes(summary: Cells) -> list[Cell]:
    order = list(dict.fromkeys(cell.defense for cell in summary))
    return sorted(summary, key=lambda cell: order.index(cell.defense))


def _lanes(summary: Cells, height: float) -> list[Lane]:
    lanes: list[Lane] = []
    y, defense = 0.0, None
    for cell in _in_lanes(summary):
        if cell.defense != defense:
            defense = cell.defense
            y -= height - 0.05 if lanes else 0.3
            lanes.append(Lane(y, label(defense)))
            y -= 0.1
        y -= 1 if lanes[-1].cell is None else height
        lanes.append(Lane(y, attacker(cell), cell))
    return lanes


def _canvas(summary: Cells, limits: tuple[float, float], lane_height: float = 1.0) -> tuple[Figure, Axes, list[Lane]]:
    from matplotlib.figure import Figure

    lanes = _lanes(summary, lane_height)
    bottom = lanes[-1].y - (lane_height - 1) - 0.35
    height = -bottom * LANE + FOOT
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_axes((0.045, FOOT / height, 0.91, 1 - FOOT / height))
    axes.set(xlim=limits, ylim=(bottom, 0), yticks=[])
    axes.tick_params(colors=COLORS["muted"], labelsize=9)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(COLORS["line"])
    for lane in lanes:
        if lane.cell is None:
            _text(axes, 0, lane.y, shorten(lane.text, 52), fontweight="bold", fontsize=9)
        else:
            axes.plot(limits, [lane.y] * 2, color=COLORS["line"], linewidth=0.8, zorder=0)
    return figure, axes, lanes


def _text(axes: Axes, x: float, y: float, text: str, **style: object) -> None:
    # A "$" in a spec is a dollar sign, not TeX.
    place = {"transform": axes.get_yaxis_transform(), "va": "center", "parse_math": False}
    axes.text(x, y, text, **{"color": COLORS["ink"], "fontsize": 9, **place, **style})


def _label(axes: Axes, lane: Lane, value: str) -> None:
    _text(axes, 0, lane.y + 0.42, shorten(lane.text, 38))
    _text(axes, 1, lane.y + 0.42, value, ha="right", color=COLORS["muted"])


def _style(cell: Cell, way: str) -> tuple[str, str, bool]:
    """Return a rate's color, marker and fill; a leak's style only if this very rate is a leak."""
    if way in cell.leaks_by:
        return STYLES[LEAKS]
    return STYLES[NO_LEAK if cell.verdict == NO_LEAK else INCONCLUSIVE]


def _rate(axes: Axes, y: float, cell: Cell, way: str, gid: str) -> bool:
    """Draw a rate, and return True if it is known; `gid` names its mark."""
    color, marker, filled = _style(cell, way)
    style = {"color": COLORS[color], "solid_capstyle": "butt", "clip_on": False}
    rate, size = (cell.asr, 7.5) if way == READ else (cell.identified, 5.5)
    without = [one for one in _without(cell, way) if one is not None]
    if without:
        axes.plot([max(without)] * 2, [y - 0.16, y + 0.16], color=COLORS["ink"], linewidth=1.6, clip_on=False)
    if rate.ends is not None:
        axes.plot(rate.ends, [y, y], linewidth=2.6, **style)
    if rate.value is not None:
        face = COLORS[color if filled else "paper"]
        axes.plot(
            [rate.value], [y], marker, markersize=size, markerfacecolor=face, markeredgewidth=1.6, gid=gid, **style
        )
    return rate.value is not None


def _without(cell: Cell, way: str) -> tuple[float | None, ...]:
    """Return the success rates of guesses without the update."""
    if isinstance(cell, Whole):
        return (cell.union.asr_floor if way == READ else cell.union.identified_floor,)
    if way == READ:
        return cell.asr_mean_image.value, cell.asr_nearest.value, cell.asr_random_update.value
    return cell.identified_mean_image.value, cell.identified_random_update.value, cell.chance


def _strip(axes: Axes, y: float, cell: Cell, values: Sequence[float], gid: str) -> None:
    axes.plot([0.9] * 2, [y - 0.26, y + 0.2], color=COLORS["ink"], linewidth=0.9, linestyle=(0, (2, 1.5)))
    color = COLORS[_style(cell, READ)[0]]
    # Beyond 200 ticks the eye sees a band; 200 quantiles draw the same band in a tenth of the bytes.
    shown = values if len(values) <= 200 else [values[round(i * (len(values) - 1) / 199)] for i in range(200)]
    axes.vlines(shown, y - 0.18, y + 0.18, color=color, linewidth=1.3, alpha=0.55, clip_on=False, gid=gid)
    without = (cell.ssim_mean_image, cell.ssim_nearest, cell.ssim_random_update)
    if best := [mean for mean in without if mean is not None]:
        axes.plot([max(best)] * 2, [y - 0.28, y + 0.2], color=COLORS["ink"], linewidth=1.6, clip_on=False)


def _spoken(summary: Cells) -> str:
    return "; ".join(
        f"{attacker(c)}, {label(c.defense)}: {percent(c.asr.value)} and {percent(c.identified.value)}" for c in summary
    )
