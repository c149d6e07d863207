"""An audit's settings, given or determined before its first row, as stored in ``run.json``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from medpfl.core.verdicts import TOLERANCE

__all__ = ["Json", "Settings", "common"]

Json = Mapping[str, Any]
"""A JSON object: names with plain values, which a page prints unchanged."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """An audit's settings. They contain no path, and no name of an image, a patient or a class.

    Attributes:
        experiment: the options.
        grants: the attacker's grants; ``None`` if only the rows state them.
        not_run: MedPFL's attacks that were not run: ``suited`` to this model, ``others`` that accept it, and ``unfit``.
        data: the images: ``source``, ``classes``, ``images``, ``shape``, ``patients``, ``skipped``.
        model: ``parameters``, ``outputs``, ``batch_norm_layers`` (those that keep statistics) and ``dropout_layers``.
        versions: versions of packages on which rows depend.
        device, seed, started: the run's device, seed and start time.
        engine: where its jobs ran, in words.
        assumed: the threat model's assumptions, in sentences.
        server_side: specs of the defenses with a part acting only at the server.
        server_only: specs of the defenses with no part acting at the client.
        notes: notes for the reader of the page.
        gaps: jobs that could not be done, since their worker ended each time: a job's key, ``images`` and ``why``.
        disclosure: by defense spec, the result of probing its disclosure.
        about: what the maker stated, see `medpfl.core.experiments.groups.About`.
        privacy: by defense spec, the epsilon spent, in words.
        bounds: by defense spec, see `medpfl.auditing.privacy.bounds.bounds_of`.
        record: a recorded update's ``defense``, and its ``difference`` from the update computed on the true images.
        isolation: how attacks in a separate process are isolated.
        tolerance: share of images below which a rate counts as no leak.
        command: the command that made the run.
    """

    experiment: Json = field(default_factory=dict)
    grants: tuple[str, ...] | None = None
    not_run: Mapping[str, Any] = field(default_factory=dict)
    data: Json = field(default_factory=dict)
    model: Json = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    device: str | None = None
    engine: str | None = None
    seed: int | None = None
    started: str | None = None
    assumed: tuple[str, ...] = ()
    server_side: tuple[str, ...] = ()
    server_only: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    gaps: tuple[Json, ...] = ()
    disclosure: Mapping[str, Json] = field(default_factory=dict)
    about: Mapping[str, str] = field(default_factory=dict)
    privacy: Mapping[str, str] | None = None
    bounds: Mapping[str, Json] | None = None
    record: Json | None = None
    isolation: Json | None = None
    tolerance: float = TOLERANCE
    command: str | None = None

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Settings:
        """Return settings from JSON. Missing fields get their default, and unknown ones are ignored."""
        own = {one.name: told[one.name] for one in fields(cls) if told.get(one.name) is not None}
        made: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in own.items()}
        return cls(**made)

    def shared_with(self, others: Iterable[Settings]) -> Settings:
        """Return the settings without facts on model, data and machine that differ in other settings."""
        every = [self, *others]
        same: dict[str, Any] = {name: common([getattr(one, name) for one in every]) for name in _FACTS}
        single = {n: getattr(self, n) for n in _SINGLE if all(getattr(o, n) == getattr(self, n) for o in every)}
        return replace(self, **same, **(dict.fromkeys(_SINGLE) | single))

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as a JSON object, without those that are ``None``."""
        told = {one.name: getattr(self, one.name) for one in fields(self)}
        known = {name: value for name, value in told.items() if value is not None}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in known.items()}


_FACTS = ("data", "model", "versions", "about")
_SINGLE = ("device", "engine", "seed")


def common(told: Sequence[Json]) -> Json:
    """Return the entries that are the same in several JSON objects.

    >>> common([{"a": 1, "b": 2}, {"a": 1, "b": 3}, {"a": 1}])
    {'a': 1}
    """
    first, *others = told
    return {name: value for name, value in first.items() if all(name in o and o[name] == value for o in others)}
