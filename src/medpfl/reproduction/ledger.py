"""What a directory of tables was asked for, so that forms are not mixed and what is missing can be told."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from medpfl.core.errors import InputError
from medpfl.reproduction import experiments
from medpfl.reproduction.experiments import EXPERIMENTS, SAMPLES, SETS, Study
from medpfl.reproduction.outputs import Gap, panels_of
from medpfl.reproduction.places import Places
from medpfl.reproduction.scale import Form
from medpfl.reproduction.task import Task, training_folder
from medpfl.runs.directory import Kind, RunDirectory, known_in, made, reading

__all__ = ["Claims"]

_TABLES = (f"{name}.{suffix}" for name in EXPERIMENTS for suffix in ("md", "csv", "tex"))
_REPRODUCTION = Kind("reproduction", 2, (*_TABLES, "legacy.md", "legacy.png", "panels/*.png"), rows=False)
"""From format 2 on, the runs lie inside, and what may be shared has a folder."""


@dataclass(frozen=True)
class Claims:
    """What was asked for, by one call or by several for the same directory.

    Attributes:
        sets: names of sets of images, and whether they were there.
        forms: of the parts, by experiment and part.
    """

    sets: dict[str, bool]
    forms: dict[str, dict[str, Form]]

    @classmethod
    def read(cls, out: Path) -> Claims:
        """What a directory says of itself.

        Raises:
            InputError: no reproduction, or one that this version cannot read.
        """
        with reading(out):
            found = RunDirectory(out, _REPRODUCTION).noted()
            parts = found.get("parts", {}).items()
            forms = {name: {part: Form(**form) for part, form in own.items()} for name, own in parts}
            return cls(dict(found.get("sets", {})), forms)

    @classmethod
    def extend(cls, out: Path, chosen: Mapping[str, Study], places: Places, form: Form, force: bool) -> Claims:
        """Adds what is asked for to what was, on the disk too.

        Raises:
            InputError: a part was asked for in another form, unless `force`, which discards that; or from
                `RunDirectory.claim`.
        """
        made(out)
        directory = RunDirectory(out, _REPRODUCTION)
        with directory.locked():
            directory.claim(force)
            claims = cls.read(out)._extended(out, chosen, places, form, force)
            forms = {n: {part: f.settings() for part, f in own.items()} for n, own in claims.forms.items()}
            directory.note(sets=claims.sets, parts=forms)
        return claims

    def _extended(self, out: Path, chosen: Mapping[str, Study], places: Places, form: Form, force: bool) -> Claims:
        for task in self.tasks():
            again = task.experiment in chosen and task.part in chosen[task.experiment].parts
            if again and task.form.settings() != form.settings():  # which leave out what the runs themselves compare
                _discard(task, out, force)
        new = {name: {part.name: form for part in own.parts} for name, own in chosen.items()}
        forms = {n: {**self.forms.get(n, {}), **new.get(n, {})} for n in EXPERIMENTS if n in new or n in self.forms}
        return Claims({**self.sets, **dict.fromkeys(places.missing, False), **dict.fromkeys(places.found, True)}, forms)

    def tasks(self) -> Iterator[Task]:
        """Every audit that was asked for, on the sets that were there, in the order of the tables."""
        for name, forms in self.forms.items():
            for part in experiments.study(name).parts:
                for own in (*SETS, SAMPLES):
                    if part.name in forms and self.sets.get(own):
                        yield Task(name, part, own, forms[part.name])

    def gaps(self) -> list[Gap]:
        """The sets that were not there."""
        return [Gap("", name, "its folder is not there", False) for name, found in self.sets.items() if not found]


def _discard(task: Task, out: Path, force: bool) -> None:
    """Removes the runs of a part in another form, or tables would be made of both."""
    if not force:
        raise InputError(
            f"'{out}' holds a reproduction with other settings ({task.part.name} of {task.experiment}: {task.form}): "
            "name another --out, or add --force"
        )
    run = task.out(out)
    for place in (run, training_folder(run)):
        if known_in(place):
            shutil.rmtree(place)
    for panel in panels_of(out).glob(f"{run.name}*.png"):
        panel.unlink()
