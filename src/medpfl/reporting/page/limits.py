"""The limits of an audit's page, from what the run did: a reader must not take it for more than it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from medpfl.core.experiments.settings import Settings
from medpfl.core.messages import counted
from medpfl.core.verdicts import LEAKS, RECORDED, UNDEFENDED
from medpfl.reporting.phrases import Cells, is_recorded
from medpfl.reporting.words import brief, label, model_words

__all__ = ["Limit", "attacks_to_add", "not_shown"]

_GRANTED = {
    "labels": "the labels of the images",
    "order": "the order in which the client used its images",
    "masks": "the client's dropout masks",
    "auxiliary": "other images of the same kind",
}
"""Further knowledge that an attacker may have, by grant."""


_FEW = 4
"""Maximum number of defenses named, since the table has them all."""


class Limit(NamedTuple):
    """Something that a page does not show: its name, and what was tested instead."""

    name: str
    text: str


def not_shown(summary: Cells, settings: Settings) -> list[Limit]:
    """Return what an audit's page does not show."""
    found = [
        _attacks(settings),
        _images(settings),
        _setting(settings),
        _defenses(summary),
        _server(settings),
        _knowledge(summary, settings),
        Limit(
            "Several rounds together",
            "Each update, or sum of updates, was attacked by itself. Someone who keeps several updates of the same "
            "images may combine them.",
        ),
        Limit(
            "Other leaks",
            f"Whether a patient took part (membership), properties of the whole data set{_labels(summary)}, and what "
            "the finished model reveals once it is published.",
        ),
    ]
    return [one for one in found if one is not None]


def attacks_to_add(summary: Cells, settings: Settings) -> str:
    """Return an advice on attacks that suit the model but were not run; ``""`` if it could change no verdict."""
    names = [label(spec) for spec in settings.not_run.get("suited", ())]
    if not names or all(cell.union.verdict == LEAKS for cell in summary):
        return ""
    flags = " ".join(f'--attack "{name}"' if "(" in name else f"--attack {name}" for name in names)
    return f"Not tested, although suited to this model: {' and '.join(names)}. Add {flags}."


def _attacks(settings: Settings) -> Limit:
    left = settings.not_run
    kept = [*left.get("suited", ()), *left.get("others", ())]
    parts = [
        f"Not run: {_listed(kept)}." if kept else "",
        f"Made for other models or plans: {_listed(left['unfit'])}." if left.get("unfit") else "",
        "Attacks that MedPFL does not have, or that nobody has published yet, may succeed where these fail.",
    ]
    return Limit("Other attacks", " ".join(filter(None, parts)))


def _images(settings: Settings) -> Limit | None:
    asked, there = settings.experiment.get("images"), settings.data.get("images")
    skipped = settings.data.get("skipped") or 0
    parts = [
        f"{asked} of {counted(there, 'image')} were attacked" if asked and there and asked < there else "",
        f"{counted(skipped, 'file')} could not be read" if skipped else "",
    ]
    text = "; ".join(filter(None, parts))
    return Limit("Other images", f"{text}. Other images may be exposed more, or less.") if text else None


def _setting(settings: Settings) -> Limit | None:
    experiment = settings.experiment
    if not experiment.get("model"):
        return None
    weights, count = experiment.get("weights"), experiment.get("images_per_update")
    tested = [
        label(model_words(str(experiment["model"]))),
        {"untrained": "untrained weights", "given": "the given weights"}.get(str(weights), str(weights or "")),
        f"updates of {counted(count, 'image')} each" if isinstance(count, int) else "",
    ]
    return Limit(
        "Other models, rounds and plans",
        f"Tested: {', '.join(filter(None, tested))}. Another round of the training, other weights, batch sizes or "
        "local steps may leak more, or less.",
    )


def _defenses(summary: Cells) -> Limit | None:
    specs = brief(dict.fromkeys(cell.defense for cell in summary if cell.defense not in (UNDEFENDED, RECORDED)))
    if specs:
        return Limit("Other defenses and strengths", f"Tested: {_listed(list(specs.values()), _FEW)}.")
    return Limit("Defenses", "No defense was tested.") if summary and summary[0].defense == UNDEFENDED else None


def _server(settings: Settings) -> Limit | None:
    if "active" in (settings.grants or ()):
        return None
    how = "" if is_recorded(settings) else " (--grant active)"  # nobody knows what a model like that would have sent
    text = f"The tested one follows the protocol. One that changes the model to extract images was not tested{how}."
    return Limit("A malicious server", text)


def _knowledge(summary: Cells, settings: Settings) -> Limit:
    unknown = [text for grant, text in _GRANTED.items() if grant not in (settings.grants or ())]
    naive = {cell.defense for cell in summary if cell.knows_defense is False}
    naive -= {cell.defense for cell in summary if cell.knows_defense}
    known = [*(["the defense and its settings"] if naive else []), *unknown]
    also = f"The tested attacker did not have: {', '.join(known)}. " if known else ""
    return Limit(
        "Knowledge from elsewhere",
        f"{also}A recipient of updates may also know things that no test can grant: earlier images of a patient, or "
        "who was treated when.",
    )


def _labels(summary: Cells) -> str:
    return "" if any(cell.label_verdict for cell in summary) else ", labels"


def _listed(specs: Sequence[str], most: int | None = None) -> str:
    """Return specs as a list in words; with `most`, the first few and the number of others."""
    names = [label(spec) for spec in specs]
    if most is not None and len(names) > most:
        names = [*names[:most], f"{len(names) - most} more"]
    return ", ".join(names[:-1]) + (" and " if names[1:] else "") + names[-1]
