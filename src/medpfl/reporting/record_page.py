"""The terminal page and the HTML page of ``medpfl inspect``."""

from __future__ import annotations

from pathlib import Path

from medpfl.core.atomic_files import write
from medpfl.core.records.view import RecordView
from medpfl.reporting.page.advice import of_record
from medpfl.reporting.page.rendering import rendered

__all__ = ["record_page", "write_page"]

_VERDICTS = {
    "right": "This record is right.",
    "wrong": "This record is wrong: do not audit it.",
    "unverified": "This record could not be verified in full.",
}


def record_page(view: RecordView) -> list[tuple[str, list[str]]]:
    """Return headings, each with its lines."""
    verdict = [_VERDICTS[view.verdict]]
    if view.finding:
        verdict.append(f"Cause: {view.finding}.")
    if view.difference is not None and not any("relative difference" in text for text in view.facts):
        verdict.append(f"Relative difference from a replay of the training: {view.difference:.2g}.")
    return [
        ("Verdict", verdict + [f"{text[:1].upper()}{text[1:]}." for text in view.facts]),
        *([("Not verified", [f"{text[:1].upper()}{text[1:]}." for text in view.open])] if view.open else []),
        ("Contents", [f"{name}: {text}" for name, text in view.contents.items()]),
        ("Steps", list(view.steps)),
        *([("Filters", [f"{text[:1].upper()}{text[1:]}." for text in view.filtered])] if view.filtered else []),
    ]


def write_page(path: Path, view: RecordView) -> None:
    """Write the page as HTML; it shows no image and names no file."""
    write(
        path, rendered("record", {}, sections=record_page(view), contents=view.contents, advice=of_record(view.verdict))
    )
