"""One client's message under SecAgg+, as the server gets it: masked vectors, and the number of examples in clear."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from medpfl.core.errors import InputError
from medpfl.core.experiments.limits import IMAGES, check_whole, shortened
from medpfl.core.records.files import holds, opened, put
from medpfl.core.records.origin import Source

__all__ = ["MASKED", "Masked"]

MASKED = "medpfl-masked"
VERSION = 1


@dataclass(frozen=True, eq=False)
class Masked:
    """A masked message. It is no update: without the other clients' messages, its vectors are random integers.

    Attributes:
        vectors: masked vectors in the order of the message; the first holds the masked weight.
        weights: global weights that the server sent, by name or number.
        num_samples: number of examples that travels in clear beside them, if it does.
        source: the framework and the round.
    """

    vectors: tuple[Tensor, ...]
    weights: dict[str, Tensor]
    num_samples: int | None
    source: Source

    def save(self, path: str | Path) -> None:
        """Write the message as a safetensors file."""
        about = {
            "format": MASKED,
            "version": VERSION,
            "num_samples": self.num_samples,
            "source": dataclasses.asdict(self.source),
        }
        own = {f"masked/{i}": t for i, t in enumerate(self.vectors)}
        put(Path(path), MASKED, about, own | {f"parameter/{name}": t for name, t in self.weights.items()})

    @staticmethod
    def is_one(path: Path) -> bool:
        """Return True if a file's header says that it holds a masked message."""
        return holds(path, MASKED)

    @classmethod
    def load(cls, path: str | Path) -> Masked:
        """Read a masked message from a file.

        Raises:
            InputError: the file is no masked message, is damaged, or has another version.
        """
        about, tensors = opened(Path(path), MASKED, "masked message")
        if about.get("version") != VERSION:
            raise InputError(f"'{path}' has version {shortened(about.get('version'))}: this MedPFL reads {VERSION}")
        count = about.get("num_samples")
        if count is not None:
            check_whole("num_samples", count, 1, IMAGES)
        vectors = sorted((n for n in tensors if _number(n) is not None), key=lambda n: _number(n) or 0)
        weights = {n.removeprefix("parameter/"): t for n, t in tensors.items() if n.startswith("parameter/")}
        if len(vectors) + len(weights) < len(tensors) or not vectors:
            raise InputError(f"'{path}' is damaged: it holds {shortened(sorted(tensors))}")
        return cls(tuple(tensors[n] for n in vectors), weights, count, Source.from_dict(about.get("source")))


def _number(name: str) -> int | None:
    group, _, place = name.partition("/")
    return int(place) if group == "masked" and place.isascii() and place.isdecimal() else None
