"""A small frontier, and shared helpers for its tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medpfl.core.experiments.frontier import Frontier

SMALL: dict[str, Any] = {
    "model": "MLP(hidden=(6,), activation='sigmoid')",
    "defense": ["GaussianNoise(scale=geom(0.001, 10, 2))", "TopK(keep=0.5)"],
    "attack": ["iDLG(steps=12)"],
    "size": 16,
    "clients": 2,
    "rounds": 2,
    "batch_size": 2,
    "images": 4,
}
"""A few seconds."""


def small(data: Path | str, **options: Any) -> Frontier:
    """Run a small frontier with other options."""
    return Frontier.of(**{**SMALL, "data": str(data), **options})


def draw(path: Path) -> Path:
    """Create a folder with two classes and twelve smooth random pictures in each."""
    random = np.random.default_rng(0)
    for name in ("benign", "malignant"):
        (path / name).mkdir(parents=True)
        for i in range(12):
            coarse = (random.random((4, 4)) * 255).astype("uint8")
            Image.fromarray(coarse).resize((24, 24), Image.Resampling.BICUBIC).save(path / name / f"{i}.png")
    return path
