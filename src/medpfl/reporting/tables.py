"""The audit's results as a table: entries for the page, and a table for the terminal."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from textwrap import indent
from typing import TYPE_CHECKING

from medpfl.core.verdicts import INCONCLUSIVE, LEAKS, NO_LEAK
from medpfl.judging.types import Cell, Rate
from medpfl.reporting.phrases import Cells, trials
from medpfl.reporting.verdict import MARKS
from medpfl.reporting.words import DASH, attacker, between, known, label, number, percent, percents, signed, similarity

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

__all__ = ["Entry", "Whole", "entries", "similarity_without_update", "terminal_table", "with_unions"]

COLORS = {LEAKS: "bold red", NO_LEAK: "cyan", INCONCLUSIVE: "yellow"}
SHORT = {LEAKS: "leaks", NO_LEAK: "no leak found", INCONCLUSIVE: "inconclusive"}
WIDE = 110


@dataclass(frozen=True)
class Entry:
    """One entry in the page's table: a number, and its small print (interval, baselines)."""

    column: str
    value: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Whole(Cell):
    """A line in a table or figure for all attacks on a defense together, with the numbers of their `union`."""

    @classmethod
    def of(cls, cells: Cells) -> Whole:
        """Return a defense's combined line, from all of its cells."""
        union, count = cells[0].union, len({cell.attack for cell in cells})
        return cls(
            attack=f"all {count} attacks",
            defense=cells[0].defense,
            images=union.images,
            clusters=union.updates,
            asr=union.asr,
            identified=union.identified,
            gallery=union.gallery,
            chance=union.identified_floor,
            leaks_by=union.leaks_by,
            verdict=union.verdict,
            flags=union.flags,
            union=union,
        )


def with_unions(summary: Cells) -> list[Cell]:
    """Return the cells grouped by defense; a combined line follows each defense with several attacks."""
    found: list[Cell] = []
    for defense in dict.fromkeys(cell.defense for cell in summary):
        own = [cell for cell in summary if cell.defense == defense]
        found += own
        if len({cell.attack for cell in own}) > 1:
            found.append(Whole.of(own))
    return found


def entries(cell: Cell) -> list[Entry]:
    """Return a cell's numbers in column order."""
    by_rate = {"mean": cell.asr_mean_image, "nearest": cell.asr_nearest, "random": cell.asr_random_update,
               "masked": cell.asr_masked_vector}  # fmt: skip
    by_ssim = {"mean": cell.ssim_mean_image, "nearest": cell.ssim_nearest, "random": cell.ssim_random_update,
               "masked": cell.ssim_masked_vector}  # fmt: skip
    rates = {name: rate for name, rate in by_rate.items() if rate.value is not None}
    means = {name: mean for name, mean in by_ssim.items() if mean is not None}
    best = max((rate.value or 0.0 for rate in rates.values()), default=None)
    return [
        Entry("Images", number(cell.images, "d"), _left_out(cell)),
        Entry("Reconstructed (ASR)", percent(cell.asr.value), _asr_notes(cell)),
        Entry("Re-identified", percent(cell.identified.value), _identified_notes(cell)),
        Entry("False security", signed(cell.false_security_asr.value, percent), _gain_notes(cell)),
        Entry("ASR without the update", percent(best), _named(rates, cell)),
        Entry("SSIM", similarity(cell.ssim.value), _interval(between(cell.ssim.low, cell.ssim.high))),
        Entry(
            "SSIM without the update",
            number(max(means.values(), default=None)),
            tuple(f"{name} {number(mean)}" for name, mean in means.items()),
        ),
        Entry("PSNR, dB", number(cell.psnr, ".1f")),
        Entry("MSE", number(cell.mse, ".2g")),
        Entry("NCC", number(cell.ncc), _ncc_notes(cell)),
        Entry("Labels inferred", percent(cell.label_accuracy.value), _label_notes(cell)),
        Entry("Seconds per image", number(cell.seconds_per_image, ".2g"), _evaluations(cell)),
    ]


def _interval(text: str) -> tuple[str, ...]:
    return () if text == DASH else (text,)


def _ends(rate: Rate, tolerance: float) -> tuple[str, ...]:
    return _interval(percents(rate.low, rate.high, tolerance))


def _named(rates: Mapping[str, Rate], cell: Cell) -> tuple[str, ...]:
    """Return the known rates with their names and intervals."""
    most = cell.union.tolerance
    return tuple(
        f"{name} {percent(rate.value)}" + "".join(f" ({text})" for text in _ends(rate, most))
        for name, rate in rates.items()
        if known(rate.value)
    )


def _few(cell: Cell) -> tuple[str, ...]:
    """Return a note if the interval counts fewer updates than images."""
    return _interval(trials(cell.images, cell.clusters, cell.union.per_update) or DASH)


def _left_out(cell: Cell) -> tuple[str, ...]:
    return ((f"{percent(cell.zero_gradient)} zero update",) if cell.zero_gradient else ()) + _few(cell)


def _asr_notes(cell: Cell) -> tuple[str, ...]:
    extra = {"best candidate": cell.asr_worst, "no defense": Rate(cell.control_asr)}
    return _ends(cell.asr, cell.union.tolerance) + _named(extra, cell)


def _gain_notes(cell: Cell) -> tuple[str, ...]:
    """Return the interval of the adaptive attack's gain in ASR, and its gains in SSIM and re-identification."""
    ssim, told = cell.false_security_ssim, cell.false_security_identified
    notes = _interval(percents(cell.false_security_asr.low, cell.false_security_asr.high))
    if known(ssim.value):
        spread = "".join(f" ({text})" for text in _interval(between(ssim.low, ssim.high)))
        notes += (f"SSIM {signed(ssim.value, number)}{spread}",)
    if known(told.value):
        spread = "".join(f" ({text})" for text in _interval(percents(told.low, told.high)))
        notes += (f"re-identified {signed(told.value, percent)}{spread}",)
    return notes


