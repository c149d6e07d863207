"""The view of a record, as ``medpfl inspect`` shows it. It holds no image and no path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["RecordView"]


@dataclass(frozen=True, kw_only=True)
class RecordView:
    """A record's contents, and the result of its check, in words.

    Attributes:
        verdict: ``right``, ``wrong`` or ``unverified``.
        finding: cause of a wrong record, and the remedy; else ``""``.
        difference: relative difference between the record and the nearest replay; ``None`` without a replay.
        contents: texts by heading.
        steps: the training steps, equal ones in one line.
        filtered: changes by the client's filters; none without a record from before them.
        facts: what was checked and agrees.
        open: what could not be verified.
    """

    verdict: Literal["right", "wrong", "unverified"]
    finding: str = ""
    difference: float | None = None
    contents: Mapping[str, str]
    steps: tuple[str, ...]
    filtered: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()
    open: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the view as a JSON object."""
        return asdict(self)
