"""A training's rows: one per round, with the global model's scores after it. Does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from medpfl.core.typed import typed

__all__ = ["Epsilons", "Round", "Scores"]

Epsilons = tuple[tuple[str, float], ...]
"""Epsilon by privacy unit (``"image"``, ``"patient"``, ``"client"``). Numbers of two units do not compare."""

Scores = dict[str, float | None]
"""``accuracy`` and ``balanced_accuracy`` with ``_low`` and ``_high``, ``auroc``, ``loss``; ``None``: undefined."""


@dataclass(frozen=True)
class Round:
    """One training round; round 0 is the model before training. It names no image, patient or class.

    Attributes:
        round: its number.
        clients: numbers of the clients that took part.
        images: number of images that they trained on together.
        scores: scores by set (``"validation"``, ``"test"``).
        update_norm: Euclidean norm of the global model's step.
        sent_norm: mean norm of the updates sent by clients.
        bytes_sent: bytes sent from all clients to the server, see `medpfl.federated.wire.wire_bytes`.
        epsilon: largest epsilon spent by a client over all rounds so far, for each privacy unit that the defense
            protects; ``None`` if none is promised or known.
        delta: delta at which epsilon is stated.
        seed, device, versions: what is needed to repeat the round.
        seconds, date: duration and date of the round.
    """

    __pydantic_config__: ClassVar[Any] = {"strict": True, "extra": "forbid"}

    round: int
    clients: tuple[int, ...]
    images: int
    scores: dict[str, Scores]
    update_norm: float
    sent_norm: float
    bytes_sent: int
    epsilon: Epsilons | None
    delta: float
    seed: int
    device: str
    versions: dict[str, str]
    seconds: float
    date: str

    def to_dict(self) -> dict[str, Any]:
        """Return the row as a JSON object."""
        return asdict(self)

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Round:
        """Return the row from a JSON object; raise `InputError` for an invalid field.

        Rows of earlier versions hold epsilon as a number: its unit is then ``""``, unknown.
        """
        spent = row.get("epsilon") if isinstance(row, Mapping) else None
        return typed(cls, {**row, "epsilon": (("", spent),)} if isinstance(spent, float) else row)
