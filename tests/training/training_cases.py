"""Small trainings, and shared helpers for their tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from medpfl import Plan, Round, train
from medpfl.training.report import Trained
from tests.auditing.audit_cases import some_images
from tests.flat import flat

SMALL: dict[str, Any] = {
    "model": "MLP(hidden=(6,))",
    "plan": Plan("FedAvg", batch_size=4, learning_rate=0.2),
    "rounds": 3,
    "clients": 2,
}
"""A tenth of a second."""


def small(data: Any = None, **options: Any) -> Trained:
    """Run a small training on random images with other options."""
    return flat(train, data=some_images(24) if data is None else data, **{**SMALL, **options})


def plainly(rows: Sequence[Round]) -> list[dict[str, Any]]:
    """Return rows without the fields that may differ between runs."""
    return [{k: v for k, v in row.to_dict().items() if k not in ("seconds", "date")} for row in rows]
