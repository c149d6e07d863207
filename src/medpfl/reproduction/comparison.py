"""Naive and adaptive attacks side by side, one line for each defense."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medpfl.reporting.words import DASH, between, label, number, percent, percents, signed
from medpfl.reproduction.markdown import markdown_table

__all__ = ["Row", "beside", "with_interval"]

Row = Mapping[str, Any]
"""One audit cell, with its experiment, set and part."""

_HEADS = (
    "Set", "Attack", "Defense", "Images",
    "ASR, naive", "ASR, adaptive", "SSIM, naive", "SSIM, adaptive", "Re-identified, naive", "Re-identified, adaptive",
    "SSIM, adaptive minus naive",
)  # fmt: skip

_MEANING = (
    "Naive: the attack does not know the defense. Adaptive: it knows what the defense discloses. Without a defense, or "
    "with one that discloses nothing, an attack is run once and stands under naive."
)


def beside(rows: Sequence[Row]) -> str:
    """Return a Markdown table with separate columns for naive and adaptive; ``""`` if no attack was run both ways.

    Args:
        rows: audit cells, each with its ``set`` and ``part``.
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
    """Format a row's SSIM or rate, followed by its 95 % interval if known."""
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
    """Format the attack's gain in SSIM from knowing the defense, on the same images."""
    gain, key = told.get("false_security_ssim"), "false_security_ssim"
    if gain is None:
        return DASH
    spread = between(told.get(f"{key}_low"), told.get(f"{key}_high"))
    return signed(gain, number) + ("" if spread == DASH else f" ({spread})")
