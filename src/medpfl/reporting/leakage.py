"""Leakage over the rounds of a training: a figure, a table and a page, from the cells of each round's audit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Any

from medpfl.core.files import write
from medpfl.core.verdicts import LEAKS, NO_LEAK
from medpfl.reporting.curves import canvas, legend
from medpfl.reporting.phrases import reason, strength
from medpfl.reporting.svg import COLORS, inline
from medpfl.reporting.tables import SHORT, fold
from medpfl.reporting.words import attacker, known, label, number, percent, percents, shorten

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["leakage_figure", "leakage_table", "sentence", "write_leakage_page"]

Cells = Sequence[Mapping[str, Any]]
COLUMNS = ("Round", "Model", "Attack", "Defense", "Images", "Read back", "SSIM", "Identified", "Verdict")
_INKS = ("safe", "doubt", "muted", "ink")  # not the color of a leak: a line is an attack, whatever it reads
_DASHES = ("-", "--", "-.", ":")


def sentence(summary: Cells) -> str:
    """In which round a leak is largest; where none was found, that, or why nothing can be said.

    A round's defense is judged on all attacks together, and one that is inconclusive makes all so.
    """
    if not summary:
        return "Nothing was audited: no attack has finished."
    where = f"Of the models of rounds {', '.join(str(n) for n in sorted({cell['round'] for cell in summary}))}"
    if leaking := [cell for cell in summary if LEAKS in (cell["verdict"], cell["union"]["verdict"])]:
        best = max(leaking, key=strength)
        alike = sorted({c["round"] for c in leaking if _said(c) == _said(best)})
        which = f"that of round {best['round']} leaks most"
        if len(alike) > 1:
            which = f"those of rounds {', '.join(map(str, alike))} leak most, and alike"
        return (
            f"{where}, {which}: "
            f"{percent(best['asr'])} of {best['images']} images were read back (95 % interval "
            f"{percents(best['asr_low'], best['asr_high'])}), {percent(best['identified'])} were identified, by "
            f"{attacker(best)} with {label(best['defense'])}."
        )
    if open_ := [cell for cell in summary if cell["union"]["verdict"] != NO_LEAK]:
        flags = ", ".join(dict.fromkeys(flag for cell in open_ for flag in cell["flags"]))
        rounds = ", ".join(str(n) for n in sorted({cell["round"] for cell in open_}))
        why = f"{reason(_first_group(open_))}{f' (flags: {flags})' if flags else ''}"
        return f"{where}, none was seen to leak, but that is inconclusive in rounds {rounds}: {why}."
    return f"{where}, none was seen to leak: no leak found by these attacks, which does not mean that they are safe."


def _first_group(cells: Cells) -> Cells:
    """Return the cells of the first round and defense."""
    first = cells[0]
    return [c for c in cells if (c["round"], c["defense"]) == (first["round"], first["defense"])]


def _said(cell: Mapping[str, Any]) -> list[Any]:
    """What one sentence says of all the rounds that it names."""
    numbers = ("defense", "images", "asr", "asr_low", "asr_high", "identified")
    return [attacker(cell), *(cell[name] for name in numbers)]


def leakage_figure(summary: Cells, score: str = "ssim") -> str:
    """A score by round, a line for each attack under each defense, with its interval; the model's accuracy, dotted."""
    lines, spoken = _lines(summary), []
    figure, axes = canvas(len(lines) + 1)
    for place, cells in enumerate(lines):
        color, style = COLORS[_INKS[place % len(_INKS)]], _DASHES[place // len(_INKS) % len(_DASHES)]
        own = sorted((c for c in cells if c[score] is not None), key=lambda cell: cell["round"])
        rounds: list[Any] = [cell["round"] for cell in own]
        values: list[Any] = [cell[score] for cell in own]
        ends: list[Any] = [[c[score] if c[f"{score}_{e}"] is None else c[f"{score}_{e}"] for c in own] for e in _ENDS]
        axes.fill_between(rounds, *ends, color=color, alpha=0.12, linewidth=0)
        # Its longest form: in a round without a pair, the name does not say "adaptive". Cut so that the end stays.
        name = shorten(max(map(attacker, cells), key=len), 27)
        text = f"{name}, {shorten(label(cells[0]['defense']), 42 - len(name))}"
        axes.plot(rounds, values, style, marker="o", markersize=4, color=color, linewidth=1.6, label=text)
        spoken.append(f"{text}: " + ", ".join(f"round {c['round']}: {number(c[score])}" for c in cells))
    accuracies: dict[Any, Any] = {c["round"]: c["balanced_accuracy"] for c in summary if known(c["balanced_accuracy"])}
    rounds = sorted(accuracies)
    text = "balanced accuracy of the model"
    axes.plot(rounds, [accuracies[n] for n in rounds], ":", color=COLORS["ink"], linewidth=1.3, label=text)
    axes.set_ylim(min(0, axes.get_ylim()[0]), 1.02)
    if score != "ssim":
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    legend(axes, columns=1)
    return inline(figure, score, f"{_NAMES[score]} by round: {'; '.join(spoken)}")


def _lines(summary: Cells) -> list[list[Mapping[str, Any]]]:
    """The cells of each attack under each defense, naive and adaptive ones apart."""
    lines: dict[Any, list[Mapping[str, Any]]] = {}
    for cell in summary:
        lines.setdefault((cell["attack"], cell["defense"], cell.get("knows_defense")), []).append(cell)
    return list(lines.values())


_ENDS = ("low", "high")
_NAMES = {"ssim": "mean SSIM", "asr": "share of images read back"}


def _values(cell: Mapping[str, Any]) -> list[tuple[str, str]]:
    rates = [(percent(cell[k]), percents(cell[f"{k}_low"], cell[f"{k}_high"])) for k in ("asr", "identified")]
    model = (percent(cell["balanced_accuracy"]), "balanced accuracy" if known(cell["balanced_accuracy"]) else "")
    names = [(str(cell["round"]), ""), model, (attacker(cell), ""), (label(cell["defense"]), "")]
    guessed = [cell[f"ssim_{name}"] for name in _WITHOUT if known(cell[f"ssim_{name}"])]
    ssim = (number(cell["ssim"]), f"{number(max(guessed))} without the update" if guessed else "")
    chance = f"by chance {percent(cell['chance'])}"
    identified = (rates[1][0], f"{rates[1][1]}; {chance}" if known(cell["chance"]) else rates[1][1])
    verdict = (cell["verdict"], " ".join(cell["flags"]))
    return [*names, (str(cell["images"]), ""), rates[0], ssim, identified, verdict]


_WITHOUT = ("mean_image", "nearest", "random_update")


def leakage_table(summary: Cells) -> Table:
    """The cells of all rounds for a terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for name in ("Round", "Model", "Attack, defense", *COLUMNS[4:]):  # together, so that 80 columns hold them uncut
        table.add_column(name, no_wrap=name != "Verdict")
    for cell in summary:
        number, model, attack, defense, *rest = (value for value, _ in _values(cell))
        specs = fold(attack, 20) + "\n" + indent(fold(defense, 18), "  ")
        table.add_row(*map(Text, (number, model, specs, *rest[:-1], SHORT.get(rest[-1], rest[-1]))))
    return table


def write_leakage_page(out: Path, settings: Mapping[str, Any], summary: Cells) -> Path:
    """Writes ``leakage.html``, which holds no image and may be shared."""
    from markupsafe import Markup

    from medpfl.reporting.pages import rendered

    page = rendered(
        "leakage",
        settings,
        sentence=sentence(summary),
        figures=[(name, Markup(leakage_figure(summary, score))) for score, name in _NAMES.items()],
        columns=COLUMNS,
        rows=[_values(cell) for cell in summary],
    )
    return write(out / "leakage.html", page)
