"""Runs the paper's experiments on the data sets that are there, and writes their tables."""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from medpfl.auditing.inputs import data_of
from medpfl.auditing.key import study_index
from medpfl.auditing.perform import perform
from medpfl.auditing.report import Report, reread
from medpfl.auditing.store import ROWS
from medpfl.core.errors import InputError, listed, nearest
from medpfl.core.files import write
from medpfl.reproduction.experiments import EXPERIMENTS, SAMPLES, SETS, Part, Study, study
from medpfl.reproduction.legacy import write_legacy
from medpfl.reproduction.modalities import features, keep
from medpfl.reproduction.outputs import Gap, of_version, panels_of, runs_of, write_tables
from medpfl.reproduction.pictures import write_pictures
from medpfl.reproduction.published import Published, read_published
from medpfl.reproduction.tables import Row, rows_of
from medpfl.reproduction.training import (
    ACCURACY_SET,
    Accuracies,
    accuracies,
    accuracy_data,
    defenses_in,
    known_accuracies,
    trained_here,
)

__all__ = ["Gap", "Reproduction", "remake", "reproduce"]

_STATE = "reproduction.json"


@dataclass(frozen=True)
class Reproduction:
    """What came of the experiments.

    Attributes:
        rows: one entry by experiment, set, part, attack and defense.
        gaps: what was not run.
        tables: the files written.
        legacy: page and picture on what the notebooks' scores do.
        pictures: panels of private images, beside the runs.
    """

    rows: list[Row]
    gaps: list[Gap]
    tables: tuple[Path, ...] = ()
    legacy: tuple[Path, ...] = ()
    pictures: tuple[Path, ...] = ()


class _Task(NamedTuple):
    experiment: str
    name: str
    part: Part

    @property
    def title(self) -> str:
        """Above its pictures."""
        return f"{self.part.name} on {self.name} ({self.experiment})"

    def out(self, root: Path) -> Path:
        """Beside the tables, not among them: the key to the study's indices lies beside its runs."""
        words = "".join(c if c.isalnum() else "-" for c in self.part.name.lower()).replace("--", "-")
        return runs_of(root) / f"{self.experiment}-{self.name}-{words}"


def reproduce(
    experiments: Sequence[str] = EXPERIMENTS,
    *,
    data: str | Path,
    out: str | Path,
    quick: bool = False,
    faithful: bool = False,
    sets: Mapping[str, str | Path] | None = None,
    weights: str | Path | None = None,
    published: str | Path | None = None,
    seed: int = 0,
    images: int | None = None,
    parts: Sequence[str] = (),
    force: bool = False,
    progress: bool = False,
) -> Reproduction:
    """The paper's experiments, each on every set of images that is there.

    Every audit has its own run directory under `out`, so a killed reproduction continues at the stack of images
    that it was at, when the same call is given again.

    Args:
        experiments: names, see `medpfl.reproduction.experiments.EXPERIMENTS`.
        data: the folder that holds the sets' folders ``melanoma``, ``brain_mri`` and ``covid_xray``; ``"samples"``:
            the embedded images in their place, which may be shown to everybody.
        out: where tables go; runs go into a folder of that name and ``-runs``, the key to study indices with them.
        quick: few images and steps, to see that it works; the numbers mean little.
        faithful: the notebooks' own settings where they differ from the corrected ones.
        sets: other folders for sets, by name.
        weights: of the trained ResNet-18; without them, one is trained briefly on each set, and the tables say so.
        published: a CSV file of published values, which go beside ours; see `medpfl.reproduction.published`.
        seed: of every random draw.
        images: to attack of each set, at least 1, in place of the experiments' own numbers.
        parts: names of parts of the experiments, as the tables show them in the column of attacks; none: all.
        force: discards what other settings left in the run directories.
        progress: shows progress bars on the terminal, or prints lines now and then.

    Raises:
        InputError: no such experiment or part, no set at all, or an `out` that holds another form of the study.
    """
    chosen = _chosen(experiments, parts)
    places = _places(Path(data), sets or {})
    theirs = _published(published, places)
    out = Path(out)
    if images is not None and images < 1:
        raise InputError(f"images is {images}: it must be at least 1")
    form = {"quick": quick, "faithful": faithful, "seed": seed, **({} if images is None else {"images": images})}
    _claim(out, form, force)
    words = _form(**form)
    gaps = [Gap("", name, "its folder is not there", False) for name in SETS if not {name, SAMPLES} & set(places)]
    rows: list[Row] = []
    pictures: list[Path] = []
    costs = {name: _accuracy(name, data, sets or {}, out, quick, seed, force, progress, gaps) for name in chosen}
    for task in _tasks(chosen, places, quick, faithful, images):
        if progress:
            print(f"{task.experiment}: {task.part.name} on {task.name}", file=sys.stderr)
        try:
            report = _audit(task, places[task.name], task.out(out), weights, seed, force, progress)
        except InputError as error:
            gaps.append(Gap(task.experiment, f"{task.part.name} on {task.name}", str(error), True))
            continue
        found = rows_of(task.experiment, task.name, task.part.name, words, report)
        rows += _with(costs[task.experiment], found)
        pictures += write_pictures(task.out(out), panels_of(out), task.title)
        write_tables(out, rows, gaps, theirs)  # after each audit: a reader need not wait for the last
    if not rows:
        raise InputError("nothing could be run:" + listed(list(map(str, gaps))))
    return Reproduction(rows, gaps, write_tables(out, rows, gaps, theirs), tuple(write_legacy(out)), tuple(pictures))


