"""Published values from a reader's own file, beside ours. None are shipped, because we know none."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from medpfl.core.errors import InputError, nearest
from medpfl.core.verdicts import UNDEFENDED
from medpfl.reporting.words import DASH, between, label, number, percent, percents
from medpfl.reproduction.markdown import markdown_table

__all__ = ["Published", "beside", "read_published"]

_PLACES = ("experiment", "set", "attack", "defense")
_VALUES = {"asr": "ASR", "ssim": "SSIM", "mse": "MSE", "psnr": "PSNR, dB", "seconds_per_image": "s/image"}
_RATES = ("asr",)

Known = Mapping[str, Mapping[str, Sequence[str]]]
"""Specs of defenses, including the undefended one, by experiment and part."""


class Published(NamedTuple):
    """A line in the reader's file: its place (``experiment = ""`` means any) and its values by name."""

    experiment: str
    set: str
    attack: str
    defense: str
    values: dict[str, float]

    def is_of(self, row: Mapping[str, Any]) -> bool:
        """Return True if the line belongs to this row; where an attack ran both ways, to the naive one."""
        place = (self.set, self.attack, self.defense) == (row["set"], row["part"], row["defense"])
        return place and self.experiment in ("", row["experiment"]) and row["knows_defense"] is not True


def read_published(path: str | Path, known: Known, sets: Sequence[str]) -> list[Published]:
    """Read a CSV file with columns ``set``, ``attack``, optionally ``experiment`` and ``defense``, and value columns.

    Args:
        path: the file.
        known: the study's experiments, parts and defenses.
        sets: the study's set names.

    Raises:
        InputError: if the file is missing, a column is unknown, a row is not in the study, or a number is invalid.
    """
    try:
        text = Path(path).read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--published '{path}' cannot be read: {error}") from None
    reader = csv.DictReader(io.StringIO(text))
    columns = [name.strip() for name in reader.fieldnames or ()]
    reader.fieldnames = columns
    _check_columns(path, columns)
    return [_line(f"'{path}', line {reader.line_num}", row, known, sets) for row in reader]


def _check_columns(path: str | Path, columns: Sequence[str]) -> None:
    allowed = (*_PLACES, *_VALUES)
    for name in columns:
        if name not in allowed:
            raise InputError(f"'{path}' has an unknown column '{name}'; {nearest(name, allowed)}")
    if missing := [name for name in ("set", "attack") if name not in columns]:
        raise InputError(f"'{path}' has no column '{missing[0]}'; possible columns: {', '.join(allowed)}")
    if not set(columns) & set(_VALUES):
        raise InputError(f"'{path}' holds no values: add at least one column of {', '.join(_VALUES)}")


def _line(where: str, row: Mapping[Any, Any], known: Known, sets: Sequence[str]) -> Published:
    if None in row or None in row.values():
        raise InputError(f"{where}: the line has more or fewer fields than the header")
    told = {name: str(value).strip() for name, value in row.items()}
    experiment = told.get("experiment", "")
    _member(where, "experiment", experiment, ["", *known])
    _member(where, "set", told["set"], sets)
    parts = {n: d for name, own in known.items() if experiment in ("", name) for n, d in own.items()}
    _member(where, "attack", told["attack"], list(parts))
    defenses = {
        spec: spec for name, own in known.items() if experiment in ("", name) for spec in own.get(told["attack"], ())
    }
    named = {**{label(spec): spec for spec in defenses}, **defenses}
    defense = told.get("defense") or UNDEFENDED
    _member(where, "defense", defense, list(named))
    values = {name: _number(where, name, told[name]) for name in _VALUES if told.get(name)}
    return Published(experiment, told["set"], told["attack"], named[defense], values)


def _member(where: str, what: str, name: str, allowed: Sequence[str]) -> None:
    if name not in allowed:
        raise InputError(f"{where}: there is no {what} '{name}' in the study; {nearest(name, allowed)}")


def _number(where: str, name: str, text: str) -> float:
    share = text.endswith("%")
    try:
        value = float(text.removesuffix("%")) / (100 if share else 1)
    except ValueError:
        raise InputError(f"{where}: {name} is '{text}', which is not a number") from None
    if not math.isfinite(value) or (share and name not in _RATES) or (name in _RATES and not 0 <= value <= 1):
        hint = "write a share such as 0.97, or 97 %" if name in _RATES else "write a plain number"
        raise InputError(f"{where}: {name} is '{text}': {hint}")
    return value


def beside(published: Sequence[Published], rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a Markdown table of published values and ours for these rows; empty if there are none."""
    lines = []
    for line in published:
        for row in filter(line.is_of, rows):
            place = [row["set"], row["part"], label(row["defense"])]
            for name, value in line.values.items():
                lines.append([*place, _VALUES[name], _shown(name, value), _ours(name, row), _within(name, value, row)])
    if not lines:
        return ""
    head = ["Set", "Attack", "Defense", "Value", "As published", "Ours", "Within our interval"]
    note = "The published values come from the reader's own file and were not checked. Ours are for naive attacks."
    return "\n".join(["## Comparison with published values", "", note, "", *markdown_table(head, lines), ""])


def _shown(name: str, value: float | None) -> str:
    return percent(value) if name in _RATES else number(value, ".3g")


def _ours(name: str, row: Mapping[str, Any]) -> str:
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    interval = percents(low, high) if name in _RATES else between(low, high)
    return _shown(name, row[name]) + ("" if interval == DASH else f" ({interval})")


def _within(name: str, value: float, row: Mapping[str, Any]) -> str:
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    return DASH if low is None or high is None else "yes" if low <= value <= high else "no"
