"""The realism meter as sentences, tables and a page, from the cells of each case's audit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, NamedTuple

from medpfl.core.atomic_files import write
from medpfl.core.experiments.settings import Json
from medpfl.core.messages import counted
from medpfl.core.verdicts import INCONCLUSIVE, LEAKS, NO_LEAK
from medpfl.judging.dependence import ENDS, STAYS, UNCLEAR, WEAKER, fate_of, rate_by
from medpfl.judging.types import READ, Rate, Union
from medpfl.reporting.page.advice import Advice
from medpfl.reporting.page.answer import Step
from medpfl.reporting.phrases import Cells, bounded, counts, in_number, reason
from medpfl.reporting.tables import SHORT
from medpfl.reporting.verdict import MARKS
from medpfl.reporting.words import DASH, between, model_argument, number, percent, percents, signed

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "COLUMNS",
    "CaseCells",
    "Overview",
    "numbers",
    "realism_notebook",
    "realism_table",
    "sentences",
    "untested",
    "write_realism_page",
]

COLUMNS = ("Case", "Images", "Reconstructed", "SSIM above a guess", "Re-identified", "Verdict", "Leak")
_ALL, _FIRST = "together", "favorable"


class CaseCells(NamedTuple):
    """The audit of one case.

    Attributes:
        name: the case's name in files.
        assumption: the assumption that it drops, in a word or two.
        text: what holds instead, in words; for the first case, all assumptions.
        cells: the audit's cells.
    """

    name: str
    assumption: str
    text: str
    cells: Cells

    @property
    def union(self) -> Union:
        """The numbers of all attacks together."""
        return self.cells[0].union

    @property
    def gain(self) -> Rate:
        """The mean SSIM above the best guess without the update, of the attack with the most."""
        return max((cell.ssim_gain for cell in self.cells), key=lambda gain: -2.0 if gain.value is None else gain.value)


@dataclass(frozen=True)
class Overview:
    """The audits of all cases.

    Attributes:
        cases: each case's audit; the first one is the most favorable for an attacker.
        left_out: sentences on cases that could not be tested, and why.
    """

    cases: Sequence[CaseCells]
    left_out: Sequence[str] = ()

    @property
    def first(self) -> CaseCells:
        """The most favorable case."""
        return self.cases[0]

    @property
    def last(self) -> CaseCells | None:
        """The case without any of the assumptions; ``None`` if it could not be tested."""
        return self.cases[-1] if self.cases[-1].name == _ALL else None

    def fate(self, case: CaseCells) -> str | None:
        """Return what becomes of the leak in a case, see `fate_of`."""
        return fate_of(self.first.union, case.union)

    def alone(self, fate: str) -> list[CaseCells]:
        """Return the cases that drop one assumption, and in which the leak has this fate."""
        return [case for case in self.cases[1:] if case.name != _ALL and self.fate(case) == fate]

    def to_dict(self) -> Json:
        """Return the content of ``realism.json``, without settings."""
        cells = [[cell.to_dict() for cell in case.cells] for case in self.cases]
        lines = [{**line, "cells": own} for line, own in zip(numbers(self), cells, strict=True)]
        return {"cases": lines, "left_out": list(self.left_out)}


def numbers(over: Overview) -> list[Json]:
    """Return a flat entry for each case, as in ``realism.csv``."""
    return [
        {
            "case": case.name,
            "assumption": case.assumption,
            "text": case.text,
            "images": case.union.images,
            "updates": case.union.updates,
            **_ends("asr", case.union.asr),
            "asr_floor": case.union.asr_floor,
            **_ends("ssim_gain", case.gain),
            **_ends("identified", case.union.identified),
            "identified_floor": case.union.identified_floor,
            "verdict": case.union.verdict,
            "leak": over.fate(case),
        }
        for case in over.cases
    ]


def _ends(name: str, rate: Rate) -> Json:
    return {name: rate.value, f"{name}_low": rate.low, f"{name}_high": rate.high}


def untested(over: Overview) -> list[str]:
    """Return sentences on the cases that could not be tested."""
    return [f"Not tested: {text.rstrip('.')}." for text in over.left_out]


def sentences(over: Overview) -> list[tuple[str | None, str]]:
    """Return the result in sentences, each with its outcome if it has one: the first case, the others, and the last."""
    first = over.first
    opening = f"In the most favorable case for an attacker ({first.text}), these attacks {counts(first.union)}."
    made: list[tuple[str | None, str]] = [(first.union.verdict, opening)]
    if first.union.verdict == NO_LEAK:
        made.append((None, f"There, no leak was found: {bounded(first.union)}. A failed attack does not show safety."))
    elif first.union.verdict == INCONCLUSIVE:
        made.append((None, f"This is inconclusive: {reason(first.cells)}. So it is unknown what a leak depends on."))
    made += [told for fate in (STAYS, WEAKER, ENDS, UNCLEAR) if (told := _alone(over, fate))]
    if over.last is not None and (fate := over.fate(over.last)) is not None:
        union = over.last.union
        told = f"All dropped together, as in a federation ({over.last.text}): these attacks {counts(union)}"
        made.append((union.verdict, f"{told}; the leak {_VERBS[fate]}."))
    return [(outcome, in_number(text, first.cells)) for outcome, text in made]


_VERBS = {
    STAYS: "stays",
    WEAKER: "is weaker, but still there",
    ENDS: "is no longer found",
    UNCLEAR: "may have ended, but too few updates were attacked to tell",
}
_OPENINGS = {
    STAYS: "The leak stays with {}.",
    WEAKER: "It is weaker, but still there, with {}.",
    ENDS: "It is no longer found with {}.",
    UNCLEAR: "Too few updates to tell whether it ends with {}.",
}


def _alone(over: Overview, fate: str) -> tuple[str | None, str] | None:
    """Return a sentence on the cases that drop one assumption, and in which the leak has this fate."""
    own = over.alone(fate)
    if not own:
        return None
    texts = [case.text + ("" if fate == STAYS else f" ({_compared(over.first, case, fate)})") for case in own]
    verdicts = {case.union.verdict for case in own}
    return verdicts.pop() if len(verdicts) == 1 else None, _OPENINGS[fate].format(
        _listed(texts, ", " if fate == STAYS else "; ")
    )


def _compared(first: CaseCells, case: CaseCells, fate: str) -> str:
    """Return the rates by which the first case leaks, in another case."""
    told = []
    for way in first.union.leaks_by:
        word = "reconstructed" if way == READ else "re-identified"
        now, before = (percent(rate_by(union, way).value) for union in (case.union, first.union))
        told.append(f"still {now} {word}" if now == before else f"{now} {word} instead of {before}")
    few = [counted(case.union.updates, "update")] if fate == UNCLEAR else []
    return ", ".join([*told, *few])


def _listed(texts: Sequence[str], link: str) -> str:
    return f"{link if link == '; ' else ' '}and ".join(filter(None, [link.join(texts[:-1]), texts[-1]]))


def _values(over: Overview, case: CaseCells) -> list[tuple[str, str]]:
    union, gain = case.union, case.gain
    chance = "" if union.identified_floor is None else f"; {percent(union.identified_floor)} without the update"
    told = "" if union.identified.value is None else percents(union.identified.low, union.identified.high) + chance
    named = ("the most favorable", case.text) if case.name == _FIRST else (case.text, _instead(case))
    return [
        named,
        (str(union.images), f"in {counted(union.updates, 'update')}"),
        (percent(union.asr.value), percents(union.asr.low, union.asr.high)),
        (signed(gain.value, number), between(gain.low, gain.high).strip(DASH)),
        (percent(union.identified.value), told),
        (union.verdict, " ".join(union.flags)),
        (DASH if case.name == _FIRST else over.fate(case) or DASH, ""),
    ]


def _instead(case: CaseCells) -> str:
    return "no favorable assumption" if case.name == _ALL else f"instead of {case.assumption}"


def realism_table(over: Overview) -> Table:
    """Return the cases as a table for a terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for name in ("Case", "Images", "ASR", "SSIM gain", "Re-id.", "Verdict, leak"):
        table.add_column(name, no_wrap=True, justify="left" if name in ("Case", "Verdict, leak") else "right")
    for case in over.cases:
        (text, _), images, asr, gain, told, (verdict, _), (fate, _) = _values(over, case)
        rates = [f"{value}\n{note.partition(';')[0]}" for value, note in (asr, told)]
        outcome = f"{MARKS[verdict]} {SHORT[verdict]}" + ("" if fate == DASH else f"\n  {fate}")
        table.add_row(*map(Text, ("\n".join(wrap(text, 24)), images[0], rates[0], gain[0], rates[1], outcome)))
    return table


