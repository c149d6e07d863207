"""A training's page, table and two summary sentences, made from its rows alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medpfl.core.atomic_files import write
from medpfl.core.experiments.settings import Json, Settings
from medpfl.core.rounds import Round, Scores
from medpfl.core.verdicts import UNDEFENDED
from medpfl.reporting.words import between, epsilons, label, number, percent, percents

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["COLUMNS", "judging_set", "sentences", "shown_rounds", "size", "training_table", "write_training_page"]

COLUMNS = ("Round", "Accuracy", "Balanced", "AUROC", "Loss", "Step", "Sent", "Epsilon")
_MOST = 40
"""Largest number of rounds in the page's table."""


def judging_set(rows: Sequence[Round]) -> str:
    """Return the name of the set that the summary is about: the test set if there is one."""
    return "test" if "test" in rows[-1].scores else next(iter(rows[-1].scores))


def sentences(rows: Sequence[Round], settings: Json) -> tuple[str, str]:
    """Return a sentence on the model's scores, and one on the data sent and the epsilon spent."""
    last, name = rows[-1], judging_set(rows)
    scores, experiment = last.scores[name], settings.get("experiment") or {}
    defense = experiment.get("defense", UNDEFENDED)
    under = "without a defense" if defense == UNDEFENDED else f"with {label(defense)}"
    area = "undefined (all images belong to one class)" if scores["auroc"] is None else number(scores["auroc"])
    first = (
        f"After {last.round} rounds {under}, the model classifies {_rate(scores, 'accuracy')} of the "
        f"{number(scores['images'], '.0f')} {name} images correctly; balanced accuracy "
        f"{_rate(scores, 'balanced_accuracy')}; AUROC {area}."
    )
    stated = epsilons(last.epsilon, " and ", " for one {}")
    spent = "" if last.epsilon is None else f"; epsilon is {stated} at delta {last.delta:g}"
    total = sum(row.bytes_sent for row in rows)
    return first, f"{experiment.get('clients', 'The')} clients sent {size(total)} in total{spent}."


def _rate(scores: Scores, name: str) -> str:
    spread = percents(scores[f"{name}_low"], scores[f"{name}_high"])
    return f"{percent(scores[name])} (95 % interval {spread})"


def size(count: float) -> str:
    """Format a number of bytes in the largest unit that keeps it at least 1.

    >>> size(0), size(1500), size(2_500_000)
    ('0 B', '1.5 kB', '2.5 MB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"


def shown_rounds(rows: Sequence[Round], most: int) -> list[Round]:
    """Return at most `most` rounds, evenly spaced, with the first and the last."""
    if len(rows) <= most:
        return list(rows)
    return [rows[round(i * (len(rows) - 1) / (most - 1))] for i in range(most)]


def _values(row: Round, name: str) -> list[tuple[str, str]]:
    """Return a round's columns, each with its interval."""
    scores = row.scores[name]
    rates = [(percent(scores[k]), percents(scores[f"{k}_low"], scores[f"{k}_high"])) for k in _RATES]
    plain = [number(scores["auroc"], ".3f"), number(scores["loss"], ".3g"), number(row.update_norm, ".3g")]
    rest = [*plain, size(row.bytes_sent), epsilons(row.epsilon)]
    return [(str(row.round), ""), *rates, *((value, "") for value in rest)]


_RATES = ("accuracy", "balanced_accuracy")


def training_table(rows: Sequence[Round], most: int = 12) -> Table:
    """Return at most `most` rounds as a table for a terminal."""
    from rich import box
    from rich.table import Table

    table = Table(
        box=box.SIMPLE_HEAD, show_edge=False, title=f"on the {judging_set(rows)} images", title_justify="left"
    )
    for name in COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for row in shown_rounds(rows, most):
        table.add_row(*(value for value, _ in _values(row, judging_set(rows))))
    return table


def write_training_page(out: Path, settings: Json, rows: Sequence[Round]) -> Path:
    """Write ``report.html``, which holds no image and may be shared."""
    from markupsafe import Markup

    from medpfl.reporting.figures.training import privacy_figure, score_figure, step_figure
    from medpfl.reporting.page.advice import of_training
    from medpfl.reporting.page.rendering import rendered

    name = judging_set(rows)
    page = rendered(
        "training",
        settings,
        sentences=sentences(rows, settings),
        advice=of_training(
            (settings.get("experiment") or {}).get("defense", UNDEFENDED) != UNDEFENDED, Settings.of(settings)
        ),
        notes=settings.get("notes") or (),
        figures=[
            (
                f"Scores on the {name} images by round. The band is the 95 % interval of the balanced accuracy.",
                Markup(score_figure(rows, name)),
            ),
            ("Privacy loss (epsilon) or data sent so far.", Markup(privacy_figure(rows))),
            ("Distance that each round moved the global model.", Markup(step_figure(rows))),
        ],
        judged=name,
        others={other: _final(rows[-1].scores[other]) for other in rows[-1].scores if other != name},
        columns=COLUMNS,
        rows=[_values(row, name) for row in shown_rounds(rows, _MOST)],
        left_out=max(len(rows) - _MOST, 0),
    )
    return write(out / "report.html", page)


def _final(scores: Scores) -> str:
    ends = between(scores["balanced_accuracy_low"], scores["balanced_accuracy_high"])
    return (
        f"accuracy {percent(scores['accuracy'])}, balanced accuracy {number(scores['balanced_accuracy'])} ({ends}), "
        f"AUROC {number(scores['auroc'], '.3f')}, loss {number(scores['loss'], '.3g')}"
    )
