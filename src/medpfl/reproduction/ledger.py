"""A record of everything requested for a reproduction's directory, to keep forms apart and to find gaps."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from medpfl.core.errors import InputError
from medpfl.reproduction import experiments
from medpfl.reproduction.experiments import EXPERIMENTS, SAMPLES, SETS, Study
from medpfl.reproduction.outputs import REPRODUCTION, Gap, panels_of
from medpfl.reproduction.places import Places
from medpfl.reproduction.scale import Form
from medpfl.reproduction.task import Task, training_folder
from medpfl.runs.directory import RunDirectory, known_in, reading
from medpfl.runs.folders import made

__all__ = ["Claims"]


@dataclass(frozen=True)
class Claims:
    """The sets and parts requested so far, by one or several calls for the same directory.

    Attributes:
        sets: names of image sets, with true if the set was found.
        forms: the requested forms, by experiment and part.
    """

    sets: dict[str, bool]
    forms: dict[str, dict[str, Form]]

    @classmethod
    def read(cls, out: Path) -> Claims:
        """Read the claims stored in a directory.

        Raises:
            InputError: if it holds no reproduction, or one that this version cannot read.
        """
        with reading(out):
            found = RunDirectory(out, REPRODUCTION).noted()
            parts = found.get("parts", {}).items()
            forms = {name: {part: Form(**form) for part, form in own.items()} for name, own in parts}
            return cls(dict(found.get("sets", {})), forms)

    @classmethod
    def extend(cls, out: Path, chosen: Mapping[str, Study], places: Places, form: Form, force: bool) -> Claims:
        """Add new requests to the earlier ones, and store them.

        Raises:
            InputError: if a part was requested before in another form (`force` discards it instead), or
                `RunDirectory.claim` raises it.
        """
        made(out)
        directory = RunDirectory(out, REPRODUCTION)
        with directory.locked():
            directory.claim(force)
            claims = cls.read(out)._extended(out, chosen, places, form, force)
            forms = {n: {part: f.settings() for part, f in own.items()} for n, own in claims.forms.items()}
            directory.note(sets=claims.sets, parts=forms)
        return claims

    @classmethod
    def check(cls, out: Path, chosen: Mapping[str, Study], form: Form, force: bool) -> None:
        """Raise the `InputError` of `extend`; nothing is written."""
        if RunDirectory(out, REPRODUCTION).check(force) and not force:
            for task in cls.read(out).tasks():
                if _replaces(task, chosen, form):
                    _refuse(task, out)

    def _extended(self, out: Path, chosen: Mapping[str, Study], places: Places, form: Form, force: bool) -> Claims:
        for task in self.tasks():
            if _replaces(task, chosen, form):
                _discard(task, out, force)
        new = {name: {part.name: form for part in own.parts} for name, own in chosen.items()}
        forms = {n: {**self.forms.get(n, {}), **new.get(n, {})} for n in EXPERIMENTS if n in new or n in self.forms}
        return Claims({**self.sets, **dict.fromkeys(places.missing, False), **dict.fromkeys(places.found, True)}, forms)

    def tasks(self) -> Iterator[Task]:
        """Yield every requested audit on the sets that were found, in table order."""
        for name, forms in self.forms.items():
            for part in experiments.study(name).parts:
                for own in (*SETS, SAMPLES):
                    if part.name in forms and self.sets.get(own):
                        yield Task(name, part, own, forms[part.name])

    def gaps(self) -> list[Gap]:
        """Return a gap for each missing set."""
        return [Gap("", name, "its folder is not there", False) for name, found in self.sets.items() if not found]


def _replaces(task: Task, chosen: Mapping[str, Study], form: Form) -> bool:
    """Return True if a task was requested before, and is now in another form."""
    again = task.experiment in chosen and task.part in chosen[task.experiment].parts
    return again and task.form.settings() != form.settings()  # the runs compare device and weights themselves


def _refuse(task: Task, out: Path) -> None:
    raise InputError(
        f"'{out}' holds a reproduction with other settings ({task.part.name} of {task.experiment}: {task.form}): "
        "name another --out, or add --force to discard it"
    )


def _discard(task: Task, out: Path, force: bool) -> None:
    """Remove a part's runs in another form, so that tables do not mix forms."""
    if not force:
        _refuse(task, out)
    run = task.out(out)
    for place in (run, training_folder(run)):
        if known_in(place):
            shutil.rmtree(place)
    for panel in panels_of(out).glob(f"{run.name}*.png"):
        panel.unlink()
