"""Attacks that are not told of a defense beside the same attacks told of it: one line for each defense."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medpfl.reporting.words import DASH, between, label, number, percent, percents, signed
from medpfl.reproduction.markdown import markdown_table

__all__ = ["Row", "beside", "with_interval"]

Row = Mapping[str, Any]
"""One cell of an audit, with the experiment, set and part that it is of."""

_HEADS = (
    "Set", "Attack", "Defense", "Images",
    "ASR, naive", "ASR, adaptive", "SSIM, naive", "SSIM, adaptive", "Identified, naive", "Identified, adaptive",
    "SSIM, adaptive less naive",
)  # fmt: skip

_MEANING = (
    "Naive: not told of the defense. Adaptive: told what it discloses of itself. An attack on no defense, or on one of "
    "which nothing can be told, is run once; what it found without being told stands under naive."
)


def beside(rows: Sequence[Row]) -> str:
    """A table in Markdown, naive and adaptive in columns of their own; ``""`` where no attack was run both ways.

    Args:
        rows: cells of audits, each with its ``set`` and ``part``.
    """
    pairs: dict[tuple[str, str, str], dict[bool, Row]] = {}
    for row in rows:
        pairs.setdefault((row["set"], row["part"], row["defense"]), {})[bool(row["knows_defense"])] = row
    if not any(len(pair) == 2 for pair in pairs.values()):
        return ""
    cells = [[name, part, label(defense), *_numbers(pair)] for (name, part, defense), pair in pairs.items()]
    lines = markdown_table(_HEADS, cells)
    return "\n".join(["## Naive and adaptive, side by side", "", *lines, "", _MEANING, ""])


def with_interval(row: Row, key: str) -> str:
    """A number of a cell and its 95 % interval; a mean of scores, or a rate."""
    ends = row.get(f"{key}_low"), row.get(f"{key}_high")
    shown, spread = (number(row[key]), between(*ends)) if key == "ssim" else (percent(row[key]), percents(*ends))
    return shown if spread == DASH else f"{shown} ({spread})"


def _numbers(pair: Mapping[bool, Row]) -> list[str]:
    scores = [
        with_interval(pair[told], key) if told in pair else DASH
        for key in ("asr", "ssim", "identified")
        for told in (False, True)
    ]
    images = number(next(iter(pair.values()))["images"], "d")
    return [images, *scores, _gain(pair[True]) if len(pair) == 2 else DASH]


def _gain(told: Row) -> str:
    """What the same attack gains on the same images by being told."""
    gain, key = told.get("false_security_ssim"), "false_security_ssim"
    if gain is None:
        return DASH
    spread = between(told.get(f"{key}_low"), told.get(f"{key}_high"))
    return signed(gain, number) + ("" if spread == DASH else f" ({spread})")
