"""Image features, and how they relate to the attacks' results."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from medpfl.core.atomic_files import as_csv, write
from medpfl.core.messages import PRIVATE_FOLDER
from medpfl.core.types import Finding
from medpfl.core.verdicts import UNDEFENDED
from medpfl.reporting.words import number
from medpfl.reproduction.markdown import markdown_table
from medpfl.runs.directory import private_folder

__all__ = ["FEATURES", "KEPT", "features", "keep", "kept", "relations"]

FEATURES = {
    "variation": "mean absolute difference of neighboring pixels",
    "edges": "share of pixels that differ from a neighbor by more than 0.1",
    "range": "99th minus 1st percentile",
    "background": "share of pixels below 0.05",
}
"""Features of one image in [0, 1], averaged over channels."""

KEPT = f"{PRIVATE_FOLDER}/features.csv"
"""File with each image's features in a run directory. No table prints them for single images."""


def features(images: Tensor) -> list[dict[str, float]]:
    """Return the features of images (M, C, H, W) in [0, 1]."""
    gray = images.double().mean(1)
    down = torch.nn.functional.pad(gray.diff(dim=1).abs(), (0, 0, 0, 1))
    right = torch.nn.functional.pad(gray.diff(dim=2).abs(), (0, 1))
    low, high = (gray.flatten(1).quantile(q, dim=1) for q in (0.01, 0.99))
    pairs = gray[0].diff(dim=0).numel() + gray[0].diff(dim=1).numel()
    columns = {
        "variation": (down.sum((1, 2)) + right.sum((1, 2))) / pairs,
        "edges": (torch.maximum(down, right) > 0.1).double().mean((1, 2)),
        "range": high - low,
        "background": (gray < 0.05).double().mean((1, 2)),
    }
    return [dict(zip(columns, map(float, values), strict=True)) for values in zip(*columns.values(), strict=True)]


def keep(out: Path, indices: Sequence[str], found: Sequence[Mapping[str, float]]) -> None:
    """Write features by study index into a run directory, so that tables can be made without the images."""
    rows = ({"image": index, **values} for index, values in zip(indices, found, strict=True))
    private_folder(out)
    write(out / KEPT, as_csv(["image", *FEATURES], rows).encode())


def kept(out: Path) -> dict[str, dict[str, float]]:
    """Return the features written by `keep`, by study index."""
    with (out / KEPT).open() as file:
        return {row.pop("image"): {k: float(v) for k, v in row.items()} for row in csv.DictReader(file)}


def relations(rows: Mapping[str, Sequence[Finding]], found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Return two tables: each set's mean features and results, and rank correlations over all images.

    Args:
        rows: findings by set.
        found: features by set and study index.
    """
    heads = ["Set", *FEATURES, "SSIM, no defense", "Evaluations", "SSIM, known noise"]
    sets: list[list[str]] = []
    pooled: list[dict[str, float]] = []
    for name, own in rows.items():
        if not (images := _by_image(own, found[name])):
            continue
        pooled += images
        means = [sum(image[key] for image in images) / len(images) for key in (*FEATURES, *_RESULTS)]
        sets.append([name, *map(_plain, means)])
    ranks = [
        [f"{feature}: {meaning}", *(number(_spearman(pooled, feature, result)) for result in _RESULTS)]
        for feature, meaning in FEATURES.items()
    ]
    between = ["", f"Spearman's rank correlation over {len(pooled)} images from {len(rows)} sets:", ""]
    title = "## Image features and reconstruction"
    return "\n".join([title, "", *markdown_table(heads, sets), *between, *markdown_table(["", *heads[-3:]], ranks)])


def _plain(value: float) -> str:
    return number(value, ",.0f" if value >= 10 else ".2f")


_FEW = 3
"""Minimum number of images for a correlation."""

_RESULTS = ("ssim", "evaluations", "ssim_noise")


def _by_image(rows: Sequence[Finding], found: Mapping[str, Mapping[str, float]]) -> list[dict[str, float]]:
    """Return features and results for each image attacked both with and without the defense."""
    scored = [row for row in rows if not row.control and "zero-gradient" not in row.flags]
    plain = {row.image: row for row in scored if row.defense == UNDEFENDED}
    noisy = {row.image: row for row in scored if row.defense != UNDEFENDED and row.knows_defense}
    return [
        {
            **found[image],
            "ssim": row.scores["ssim"] or 0.0,
            "evaluations": float(row.evaluations),
            "ssim_noise": noisy[image].scores["ssim"] or 0.0,
        }
        for image, row in plain.items()
        if image in noisy and image in found
    ]


def _spearman(images: Sequence[Mapping[str, float]], one: str, other: str) -> float | None:
    """Return the rank correlation, with averaged ranks for ties; ``None`` if it is undefined."""
    from scipy.stats import rankdata

    columns = [[image[key] for image in images] for key in (one, other)]
    if len(images) < _FEW or any(len(set(column)) == 1 for column in columns):
        return None
    return float(torch.corrcoef(torch.tensor([rankdata(column).tolist() for column in columns]))[0, 1])
