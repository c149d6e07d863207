"""One row of a training: a round, and how well the global model does after it. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from medpfl.core.typed import typed

__all__ = ["Round", "Scores"]

Scores = dict[str, float | None]
"""``accuracy`` and ``balanced_accuracy`` with ``_low`` and ``_high``, ``auroc``, ``loss``; ``None``: undefined."""


@dataclass(frozen=True)
class Round:
    """One round; round 0 is the model before training. Nothing in it names an image, a patient or a class.

    Attributes:
        round: its number.
        clients: numbers of those that took part.
        images: that they trained on, all together.
        scores: by set (``"validation"``, ``"test"``).
        update_norm: Euclidean norm of the step that the global model took.
        sent_norm: mean norm of what left a client.
        bytes_sent: from all clients to the server, see `medpfl.federated.wire.wire_bytes`.
        epsilon: spent by the client that spent most, over all rounds so far; ``None``: nothing is promised, or
            it is not known.
        delta: at this probability of failure.
        seed, device, versions: what it takes to make it again.
        seconds, date: of the round.
    """

    __pydantic_config__: ClassVar[Any] = {"strict": True, "extra": "forbid"}

    round: int
    clients: tuple[int, ...]
    images: int
    scores: dict[str, Scores]
    update_norm: float
    sent_norm: float
    bytes_sent: int
    epsilon: float | None
    delta: float
    seed: int
    device: str
    versions: dict[str, str]
    seconds: float
    date: str

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON holds it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Round:
        """The row back from JSON; raises `InputError` for a field of another type."""
        return typed(cls, row)
