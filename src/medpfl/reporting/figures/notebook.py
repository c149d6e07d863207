"""A result as a table for notebooks, and rows as flat tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from medpfl.core.experiments.settings import Json
from medpfl.core.types import Finding
from medpfl.judging.types import Cell, Rate
from medpfl.reporting.words import attacker, label, percent, percents

__all__ = ["columns", "flat_rows", "table", "tabled"]

_HEADS = ("attack", "defense", "images", "reconstructed", "re-identified", "verdict")
_JOINED = ("grants", "flags")


def table(cells: Sequence[Cell], sentences: Iterable[str]) -> str:
    """Return the verdict and a line for each attack and defense as HTML, without an image."""
    return tabled(_HEADS, map(_line, cells), sentences)


def tabled(heads: Iterable[str], lines: Iterable[Iterable[str]], sentences: Iterable[str]) -> str:
    """Return sentences, and a table under them, as HTML."""
    head = "".join(f"<th style='text-align:left'>{escape(name)}</th>" for name in heads)
    body = "".join(f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in line)}</tr>" for line in lines)
    told = "".join(f"<p>{escape(text)}</p>" for text in sentences if text)
    return f"<div>{told}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _line(cell: Cell) -> tuple[str, ...]:
    rates = (_rate(cell.asr), _rate(cell.identified))
    return attacker(cell), label(cell.defense), str(cell.images), *rates, cell.verdict


def _rate(rate: Rate) -> str:
    ends = "" if rate.low is None else f" ({percents(rate.low, rate.high)})"
    return percent(rate.value) + ends


def flat_rows(rows: Iterable[Finding]) -> list[Json]:
    """Return rows as flat dictionaries: a column for each score and version, lists joined by spaces."""
    return [_flat(row) for row in rows]


def _flat(row: Finding) -> Json:
    told = row.to_dict()
    scores, versions = told.pop("scores"), told.pop("versions")
    joined = {name: " ".join(told[name]) for name in _JOINED}
    return {**told, **joined, **scores, **{f"version_{name}": text for name, text in versions.items()}}


def columns(rows: Iterable[Json]) -> list[str]:
    """Return the names of all columns in the order of their first occurrence."""
    return list(dict.fromkeys(name for row in rows for name in row))
