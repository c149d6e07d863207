"""Leakage over a training's rounds: a figure, a table and a page, from the cells of each round's audit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, NamedTuple

from medpfl.core.atomic_files import write
from medpfl.core.experiments.settings import Json, Settings
from medpfl.core.verdicts import INCONCLUSIVE, LEAKS, NO_LEAK
from medpfl.judging.types import Cell
from medpfl.reporting.figures.svg import COLORS, inline
from medpfl.reporting.figures.training import canvas, legend, marks
from medpfl.reporting.phrases import in_number, reason, strength, trials
from medpfl.reporting.tables import SHORT, fold
from medpfl.reporting.words import attacker, known, label, number, percent, percents, shorten, similarity

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["RoundCell", "leakage_figure", "leakage_table", "sentence", "write_leakage_page"]


class RoundCell(NamedTuple):
    """One cell from the audit of a round's model.

    Attributes:
        round: the training round.
        balanced_accuracy: the model's balanced accuracy; ``None`` if unknown.
        cell: the audit's cell.
    """

    round: int
    balanced_accuracy: float | None
    cell: Cell

    def to_dict(self) -> Json:
        """Return the entry for ``leakage.json``."""
        return {"round": self.round, "balanced_accuracy": self.balanced_accuracy, **self.cell.to_dict()}


RoundCells = Sequence[RoundCell]
COLUMNS = ("Round", "Model", "Attack", "Defense", "Images", "ASR", "SSIM", "Re-identified", "Verdict")
_INKS = ("safe", "doubt", "muted", "ink")  # not the color of a leak: a line is an attack, whatever its result
_DASHES = ("-", "--", "-.", ":")


def sentence(summary: RoundCells) -> str:
    """Return a sentence that names the round with the largest leak, or says why none can be named.

    A defense is judged on all attacks of a round together. One inconclusive round makes the whole inconclusive.
    """
    if not summary:
        return "Nothing was audited: no attack has finished."
    return in_number(_sentence(summary), [one.cell for one in summary])


def _sentence(summary: RoundCells) -> str:
    where = f"Among the models of {_rounds(summary)}"
    if leaking := [one for one in summary if LEAKS in (one.cell.verdict, one.cell.union.verdict)]:
        best = max(leaking, key=lambda one: strength(one.cell))
        alike = sorted({one.round for one in leaking if _said(one.cell) == _said(best.cell)})
        which = f"that of round {best.round} leaks most"
        if len(alike) > 1:
            which = f"those of rounds {', '.join(map(str, alike))} leak most, equally"
        asr, told = best.cell.asr, best.cell.identified
        ends = percents(asr.low, asr.high, best.cell.union.tolerance)
        return (
            f"{where}, {which}: {percent(asr.value)} of {best.cell.images} images were reconstructed (95 % interval "
            f"{ends}) and {percent(told.value)} were re-identified, by {attacker(best.cell)} "
            f"with {label(best.cell.defense)}."
        )
    if unsure := [one for one in summary if one.cell.union.verdict != NO_LEAK]:
        flags = ", ".join(dict.fromkeys(flag for one in unsure for flag in one.cell.flags))
        why = f"{reason(_first_group(unsure))}{f' (flags: {flags})' if flags else ''}"
        return f"{where}, no leak was found, but the result is inconclusive for {_rounds(unsure)}: {why}."
    return f"{where}, no leak was found by these attacks. This does not mean that they are safe."


def _rounds(cells: RoundCells) -> str:
    numbers = sorted({one.round for one in cells})
    return f"round{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"


def _first_group(cells: RoundCells) -> list[Cell]:
    """Return all cells with the first cell's round and defense."""
    first = cells[0]
    return [one.cell for one in cells if (one.round, one.cell.defense) == (first.round, first.cell.defense)]


def _said(cell: Cell) -> tuple[object, ...]:
    """Return the facts that rounds must share to be named in one sentence."""
    return attacker(cell), cell.defense, cell.images, cell.asr, cell.identified.value


