"""The summary as a table: columns for the page, and a table for the terminal."""

from __future__ import annotations

import re
from dataclasses import dataclass
from textwrap import indent
from typing import TYPE_CHECKING

from medpfl.core.verdicts import INCONCLUSIVE, LEAKS, NO_LEAK
from medpfl.reporting.phrases import Cell, Cells
from medpfl.reporting.verdict import MARKS
from medpfl.reporting.words import DASH, attacker, between, known, label, number, percent, percents, signed

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

__all__ = ["Entry", "entries", "terminal_table", "with_unions"]

BASELINES = {"mean_image": "mean", "nearest": "nearest", "random_update": "random", "masked_vector": "masked"}
COLORS = {LEAKS: "bold red", NO_LEAK: "cyan", INCONCLUSIVE: "yellow"}
SHORT = {LEAKS: "leaks", NO_LEAK: "no leak found", INCONCLUSIVE: "inconclusive"}
WIDE = 110


@dataclass(frozen=True)
class Entry:
    """One entry of the page's table: a number, and what it takes to judge it."""

    column: str
    value: str
    notes: tuple[str, ...] = ()


def with_unions(summary: Cells) -> list[Cell]:
    """Return the cells by defense, each defense under several attacks followed by what these show together."""
    found: list[Cell] = []
    for defense in dict.fromkeys(cell["defense"] for cell in summary):
        own = [cell for cell in summary if cell["defense"] == defense]
        found += own
        count = len({cell["attack"] for cell in own})
        if count > 1 and (union := own[0].get("union")):
            found.append({**union, "attack": f"all {count} attacks", "defense": defense})
    return found


def entries(cell: Cell) -> list[Entry]:
    """A cell's numbers, in the order of the columns."""
    get = cell.get
    return [
        Entry("Images", number(get("images"), "d"), _left_out(cell)),
        Entry("Read back (ASR)", percent(get("asr")), _asr_notes(cell)),
        Entry("Identified", percent(get("identified")), _identified_notes(cell)),
        Entry("False security", signed(get("false_security_asr"), percent), _gain_notes(cell)),
        Entry("ASR without the update", *_baselines(cell, "asr")),
        Entry("SSIM", number(get("ssim")), _interval(between(get("ssim_low"), get("ssim_high")))),
        Entry("SSIM without the update", *_baselines(cell, "ssim")),
        Entry("PSNR, dB", number(get("psnr"), ".1f")),
        Entry("MSE", number(get("mse"), ".2g")),
        Entry("Labels right", percent(get("label_accuracy")), _label_notes(cell)),
        Entry("Seconds per image", number(get("seconds_per_image"), ".2g"), _evaluations(cell)),
    ]


def _interval(text: str) -> tuple[str, ...]:
    return () if text == DASH else (text,)


def _left_out(cell: Cell) -> tuple[str, ...]:
    share, clusters = cell.get("zero_gradient"), cell.get("clusters", cell.get("updates"))
    dependent = (f"in {clusters} updates",) if clusters and clusters < cell["images"] else ()
    return ((f"{percent(share)} zero",) if known(share) and share else ()) + dependent


def _asr_notes(cell: Cell) -> tuple[str, ...]:
    notes = _interval(percents(cell.get("asr_low"), cell.get("asr_high")))
    extra = {"asr_worst": "worst", "control_asr": "control"}
    return notes + tuple(f"{name} {_rate(cell, key)}" for key, name in extra.items() if known(cell.get(key)))


def _gain_notes(cell: Cell) -> tuple[str, ...]:
    """The interval of the gain of an attack that knows the defense, and what it gains in SSIM and identification."""
    asr, ssim, told = (f"false_security_{name}" for name in ("asr", "ssim", "identified"))
    notes = _interval(percents(cell.get(f"{asr}_low"), cell.get(f"{asr}_high")))
    if known(cell.get(ssim)):
        spread = between(cell.get(f"{ssim}_low"), cell.get(f"{ssim}_high"))
        notes += (f"SSIM {signed(cell[ssim], number)}" + ("" if spread == DASH else f" ({spread})"),)
    if known(cell.get(told)):
        spread = percents(cell.get(f"{told}_low"), cell.get(f"{told}_high"))
        notes += (f"identified {signed(cell[told], percent)}" + ("" if spread == DASH else f" ({spread})"),)
    return notes


def _rate(cell: Cell, key: str) -> str:
    spread = percents(cell.get(f"{key}_low"), cell.get(f"{key}_high"))
    return percent(cell.get(key)) + ("" if spread == DASH else f" ({spread})")


