"""Checks of all records before any attack: that each is right, and that they belong to one federation."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from itertools import combinations
from pathlib import Path
from typing import Any

from medpfl.auditing.records.recorded import read
from medpfl.core.errors import InputError, listed, private
from medpfl.core.experiments.settings import Json
from medpfl.core.messages import about
from medpfl.core.plan import Plan
from medpfl.core.records.record import Record
from medpfl.core.records.truth import digest_of
from medpfl.federation.folders import Entry
from medpfl.runs.cloak import Cloak
from medpfl.runs.study_key import Key

__all__ = ["Checks", "Facts", "Problems", "check_alike", "check_all", "facts_of", "labelled"]

_NAMED = 50
_MAY_DIFFER = ("local_images", "batch_size", "learning_rate", "sends")
"""Settings of a plan that differ between the sites and rounds of one federation."""


@dataclass(frozen=True)
class Facts:
    """A record's facts that are compared with other records'.

    Attributes:
        shapes: the shape of each parameter by name.
        image_shape: shape of the images, if known.
        plan: the plan that the client followed.
        defense: the stated defense.
        filters: texts of the filters that changed the update, in their order.
        clients: number of clients whose updates are averaged in it.
    """

    shapes: Mapping[str, tuple[int, ...]]
    image_shape: tuple[int, ...] | None
    plan: Plan
    defense: str | None
    filters: tuple[str, ...] = ()
    clients: int = 1

    @classmethod
    def of(cls, record: Record) -> Facts:
        """Return a record's facts; raise `InputError` if no plan describes its steps."""
        shapes = {name: tuple(t.shape) for name, t in record.weights.parameters.items()}
        plan = record.regular_plan()
        return cls(shapes, record.image_shape, plan, record.defense, record.filters, record.clients)


class Problems:
    """The wrong records, each with its cause."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}

    def add(self, entry: object, path: Path, error: InputError) -> None:
        """Note an error."""
        text = f"{error}".removeprefix("the record is wrong, so no attack was run: ")
        self.found[str(path)] = f"{entry} ('{private(path)}'): {text}"

    def raise_if_any(self, total: int) -> None:
        """Raise `InputError` with all problems, if there is one."""
        if self.found:
            why = "wrong or cannot be attacked as asked, so no attack was run"
            lines = listed(list(self.found.values()), _NAMED)
            some = "record is" if total == 1 else "records is" if len(self.found) == 1 else "records are"
            raise InputError(f"{len(self.found)} of {total} {some} {why}:{lines}")


def facts_of(path: Path) -> tuple[int | None, Facts]:
    """Return a record's round and facts; raise `InputError` if it cannot be read or attacked."""
    about(path.parent)
    record = read(path)
    return None if record.source is None else record.source.round, Facts.of(record)


def labelled(site: str, path: Path) -> str:
    """Return a record's site and, if the file can be read and tells it, its round: paths may be hidden."""
    with suppress(InputError):
        source = Record.load(path).source
        if source is not None and source.round is not None:
            return f"{site}, round {source.round}"
    return site


def _difference(one: Facts, other: Facts) -> str:
    """Return why two records do not belong together, or an empty text."""
    if one.shapes != other.shapes:
        names = sorted(one.shapes.items() ^ other.shapes.items())
        return f"they are of different models: '{names[0][0]}' has another name or shape"
    if one.image_shape != other.image_shape and None not in (one.image_shape, other.image_shape):
        return f"their images have different shapes: {one.image_shape} and {other.image_shape}"
    if one.clients != other.clients:
        return f"one is the mean of {one.clients} clients' updates, the other of {other.clients}"
    if one.defense != other.defense:
        return f"they state different defenses: {one.defense or 'none'} and {other.defense or 'none'}"
    if one.filters != other.filters:
        named = " and ".join(", ".join(facts.filters) or "none" for facts in (one, other))
        return f"different filters changed their updates: {private(named)}"
    changed = [
        f"{name} {getattr(one.plan, name)!r} and {getattr(other.plan, name)!r}"
        for name in one.plan.__dataclass_fields__
        if name not in _MAY_DIFFER and getattr(one.plan, name) != getattr(other.plan, name)
    ]
    sizes = sorted((one.plan, other.plan), key=lambda plan: plan.batch_size)
    if sizes[0].batch_size < sizes[1].batch_size and sizes[0].images > sizes[0].batch_size:
        changed.append(f"batch_size {sizes[0].batch_size} and {sizes[1].batch_size}")
    return f"their plans differ: {', '.join(changed)}" if changed else ""


def check_alike(facts: Mapping[Entry, Facts]) -> None:
    """Raise `InputError` unless all records belong to one federation."""
    for one, other in combinations(facts, 2):
        if why := _difference(facts[one], facts[other]):
            raise InputError(
                f"the records of {one} and of {other} cannot be one experiment, because {why}. Audit them apart, "
                "with one pattern for each"
            )


class Checks:
    """The checks of records, noted as they are made, and reused as long as all that they depend on is the same.

    Args:
        known: the checks that an earlier call noted, by name. Another party may have written them, so that one counts
            only with the seal of the study's key.
        basis: text that changes with everything on which a check depends besides the files.
        key: the study's key.
        cloak: replacement of private names in what is noted.
        note: function that writes all checks down.
    """

    def __init__(
        self, known: Mapping[str, Any], basis: str, key: Key, cloak: Cloak, note: Callable[[dict[str, Any]], Any]
    ) -> None:
        self.noted, self.basis, self.key, self.cloak, self.note = dict(known), basis, key, cloak, note

    def of(self, entry: Entry, check: Callable[[Entry], Json], say: Callable[[], Any]) -> Json:
        """Return a record's check: an earlier one if it still holds, else a new one.

        Args:
            entry: the record.
            check: function that checks it, and raises `InputError` if it is wrong.
            say: function that announces a new check.
        """
        told, files = self.noted.get(entry.name), _digest(entry)
        if files and isinstance(told, dict) and told.get("seal") == self._seal(files, told.get("check")):
            return told["check"]
        say()
        made = json.loads(json.dumps(self.cloak(check(entry))))
        self.noted[entry.name] = {"seal": self._seal(files, made) if files else "", "check": made}
        self.note(self.noted)
        return made

    def _seal(self, files: str, check: Any) -> str:
        return self.key.tag("check", json.dumps([self.basis, files, check], sort_keys=True))


def check_all(
    entries: Iterable[Entry],
    check: Callable[[Entry], Json],
    problems: Problems,
    checks: Checks,
    say: Callable[[str], Any],
) -> dict[str, Json]:
    """Check every record with its truth, and return the checks by name.

    Args:
        entries: the records.
        check: function that checks one, and raises `InputError` if it is wrong.
        problems: gets the wrong ones.
        checks: the checks that an earlier call made; gets the new ones.
        say: function that shows progress.
    """
    made = {}
    for place, entry in enumerate(entries, start=1):
        try:
            made[entry.name] = checks.of(entry, check, partial(say, f"check {place}: {entry}"))
        except InputError as error:
            problems.add(entry, entry.path, error)
    return made


def _digest(entry: Entry) -> str:
    """Return a digest of record and truth; an empty text if the truth is a folder, which is checked anew."""
    truths = [entry.truth] if isinstance(entry.truth, Path) else list(entry.truth or ())
    if not all(path.is_file() for path in truths):
        return ""
    return sha256(" ".join(map(digest_of, [entry.path, *truths])).encode()).hexdigest()
