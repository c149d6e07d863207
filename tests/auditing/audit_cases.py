"""Small audits, and shared helpers for their tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from medpfl import Attack, Finding, Observation, Reconstruction, audit
from medpfl.auditing.report import Report
from medpfl.data.images import LabelledImages
from tests.flat import flat

TINY: dict[str, Any] = {"model": "MLP((6,))", "attacks": ["iDLG(steps=3)"], "images": 4, "size": 16}
"""A tenth of a second."""

OWN_ATTACK = """
from dataclasses import dataclass
from medpfl.attacks import iDLG

@dataclass(frozen=True, repr=False)
class Mine(iDLG):
    '''The same attack, by a user.'''
    steps: int = 3
"""
"""A file with a user's own attack, ``Mine``, which runs in a process of its own."""


def draw_folder(path: Path, classes: Mapping[str, int], *, color: bool = False, size: int = 24, seed: int = 0) -> Path:
    """Create class folders with smooth random pictures."""
    random = np.random.default_rng(seed)
    for name, count in classes.items():
        (path / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            coarse = (random.random((4, 4, 3) if color else (4, 4)) * 255).astype("uint8")
            Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC).save(path / name / f"{i}.png")
    return path


def some_images(count: int, classes: int = 2, patients: Sequence[str | None] | None = None, seed: int = 0):
    """Return labelled random images, 16 x 16; image i has class i modulo `classes`."""
    images = torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(seed))
    names = tuple(f"{i}.png" for i in range(count))
    patients = tuple(patients) if patients is not None else (None,) * count
    labels = torch.arange(count) % classes
    return LabelledImages(images, labels, tuple(f"class {c}" for c in range(classes)), names, patients)


def without_charts(patch: pytest.MonkeyPatch) -> None:
    """Leave the charts out of pages, which take most of the time of a page."""
    for place in (
        "pages.leak_figure", "pages.similarity_figure", "figures.training.privacy_figure",
        "figures.training.score_figure", "figures.training.step_figure", "frontier.frontier_figure",
    ):  # fmt: skip
        patch.setattr(f"medpfl.reporting.{place}", lambda *_: "")


def tiny(data: Any, **options: Any) -> Report:
    """Run a tiny audit with other options."""
    return flat(audit, data=data, **{**TINY, **options})


def plain(rows: Sequence[Finding], *also: str) -> list[dict[str, Any]]:
    """Return rows without the fields that may differ between runs, and without the fields in `also`.

    Without ``image``, ``nearest_image`` is left out too.
    """
    also = (*also, "nearest_image") if "image" in also else also
    return [{k: v for k, v in row.to_dict().items() if k not in ("seconds", "date", *also)} for row in rows]


@dataclass(frozen=True, repr=False)
class Answers(Attack):
    """An attack that keeps its observations, and returns a given answer."""

    value: float = 0.5
    ended: str = "converged"
    kept: list[Observation] = field(default_factory=list, repr=False, compare=False)

    def __call__(self, seen: Observation, generator: torch.Generator) -> Reconstruction:
        self.kept.append(seen)
        guesses = torch.full((len(seen), seen.num_images, *seen.image_shape), self.value)
        count = torch.ones(len(seen), dtype=torch.long)
        return Reconstruction(guesses, None, torch.ones(len(seen)), count, count, (self.ended,) * len(seen))
