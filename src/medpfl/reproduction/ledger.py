"""What a directory of tables was asked for, so that forms are not mixed and what is missing can be told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medpfl.core.atomic_files import remove_leftovers, write
from medpfl.core.errors import InputError
from medpfl.reproduction import experiments
from medpfl.reproduction.experiments import EXPERIMENTS, SAMPLES, SETS, Study
from medpfl.reproduction.outputs import Gap, panels_of, runs_of
from medpfl.reproduction.places import Places
from medpfl.reproduction.scale import Form
from medpfl.reproduction.task import Task, training_of
from medpfl.runs.directory import RUN, made
from medpfl.runs.study_key import KEY_FILE, key_file, move_out

__all__ = ["Claims"]

_STATE = "reproduction.json"


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
            InputError: nothing, or nothing that this version can read.
        """
        if not (out / _STATE).is_file():
            raise InputError(f"'{out}' holds no reproduction: it has no {_STATE}")
        try:
            found = json.loads((out / _STATE).read_text())
            forms = {name: {part: Form(**form) for part, form in own.items()} for name, own in found["parts"].items()}
            return cls(dict(found["sets"]), forms)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise InputError(f"'{out / _STATE}' is damaged, or of another version: name another --out") from None

    @classmethod
    def extend(cls, out: Path, chosen: Mapping[str, Study], places: Places, form: Form, force: bool) -> Claims:
        """Adds what is asked for to what was, on the disk too.

        Raises:
            InputError: a part was asked for in another form, or what is there cannot be read, unless `force`, which
                discards that; or no directory.
        """
        try:
            old = cls.read(out) if (out / _STATE).is_file() else cls({}, {})
        except InputError as error:
            if not force:
                raise InputError(f"{error}, or add --force") from None
            old = cls({}, {})
        for task in old.tasks():
            again = task.experiment in chosen and task.part in chosen[task.experiment].parts
            if again and task.form.settings() != form.settings():  # which leave out what the runs themselves compare
                _discard(task, out, force)
        new = {name: {part.name: form for part in own.parts} for name, own in chosen.items()}
        forms = {n: {**old.forms.get(n, {}), **new.get(n, {})} for n in EXPERIMENTS if n in new or n in old.forms}
        sets = {**old.sets, **dict.fromkeys(places.missing, False), **dict.fromkeys(places.found, True)}
        made(out)
        runs_of(out).mkdir(exist_ok=True)
        if not (runs_of(out) / RUN).exists():  # its runs keep their key beside it
            write(runs_of(out) / RUN, json.dumps({"identity": {"reproduction": 1}}).encode())
        move_out(runs_of(out) / KEY_FILE, key_file(runs_of(out)))
        for folder in (out, runs_of(out), panels_of(out)):
            remove_leftovers(folder)
        state: dict[str, Any] = {"sets": sets}
        state["parts"] = {n: {part: f.settings() for part, f in own.items()} for n, own in forms.items()}
        write(out / _STATE, json.dumps(state, indent=1).encode())
        return cls(sets, forms)

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
    for place in (run, training_of(run)):
        if (place / "run.json").is_file():
            shutil.rmtree(place)
    for panel in panels_of(out).glob(f"{run.name}*.png"):
        panel.unlink()