def remake(out: str | Path, published: str | Path | None = None, force: bool = False) -> Reproduction:
    """Tables, panels and the page on legacy scores again, from the rows of a reproduction's run directories.

    Raises:
        InputError: no reproduction, one without finished rows, rows of another version (unless `force`, which has
            the tables say so), or wrong published values.
    """
    out, theirs = Path(out), _published(published, (*SETS, SAMPLES))
    if not (out / _STATE).is_file():
        raise InputError(f"'{out}' holds no reproduction: it has no {_STATE}")
    state = json.loads((out / _STATE).read_text())
    rows: list[Row] = []
    gaps: list[Gap] = []
    pictures: list[Path] = []
    how = {name: state.get(name) for name in ("quick", "faithful", "images")}
    studies = {name: study(name) for name in EXPERIMENTS}
    costs = {name: known_accuracies(own, _accuracy_runs(out, name)) for name, own in studies.items()}
    for task in _tasks(studies, (*SETS, SAMPLES), **how):
        if (task.out(out) / ROWS).is_file():
            form = _form(**state) + of_version(task.out(out), force)
            found = rows_of(task.experiment, task.name, task.part.name, form, reread(task.out(out)))
            rows += _with(costs[task.experiment], found)
            pictures += write_pictures(task.out(out), panels_of(out), task.title)
        elif any(runs_of(out).glob(f"{task.experiment}-*")):
            gaps.append(Gap(task.experiment, f"{task.part.name} on {task.name}", "there are no rows of it", False))
    if not rows:
        raise InputError(f"'{out}' holds no finished rows yet: give the same command again, without --from")
    return Reproduction(rows, gaps, write_tables(out, rows, gaps, theirs), tuple(write_legacy(out)), tuple(pictures))


def _chosen(experiments: Sequence[str], parts: Sequence[str]) -> dict[str, Study]:
    """By name, the experiments with the parts that were asked for; those that have none of them are left out."""
    found = {name: study(name) for name in experiments}
    names = dict.fromkeys(part.name for each in found.values() for part in each.parts)
    if unknown := [part for part in parts if part not in names]:
        raise InputError(f"these experiments have no part '{unknown[0]}'; {nearest(unknown[0], list(names))}")
    return {name: chosen for name, each in found.items() if (chosen := each.only(parts)).parts}


def _with(costs: Accuracies, rows: list[Row]) -> list[Row]:
    """The rows with the accuracy that their defense leaves, where it is known."""
    return [{**row, **costs.get(row["defense"], {})} for row in rows]


def _accuracy_runs(out: Path, experiment: str) -> Path:
    return runs_of(out) / f"{experiment}-{ACCURACY_SET}-accuracy"


