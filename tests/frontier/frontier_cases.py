"""A small frontier, and what its tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medpfl.core.frontier import Frontier

SMALL: dict[str, Any] = {
    "model": "MLP(hidden=(6,), activation='sigmoid')",
    "defense": ["GaussianNoise(scale=geom(0.001, 10, 2))", "TopK(keep=0.5)"],
    "attack": ["iDLG(steps=3)"],
    "size": 16,
    "clients": 2,
    "rounds": 2,
    "batch_size": 2,
    "images": 4,
}
"""A few seconds."""


def small(data: Path | str, **options: Any) -> Frontier:
    """A small frontier with other options."""
    return Frontier(**{**SMALL, "data": str(data), **options})