def leakage_figure(summary: RoundCells, score: str = "ssim") -> str:
    """Draw a score by round: a line with its interval for each attack and defense, and the model's accuracy, dotted."""
    lines, spoken, tips = _lines(summary), [], {}
    figure, axes = canvas(len(lines) + 1)
    step = 0.012 * (max((one.round for one in summary), default=0) - min((one.round for one in summary), default=0))
    for place, cells in enumerate(lines):
        color, style = COLORS[_INKS[place % len(_INKS)]], _DASHES[place // len(_INKS) % len(_DASHES)]
        own = sorted((one for one in cells if one.cell.rate(score).known), key=lambda one: one.round)
        rounds, rates = [one.round for one in own], [one.cell.rate(score) for one in own]
        values = [rate.value or 0.0 for rate in rates]
        low, high = ([v if end is None else end for v, end in zip(values, ends, strict=True)]
                     for ends in ([rate.low for rate in rates], [rate.high for rate in rates]))  # fmt: skip
        rounds = [number + (place - (len(lines) - 1) / 2) * step for number in rounds]  # no mark hides another
        axes.vlines(rounds, low, high, color=color, alpha=0.45, linewidth=1.2)
        # The longest form: in a round without a naive counterpart, the name lacks "adaptive". The cut keeps the end.
        name = shorten(max((attacker(one.cell) for one in cells), key=len), 27)
        text = f"{name}, {shorten(label(cells[0].cell.defense), 42 - len(name))}"
        axes.plot(rounds, values, style, color=color, linewidth=1.6, label=text)
        tips |= marks(axes, rounds, values, _INKS[place % len(_INKS)], [_tip(one, text, score) for one in own])
        spoken.append(
            f"{text}: " + ", ".join(f"round {one.round}: {number(one.cell.rate(score).value)}" for one in cells)
        )
    accuracies = {one.round: one.balanced_accuracy for one in summary if one.balanced_accuracy is not None}
    rounds = sorted(accuracies)
    text = "balanced accuracy of the model"
    axes.plot(rounds, [accuracies[n] for n in rounds], ":", color=COLORS["ink"], linewidth=1.3, label=text)
    axes.set_ylim(min(0, axes.get_ylim()[0]), 1.02)
    if score != "ssim":
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    legend(axes, columns=1)
    return inline(figure, score, f"{_NAMES[score]} by round: {'; '.join(spoken)}", tips)


def _tip(one: RoundCell, name: str, score: str) -> str:
    rate = one.cell.rate(score)
    if score == "ssim":
        return f"{name}, round {one.round}: {number(rate.value)}"
    ends = percents(rate.low, rate.high, one.cell.union.tolerance)
    interval = f" (95 % interval {ends})" if rate.ends is not None else ""
    return f"{name}, round {one.round}: {percent(rate.value)}{interval}"


def _lines(summary: RoundCells) -> list[list[RoundCell]]:
    """Group the cells by attack, defense and knowledge of the defense."""
    lines: dict[tuple[str, str, bool | None], list[RoundCell]] = {}
    for one in summary:
        lines.setdefault((one.cell.attack, one.cell.defense, one.cell.knows_defense), []).append(one)
    return list(lines.values())


_NAMES = {
    "asr": "share of images reconstructed",
    "identified": "share of images re-identified",
    "ssim": "mean SSIM",
}
_DRAWN = ("asr", "identified")


def _values(one: RoundCell) -> list[tuple[str, str]]:
    cell, accuracy = one.cell, one.balanced_accuracy
    most, few = cell.union.tolerance, trials(cell.images, cell.clusters, cell.union.per_update)
    asr, told = ((percent(rate.value), percents(rate.low, rate.high, most)) for rate in (cell.asr, cell.identified))
    model = (percent(accuracy), "balanced accuracy" if known(accuracy) else "")
    names = [(str(one.round), ""), model, (attacker(cell), ""), (label(cell.defense), "")]
    guesses = (cell.ssim_mean_image, cell.ssim_nearest, cell.ssim_random_update)
    guessed = [mean for mean in guesses if mean is not None]
    ssim = (similarity(cell.ssim.value), f"{number(max(guessed))} without the update" if guessed else "")
    identified = (told[0], told[1] if cell.chance is None else f"{told[1]}; by chance {percent(cell.chance)}")
    return [*names, (str(cell.images), few), asr, ssim, identified, (cell.verdict, " ".join(cell.flags))]


def leakage_table(summary: RoundCells) -> Table:
    """Return the cells of all rounds as a table for a terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for name in ("Round", "Model", "Attack, defense", *COLUMNS[4:]):  # together, so that 80 columns hold them uncut
        table.add_column(name, no_wrap=name != "Verdict")
    for one in summary:
        number, model, attack, defense, *rest = (value for value, _ in _values(one))
        specs = fold(attack, 20) + "\n" + indent(fold(defense, 18), "  ")
        table.add_row(*map(Text, (number, model, specs, *rest[:-1], SHORT.get(rest[-1], rest[-1]))))
    return table


def _worst(summary: RoundCells) -> dict[int, str]:
    """Return the worst verdict of each round."""
    found: dict[int, set[str]] = {}
    for one in summary:
        found.setdefault(one.round, set()).add(one.cell.union.verdict)
    return {number: next((v for v in (LEAKS, INCONCLUSIVE) if v in own), NO_LEAK) for number, own in found.items()}


def write_leakage_page(out: Path, settings: Json, summary: RoundCells) -> Path:
    """Write ``leakage.html``, which holds no image and may be shared."""
    from markupsafe import Markup

    from medpfl.reporting.page.advice import of_leakage
    from medpfl.reporting.page.rendering import rendered

    page = rendered(
        "leakage",
        settings,
        advice=of_leakage(_worst(summary), Settings.of(settings)),
        sentence=sentence(summary),
        figures=[(_NAMES[score], Markup(leakage_figure(summary, score))) for score in _DRAWN],
        columns=COLUMNS,
        rows=[_values(one) for one in summary],
    )
    return write(out / "leakage.html", page)