def realism_notebook(over: Overview) -> str:
    """Return the result and a line for each case as HTML for a notebook, without an image."""
    from medpfl.reporting.figures.notebook import tabled

    lines = [[f"{value} ({note})" if note else value for value, note in _values(over, case)] for case in over.cases]
    return tabled(COLUMNS, lines, [*(text for _, text in sentences(over)), *untested(over)])


def _answer(over: Overview) -> tuple[str, ...]:
    """Return the answer to the page's question in plain words."""
    if over.first.union.verdict == NO_LEAK:
        return ("There is no leak to ask about: even in the most favorable case, these attacks found none.",)
    if over.first.union.verdict == INCONCLUSIVE:
        return ("Unknown: even the most favorable case is inconclusive.",)
    answers = {
        STAYS: "No: the leak stays when all of them are dropped together.",
        WEAKER: "In part: when all of them are dropped together, the leak is weaker, but still there.",
        ENDS: "Yes: when all of them are dropped together, the leak is no longer found.",
        UNCLEAR: "Unclear: too few updates were attacked with all of them dropped together.",
        None: "Unknown: dropping all of them together could not be tested.",
    }
    single = "No single one that was tested matters."
    if ending := over.alone(ENDS):
        single = f"Enough to end it, dropped alone: {_dropped(ending)}."
    elif weakening := over.alone(WEAKER):
        single = f"Enough to weaken it, dropped alone: {_dropped(weakening)}."
    elif over.alone(UNCLEAR):
        single = "Whether a single one matters is not decided for all."
    return answers[None if over.last is None else over.fate(over.last)], single


