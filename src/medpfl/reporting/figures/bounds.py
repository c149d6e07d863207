"""The success-bound figure: the highest success rate of any attack, by success rate without the update (kappa)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from medpfl.judging.types import Mark
from medpfl.reporting.bounds import COLUMNS, EVENTS, Placed, bound_rows, in_words, reading_bounds
from medpfl.reporting.figures.svg import COLORS, inline
from medpfl.reporting.words import label, number, percent, percents, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["bound_figure", "bound_section"]

_WIDTH, _BELOW, _HEIGHT, _ABOVE, _LINE = 4.6, 0.49, 2.5, 0.2, 0.18  # inches: the axes, and one legend line
_LEAST = 1e-4
"""Left edge of the kappa axis. Smaller values, including 0, are drawn there."""
_INKS, _DASHES, _SHAPES = ("leak", "safe", "doubt", "muted", "ink"), ("-", "--", "-."), "osD^v"
_GUESSES = {
    "asr": {"mean_image": "mean image", "nearest": "nearest image", "random_update": "random"},
    "identified": {"chance": "chance"},
}


def bound_figure(ones: Sequence[Placed], event: str) -> str:
    """Draw each defense's bound as a curve, its measured rate as a point, and its no-prior reference as a dotted line.

    Args:
        ones: from `medpfl.reporting.bounds.placed`.
        event: ``"asr"`` or ``"identified"``.
    """
    from matplotlib.figure import Figure

    known = [one for one in ones if one.bound.gap is None]
    height = _BELOW + _HEIGHT + _ABOVE + _LINE * len(known)
    figure = Figure(figsize=(_WIDTH, height))
    axes = figure.add_axes((0.17, _BELOW / height, 0.77, _HEIGHT / height))
    pairs = [kappa for kappa, _ in known[0].bound.curve if kappa >= _LEAST] if known else []
    axes.plot(pairs, pairs, color=COLORS["line"], linewidth=1.2)
    tips: dict[str, str] = {}
    for place, one in enumerate(known):
        if _one(axes, one, event, place):
            tips[f"measured-{place}"] = _tip(one, event)
    _baselines(axes, [one.bound.guesses or {} for one in known], event)
    _frame(axes, f"success: {EVENTS[event]}")
    if known:
        axes.legend(
            loc="lower left", bbox_to_anchor=(-0.1, 1), frameon=False, fontsize=8.5, labelcolor=COLORS["ink"],
            handlelength=2.2,
        )  # fmt: skip
    return inline(figure, f"bound-{event}", _spoken(known, event), tips)


def bound_section(ones: Sequence[Placed]) -> dict[str, object] | None:
    """Return a page's section on bounds: figures, columns, rows and notes; ``None`` if there is no bound."""
    from markupsafe import Markup

    if not ones:
        return None
    drawn = any(one.bound.gap is None for one in ones)
    figures = [(name, Markup(bound_figure(ones, event))) for event, name in EVENTS.items()] if drawn else []
    return {
        "words": [*map(in_words, ones)],
        "figures": figures,
        "columns": COLUMNS,
        "rows": bound_rows(ones),
        "notes": reading_bounds(),
    }


def _tip(one: Placed, event: str) -> str:
    """Return a point's values in words."""
    mark, rate = one.bound.of(event) or Mark(), one.rate(event)
    return (
        f"{label(one.defense)}: measured {percent(rate.value)} {EVENTS[event]} ({percents(rate.low, rate.high)}), "
        f"at most {percent(mark.bound)} for any attack"
    )


def _one(axes: Axes, one: Placed, event: str, place: int) -> bool:
    """Draw a defense's curve, and its point if there is one; return True if there is."""
    color, bound = COLORS[_INKS[place % len(_INKS)]], one.bound
    kappas, bounds = zip(*(pair for pair in bound.curve if pair[0] >= _LEAST), strict=True)
    style = _DASHES[place // len(_INKS) % len(_DASHES)]
    axes.plot(kappas, bounds, style, color=color, linewidth=1.6, label=shorten(label(one.defense), 44))
    if (reference := (bound.no_prior or {}).get(event)) is not None:
        axes.axhline(reference, color=color, linestyle=":", linewidth=1)
    mark, rate = bound.of(event), one.rate(event)
    if mark is None or mark.kappa is None or mark.kappa_high is None or rate.value is None:
        return False
    x, end, y = max(mark.kappa, _LEAST), max(mark.kappa_high, _LEAST), rate.value
    axes.plot([x, end], [y, y], color=color, linewidth=0.8, alpha=0.7, clip_on=False)
    if rate.ends is not None:
        axes.plot([x, x], rate.ends, color=color, linewidth=0.8, alpha=0.7, clip_on=False)
    marker = _SHAPES[place % len(_SHAPES)]
    style = {"markersize": 6.5, "mfc": COLORS["paper"], "mew": 1.5, "zorder": 5, "clip_on": False}
    axes.plot(x, y, marker, mec=color, gid=f"measured-{place}", **style)
    return True


def _baselines(axes: Axes, guesses: Sequence[Mapping[str, float | None]], event: str) -> None:
    """Draw a tick at the score of each guess without the update; ticks at one place share a label."""
    at: dict[float, list[str]] = {}
    for own in guesses:
        for name, text in _GUESSES[event].items():
            rate = own.get(name)
            if rate is not None and not any(text in texts for texts in at.values()):
                at.setdefault(max(rate, _LEAST), []).append(text)
    for kappa, texts in at.items():
        axes.plot([kappa], [0], marker=2, markersize=7, color=COLORS["ink"], clip_on=False, zorder=6)
        side, offset = ("left", (4, 5)) if kappa < 0.1 else ("right", (-4, 5))
        behind = {"fc": COLORS["paper"], "ec": "none", "pad": 0.8, "alpha": 0.8}
        axes.annotate(", ".join(texts), (kappa, 0), offset, textcoords="offset points", fontsize=8, ha=side,
                      color=COLORS["ink"], bbox=behind, zorder=4)  # fmt: skip


def _frame(axes: Axes, name: str) -> None:
    axes.set_xscale("log")
    axes.set(xlim=(_LEAST, 1), ylim=(0, 1.02))
    axes.set_xticks([1e-4, 1e-3, 1e-2, 0.1, 1], ["0.01 %", "0.1 %", "1 %", "10 %", "100 %"])
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    axes.tick_params(colors=COLORS["muted"], labelsize=9)
    axes.tick_params(which="minor", length=0)
    axes.set_xlabel("kappa: success of a guess without the update", color=COLORS["muted"], fontsize=9)
    axes.set_ylabel(name, color=COLORS["muted"], fontsize=9)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("bottom", "left"))
        spine.set_color(COLORS["line"])


def _spoken(ones: Sequence[Placed], event: str) -> str:
    said = []
    for one in ones:
        mark = one.bound.of(event) or Mark()
        said.append(
            f"{label(one.defense)}: measured {number(one.rate(event).value)}, bound {number(mark.bound)} at kappa "
            f"{number(mark.kappa, '.2g')}"
        )
    return f"{EVENTS[event]}: success bound by kappa; {'; '.join(said)}"