def _ncc_notes(cell: Cell) -> tuple[str, ...]:
    guesses = {"mean": cell.ncc_mean_image, "nearest": cell.ncc_nearest, "random": cell.ncc_random_update}
    return tuple(f"{name} {number(ncc)}" for name, ncc in guesses.items() if known(ncc))


def similarity_without_update(summary: Cells) -> str:
    """Return a sentence on the similarity that guesses without the update reach; ``""`` for older rows.

    >>> scores = {"ssim_mean_image": 0.4, "ncc_mean_image": 0.8, "ssim_noise": 0.1, "ncc_noise": 0.2}
    >>> print(similarity_without_update([Cell(attack="a", defense="d", **scores)]))
    For comparison: the mean image reaches SSIM 0.40 and NCC 0.80; noise reaches SSIM 0.100 and NCC 0.200.
    """
    cell = next((cell for cell in summary if known(cell.ncc_noise)), None)
    if cell is None:
        return ""
    scores = {
        "the mean image": (cell.ssim_mean_image, cell.ncc_mean_image, ".2f"),
        "noise": (cell.ssim_noise, cell.ncc_noise, ".3f"),
    }
    found = [
        f"{guess} reaches SSIM {number(ssim, style)} and NCC {number(ncc, style)}"
        for guess, (ssim, ncc, style) in scores.items()
        if known(ncc)
    ]
    return f"For comparison: {'; '.join(found)}."


def _label_notes(cell: Cell) -> tuple[str, ...]:
    if not known(cell.label_accuracy.value):
        return ()
    notes = (*_ends(cell.label_accuracy, cell.union.tolerance), f"chance {percent(cell.label_chance)}")
    if not known(cell.counts_exact.value):
        return notes
    wrong = f"{percent(cell.count_error)} of images miscounted ({percent(cell.count_error_even)} without the update)"
    (exact,) = _named({"class counts exact in": cell.counts_exact}, cell)
    return (*notes, f"{exact} of updates", wrong)


def _identified_notes(cell: Cell) -> tuple[str, ...]:
    if not known(cell.identified.value):
        return ()
    among = (f"gallery of {cell.gallery}",) if cell.gallery else ()
    return (*_ends(cell.identified, cell.union.tolerance), f"chance {percent(cell.chance)}", *among)


def _evaluations(cell: Cell) -> tuple[str, ...]:
    return () if cell.evaluations is None else (f"{number(cell.evaluations, ',.0f')} evaluations",)


def terminal_table(summary: Cells, width: int | None = None) -> Table:
    """Return the results as a table for a terminal.

    If the terminal is too narrow, attack and defense share a column, and the flags stand under the verdict.

    Args:
        summary: the audit's cells.
        width: the terminal's width in characters; ``None`` detects it.
    """
    import rich
    from rich.measure import Measurement

    console = rich.get_console()
    width = console.width if width is None else width
    table = _table(summary, wide=True)
    unlimited = console.options.update(width=10 * WIDE)
    fits = width >= WIDE and Measurement.get(console, unlimited, table).maximum <= width
    return table if fits else _table(summary, wide=False)


def _table(summary: Cells, wide: bool) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, int(wide), 0, 0))
    for name in ("Attack", "Defense") if wide else ("Attack, defense",):
        table.add_column(name, no_wrap=True)
    for name in ("Images", "ASR", "SSIM", "Re-identified" if wide else "Re-id.", "s/image" if wide else "s/img"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("Verdict", "Flags") if wide else ("Verdict",):
        table.add_column(name, no_wrap=True)
    for cell in with_unions(summary):
        table.add_row(*(_wide_row if wide else _narrow_row)(cell))
    return table


def _wide_row(cell: Cell) -> list[Text]:
    from rich.text import Text

    specs = [Text(fold(text, 24)) for text in (attacker(cell), label(cell.defense))]
    flags = Text("\n".join(cell.flags), style="dim")
    return [*specs, *_numbers(cell, " [{}]"), _outcome(cell), flags]


def _narrow_row(cell: Cell) -> list[Text]:
    from rich.text import Text

    specs = Text(fold(attacker(cell), 26))
    specs.append("\n" + indent(fold(label(cell.defense), 24), "  "), style="dim")
    flags = "".join(f"\n{flag}" for flag in cell.flags)
    return [specs, *_numbers(cell, "\n{}"), _outcome(cell).append(flags, style="not bold dim")]


def _numbers(cell: Cell, interval: str) -> list[Text]:
    from rich.text import Text

    asr = percent(cell.asr.value) + "".join(map(interval.format, _ends(cell.asr, cell.union.tolerance)))
    rest = [
        number(cell.ssim.value),
        percent(cell.identified.value),
        number(cell.seconds_per_image, ".2g"),
    ]
    # Text instead of strings, so that rich does not take brackets for markup.
    return [Text(text) for text in (number(cell.images, "d"), asr, *rest)]


def _outcome(cell: Cell) -> Text:
    from rich.text import Text

    return Text(f"{MARKS[cell.verdict]} {SHORT[cell.verdict]}", style=COLORS[cell.verdict])


def fold(spec: str, width: int) -> str:
    """Break a spec into lines of at most `width` characters, preferably after a bracket, comma, bar or equals sign.

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