def _dropped(cases: Sequence[CaseCells]) -> str:
    """Return the assumptions that cases drop, each with what holds instead."""
    texts: dict[str, list[str]] = {}
    for case in cases:
        texts.setdefault(case.assumption, []).append(case.text)
    return "; ".join(f"{assumption} (instead: {', '.join(own)})" for assumption, own in texts.items())


def _advice(over: Overview, settings: Json) -> Advice:
    question = "Does the leak depend on assumptions that favor the attacker?"
    fates = {over.fate(case) for case in over.cases[1:]}
    leaking, last = over.first.union.verdict == LEAKS, over.last and over.fate(over.last)
    model = model_argument(str((settings.get("experiment") or {}).get("model", "")))
    meaning = {
        STAYS: "No favorable setting is needed. Treat the updates of such a federation like patients' images.",
        WEAKER: "No favorable setting is needed. Treat the updates of such a federation like patients' images.",
        ENDS: "Updates that meet the assumptions give images away: those of a site with few images, or of the last "
        "batch of an epoch. A malicious server may bring them about. Other updates are out of reach of these attacks; "
        "a stronger one may succeed.",
    }.get(last or "", "Until this is decided, treat the updates of such a federation like patients' images.")
    if not leaking:
        meaning = "A failed attack is no proof of safety: a stronger one may succeed."
    steps = []
    if not leaking:
        steps.append(Step("See which attacks suit this model.", f"medpfl check-model {model}"))
    trained = any(case.name == "trained" for case in over.cases)
    if UNCLEAR in fates or not leaking:
        more = 2 * max(case.union.images for case in over.cases)
        steps.append(Step("Attack more images, so that each case has more updates.",
                          f"medpfl audit DATA --realism --model {'runs/train' if trained else model} --images {more} "
                          "--out runs/more"))  # fmt: skip
    if not trained:
        steps.append(Step("Train the model, and name the training's directory to compare its last round with round 0.",
                          "medpfl audit DATA --realism --model runs/train --out runs/trained"))  # fmt: skip
    if leaking:
        steps.append(Step("Find a defense that keeps the accuracy.", f"medpfl frontier DATA --model {model} --defense "
                          "'GaussianNoise(scale=geom(0.001, 0.1, 4))' --out runs/frontier"))  # fmt: skip
    return Advice(question, (meaning,), tuple(steps), _answer(over))


def write_realism_page(out: Path, settings: Json, over: Overview) -> Path:
    """Write ``realism.html``, which holds no image and may be shared."""
    from markupsafe import Markup

    from medpfl.reporting.figures.realism import realism_figure
    from medpfl.reporting.page.rendering import rendered

    lines = numbers(over)
    page = rendered(
        "realism",
        settings,
        advice=_advice(over, settings),
        sentences=sentences(over),
        figure=Markup(realism_figure(lines, [case.union.leaks_by for case in over.cases])),
        columns=COLUMNS,
        rows=[_values(over, case) for case in over.cases],
        notes=[*untested(over), *settings.get("notes", ())],
    )
    return write(out / "realism.html", page)