def _accuracy(
    name: str,
    data: str | Path,
    sets: Mapping[str, str | Path],
    out: Path,
    quick: bool,
    seed: int,
    force: bool,
    progress: bool,
    gaps: list[Gap],
) -> Accuracies:
    """What the defenses of an experiment cost in accuracy, if it asks for it and there is something to train on."""
    chosen = study(name)
    if not chosen.accuracy:
        return {}
    options = {**chosen.accuracy, **(chosen.accuracy_quick if quick else {})}
    what = f"accuracy on {ACCURACY_SET}"
    try:
        found = accuracy_data(Path(sets.get(ACCURACY_SET, Path(data) / ACCURACY_SET)).expanduser())
        if found is not None:
            return accuracies(chosen, found, _accuracy_runs(out, name), options, seed, force, progress)
        gaps.append(Gap(name, what, "its folder, with one .npz in it, is not there", False))
    except InputError as error:
        gaps.append(Gap(name, what, str(error), True))
    return {}


def _published(path: str | Path | None, sets: Any) -> list[Published]:
    if path is None:
        return []
    known = {name: {part.name: defenses_in(part) for part in study(name).parts} for name in EXPERIMENTS}
    return read_published(path, known, tuple(sets))


def _places(data: Path, sets: Mapping[str, str | Path]) -> dict[str, Path]:
    if str(data) == SAMPLES and not sets:
        return {SAMPLES: data}
    if unknown := sorted(set(sets) - {*SETS, ACCURACY_SET}):
        raise InputError(f"there is no set '{unknown[0]}' in the study: its sets are {', '.join(SETS)}")
    places = {name: Path(sets.get(name, data / name)).expanduser() for name in SETS}
    if missing := [name for name in places if name in sets and not places[name].is_dir()]:
        raise InputError(f"'{places[missing[0]]}', which stands for {missing[0]}, is no folder")
    found = {name: place for name, place in places.items() if place.is_dir()}
    if not found:
        raise InputError(f"'{data}' holds none of the folders {', '.join(SETS)}: other names are given by --sets")
    return found


def _form(quick: bool, faithful: bool, seed: int, images: int | None = None) -> str:
    words = [word for word, is_it in (("quick", quick), ("faithful", faithful)) if is_it]
    return f"{', '.join(words) or 'full'}, seed {seed}" + ("" if images is None else f", {images} images of each set")


def _claim(out: Path, settings: dict[str, Any], force: bool) -> None:
    """Keeps what the tables of a directory are of; an incomplete study of another form is not mixed with it."""
    path = out / _STATE
    if path.is_file() and json.loads(path.read_text()) != settings:
        if not force:
            raise InputError(f"'{out}' holds a reproduction with other settings: name another --out, or add --force")
        for name, run in itertools.product(EXPERIMENTS, runs_of(out).iterdir() if runs_of(out).is_dir() else ()):
            if run.name.startswith(f"{name}-") and (run / "run.json").is_file():
                shutil.rmtree(run)  # or tables would be made of both
        for panel in panels_of(out).glob("*.png"):
            panel.unlink()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out '{out}' cannot be made ({error.strerror}): name another one") from error
    write(path, json.dumps(settings).encode())


def _tasks(
    studies: Mapping[str, Study], places: Iterable[str], quick: bool, faithful: bool, images: int | None
) -> Iterator[_Task]:
    for experiment, chosen in studies.items():
        for part in chosen.parts:
            for name in places:
                yield _Task(experiment, name, part.under(quick, faithful, images))


def _audit(
    task: _Task, place: Path, out: Path, weights: str | Path | None, seed: int, force: bool, progress: bool
) -> Report:
    options = task.part.audit
    found = data_of(str(place), options.get("size", 32), options.get("fit", "crop"), options.get("channels"))
    held = found.images
    experiment = task.part.experiment(str(place), seed, len(held.classes), len(held))
    if task.part.needs_weights and weights is not None:
        experiment = experiment.model_copy(update={"weights": str(weights)})
    elif task.part.needs_weights:
        trained = trained_here(task.part, str(place), out.with_name(f"{out.name}-training"), seed, force, progress)
        experiment = experiment.model_copy(update={"model": str(trained)})
    report = perform(experiment, out, force, progress)
    if task.part.explained:
        keep(out, study_index(out, held, found.source, found.place).images, features(held.images))
    return report