def _label_notes(cell: Cell) -> tuple[str, ...]:
    if not known(cell.get("label_accuracy")):
        return ()
    notes = _interval(percents(cell.get("label_accuracy_low"), cell.get("label_accuracy_high")))
    return (*notes, f"chance {percent(cell.get('label_chance'))}")


def _baselines(cell: Cell, key: str) -> tuple[str, tuple[str, ...]]:
    show = percent if key == "asr" else number
    values = {f"{key}_{b}": name for b, name in BASELINES.items() if known(cell.get(f"{key}_{b}"))}
    notes = (f"{name} {_rate(cell, k) if key == 'asr' else show(cell[k])}" for k, name in values.items())
    return show(max((cell[k] for k in values), default=None)), tuple(notes)


def _identified_notes(cell: Cell) -> tuple[str, ...]:
    if not known(cell.get("identified")):
        return ()
    notes = _interval(percents(cell.get("identified_low"), cell.get("identified_high")))
    among = (f"of {cell['gallery']}",) if cell.get("gallery") else ()
    chance = cell["chance"] if known(cell.get("chance")) else cell.get("identified_floor")
    return (*notes, f"chance {percent(chance)}", *among)


def _evaluations(cell: Cell) -> tuple[str, ...]:
    count = cell.get("evaluations")
    return (f"{number(count, ',.0f')} evals",) if known(count) else ()


def terminal_table(summary: Cells, width: int | None = None) -> Table:
    """The summary for a terminal; in a narrow one the specs share a column, and flags go under the verdict.

    Args:
        summary: one mapping for each attack and defense.
        width: columns of the terminal; ``None`` asks it.
    """
    import rich
    from rich import box
    from rich.table import Table

    wide = (rich.get_console().width if width is None else width) >= WIDE
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, int(wide), 0, 0))
    for name in ("Attack", "Defense") if wide else ("Attack, defense",):
        table.add_column(name, no_wrap=True)
    for name in ("Images", "ASR", "SSIM", "Identified" if wide else "Ident.", "s/image" if wide else "s/img"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("Verdict", "Flags") if wide else ("Verdict",):
        table.add_column(name, no_wrap=True)
    for cell in with_unions(summary):
        table.add_row(*(_wide_row if wide else _narrow_row)(cell))
    return table


def _wide_row(cell: Cell) -> list[Text]:
    from rich.text import Text

    specs = [Text(fold(text, 24)) for text in (attacker(cell), label(cell["defense"]))]
    flags = Text("\n".join(cell.get("flags") or ()), style="dim")
    return [*specs, *_numbers(cell, " [{}]"), _outcome(cell), flags]


def _narrow_row(cell: Cell) -> list[Text]:
    from rich.text import Text

    specs = Text(fold(attacker(cell), 26))
    specs.append("\n" + indent(fold(label(cell["defense"]), 24), "  "), style="dim")
    flags = "".join(f"\n{flag}" for flag in cell.get("flags") or ())
    return [specs, *_numbers(cell, "\n{}"), _outcome(cell).append(flags, style="not bold dim")]


def _numbers(cell: Cell, interval: str) -> list[Text]:
    from rich.text import Text

    spread = percents(cell.get("asr_low"), cell.get("asr_high"))
    asr = percent(cell.get("asr")) + ("" if spread == DASH else interval.format(spread))
    rest = [
        number(cell.get("ssim")),
        percent(cell.get("identified")),
        number(cell.get("seconds_per_image"), ".2g"),
    ]
    # Text, not strings: the brackets are not markup.
    return [Text(text) for text in (number(cell.get("images"), "d"), asr, *rest)]


def _outcome(cell: Cell) -> Text:
    from rich.text import Text

    state = cell.get("verdict") or INCONCLUSIVE
    return Text(f"{MARKS.get(state, '?')} {SHORT.get(state, state)}", style=COLORS.get(state, ""))


def fold(spec: str, width: int) -> str:
    """A spec in lines of at most so many characters, broken after a bracket, a comma or a bar if it can be.

    >>> print(fold("Matching(prior=TotalVariation(weight=0.1), restarts=4)", 24))
    Matching(prior=
    TotalVariation(weight=
    0.1), restarts=4)
    """
    lines = [""]
    for piece in re.findall(r"[^(,|=]*(?:[(,|=]\s*|$)", spec):
        if lines[-1] and len((lines[-1] + piece).rstrip()) > width:
            lines.append("")
        lines[-1] += piece
        while len(lines[-1].rstrip()) > width:
            lines[-1:] = [lines[-1][:width], lines[-1][width:]]
    return "\n".join(line.rstrip() for line in lines)
