"""Settings of an audit, as it was told them and found them out before its first row: a part of its ``run.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from medpfl.core.verdicts import TOLERANCE

__all__ = ["Json", "Settings"]

Json = Mapping[str, Any]
"""An object as JSON holds it: names with plain values, which a page prints as they are."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of an audit. No path, and no name of an image, a patient or a class is in them.

    Attributes:
        experiment: what was asked for.
        grants: what the adversary is granted; ``None`` where only the rows say.
        data: the images: ``source``, ``classes``, ``images``, ``shape``, ``patients``, ``skipped``.
        model: ``parameters`` and ``outputs``.
        versions: of the packages that rows depend on.
        device, seed, started: of the run.
        assumed: what the threat model takes for granted, in sentences.
        server_side: specs of the defenses of which a part acts only at the server.
        server_only: specs of the defenses of which no part acts at the client.
        notes: for the person who reads the page.
        disclosure: by spec of a defense, what playing it showed of what it discloses.
        privacy: by spec, the epsilon that is spent, in words.
        bounds: by spec, see `medpfl.auditing.bounds.bounds_of`.
        record: of a recorded update, its ``defense`` and its ``difference`` from what the truth gives.
        isolation: of attacks that run in a process of their own.
        tolerance: share of images below which a rate counts as no leak.
        command: that made the run.
    """

    experiment: Json = field(default_factory=dict)
    grants: tuple[str, ...] | None = None
    data: Json = field(default_factory=dict)
    model: Json = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    device: str | None = None
    seed: int | None = None
    started: str | None = None
    assumed: tuple[str, ...] = ()
    server_side: tuple[str, ...] = ()
    server_only: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    disclosure: Mapping[str, Json] = field(default_factory=dict)
    privacy: Mapping[str, str] | None = None
    bounds: Mapping[str, Json] | None = None
    record: Json | None = None
    isolation: Json | None = None
    tolerance: float = TOLERANCE
    command: str | None = None

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Settings:
        """Return the settings that JSON holds; what it lacks has its default, and what is unknown is left out."""
        own = {one.name: told[one.name] for one in fields(cls) if told.get(one.name) is not None}
        made: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in own.items()}
        return cls(**made)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON holds them, without those that are not known."""
        told = {one.name: getattr(self, one.name) for one in fields(self)}
        known = {name: value for name, value in told.items() if value is not None}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in known.items()}
