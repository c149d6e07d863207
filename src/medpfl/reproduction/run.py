"""Runs the paper's experiments on the data sets that are there, and writes their tables."""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from medpfl.auditing.engine import versions
from medpfl.auditing.inputs import data_of, defenses_of
from medpfl.auditing.key import study_index
from medpfl.auditing.perform import perform
from medpfl.auditing.report import Report, reread
from medpfl.auditing.store import ROWS, read_rows
from medpfl.core.errors import InputError, listed
from medpfl.core.files import write
from medpfl.reproduction.experiments import EXPERIMENTS, SAMPLES, SETS, Part, study
from medpfl.reproduction.legacy import write_legacy
from medpfl.reproduction.modalities import KEPT, features, keep, kept, relations
from medpfl.reproduction.pictures import write_pictures
from medpfl.reproduction.published import Published, beside, read_published
from medpfl.reproduction.tables import Row, as_latex, as_markdown, as_table, rows_of

__all__ = ["Gap", "Reproduction", "remake", "reproduce"]

_STATE = "reproduction.json"


_NO_WEIGHTS = "--weights names the trained network's file; none was given"


class Gap(NamedTuple):
    """What was not run: of an experiment (``""``: of all), as the tables name it, and why, for the terminal only.

    `failed`: it was there to be run.
    """

    experiment: str
    what: str
    why: str
    failed: bool

    def __str__(self) -> str:
        return f"{self.what}: {self.why}"


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
        return _runs(root) / f"{self.experiment}-{self.name}-{words}"


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
        weights: of the trained ResNet-18; without them its parts are left out, and named.
        published: a CSV file of published values, which go beside ours; see `medpfl.reproduction.published`.
        seed: of every random draw.
        force: discards what other settings left in the run directories.
        progress: shows progress bars on the terminal.

    Raises:
        InputError: no such experiment, no set at all, or an `out` that holds another form of the study.
    """
    chosen = {name: study(name) for name in experiments}
    places = _places(Path(data), sets or {})
    theirs = _published(published, places)
    out = Path(out)
    _claim(out, {"quick": quick, "faithful": faithful, "seed": seed}, force)
    form = _form(quick, faithful, seed)
    gaps = [Gap("", name, "its folder is not there", False) for name in SETS if not {name, SAMPLES} & set(places)]
    rows: list[Row] = []
    pictures: list[Path] = []
    for task in _tasks(chosen, places, quick, faithful):
        if progress:
            print(f"{task.experiment}: {task.part.name} on {task.name}", file=sys.stderr)
        try:
            if task.part.needs_weights and weights is None:
                gaps.append(Gap(task.experiment, f"{task.part.name} on {task.name}", _NO_WEIGHTS, False))
                continue
            report = _audit(task, places[task.name], task.out(out), weights, seed, force, progress)
        except InputError as error:
            gaps.append(Gap(task.experiment, f"{task.part.name} on {task.name}", str(error), True))
            continue
        rows += rows_of(task.experiment, task.name, task.part.name, form, report)
        pictures += write_pictures(task.out(out), _panels(out), task.title)
        _write(out, rows, gaps, theirs)  # after each audit: a reader need not wait for the last
    if not rows:
        raise InputError("nothing could be run:" + listed(list(map(str, gaps))))
    return Reproduction(rows, gaps, _write(out, rows, gaps, theirs), tuple(write_legacy(out)), tuple(pictures))


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
    for task in _tasks(
        {name: study(name) for name in EXPERIMENTS}, (*SETS, SAMPLES), state["quick"], state["faithful"]
    ):
        if (task.out(out) / ROWS).is_file():
            form = _form(**state) + _of_version(task.out(out), force)
            rows += rows_of(task.experiment, task.name, task.part.name, form, reread(task.out(out)))
            pictures += write_pictures(task.out(out), _panels(out), task.title)
        elif any(_runs(out).glob(f"{task.experiment}-*")):
            gaps.append(Gap(task.experiment, f"{task.part.name} on {task.name}", "there are no rows of it", False))
    if not rows:
        raise InputError(f"'{out}' holds no finished rows yet: give the same command again, without --from")
    return Reproduction(rows, gaps, _write(out, rows, gaps, theirs), tuple(write_legacy(out)), tuple(pictures))


def _of_version(run: Path, force: bool) -> str:
    """What tables say of the rows of another version."""
    own = versions()["medpfl"]
    if not (other := sorted({row.versions.get("medpfl", "unknown") for row in read_rows(run / ROWS)} - {own})):
        return ""
    made = f"rows of MedPFL {', '.join(other)}"
    if not force:
        raise InputError(f"'{run}' holds {made}, and this is {own}: run again, or add --force to take them as they are")
    return f", {made}"


def _published(path: str | Path | None, sets: Any) -> list[Published]:
    if path is None:
        return []
    known = {
        name: {part.name: list(map(repr, defenses_of(part.audit.get("defense", ())))) for part in study(name).parts}
        for name in EXPERIMENTS
    }
    return read_published(path, known, tuple(sets))


def _places(data: Path, sets: Mapping[str, str | Path]) -> dict[str, Path]:
    if str(data) == SAMPLES and not sets:
        return {SAMPLES: data}
    if unknown := sorted(set(sets) - set(SETS)):
        raise InputError(f"there is no set '{unknown[0]}' in the study: its sets are {', '.join(SETS)}")
    places = {name: Path(sets.get(name, data / name)).expanduser() for name in SETS}
    if missing := [name for name in sets if not places[name].is_dir()]:
        raise InputError(f"'{places[missing[0]]}', which stands for {missing[0]}, is no folder")
    found = {name: place for name, place in places.items() if place.is_dir()}
    if not found:
        raise InputError(f"'{data}' holds none of the folders {', '.join(SETS)}: other names are given by --sets")
    return found


def _runs(out: Path) -> Path:
    return out.with_name(f"{out.name}-runs")


def _panels(out: Path) -> Path:
    return _runs(out) / "panels"


def _form(quick: bool, faithful: bool, seed: int) -> str:
    words = [word for word, is_it in (("quick", quick), ("faithful", faithful)) if is_it]
    return f"{', '.join(words) or 'full'}, seed {seed}"


def _claim(out: Path, settings: dict[str, Any], force: bool) -> None:
    """Keeps what the tables of a directory are of; an incomplete study of another form is not mixed with it."""
    path = out / _STATE
    if path.is_file() and json.loads(path.read_text()) != settings:
        if not force:
            raise InputError(f"'{out}' holds a reproduction with other settings: name another --out, or add --force")
        for name, run in itertools.product(EXPERIMENTS, _runs(out).iterdir() if _runs(out).is_dir() else ()):
            if run.name.startswith(f"{name}-") and (run / "run.json").is_file():
                shutil.rmtree(run)  # or tables would be made of both
        for panel in _panels(out).glob("*.png"):
            panel.unlink()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out '{out}' cannot be made ({error.strerror}): name another one") from error
    write(path, json.dumps(settings).encode())


def _tasks(studies: Mapping[str, Any], places: Any, quick: bool, faithful: bool) -> Iterator[_Task]:
    for experiment, chosen in studies.items():
        for part in chosen.parts:
            for name in places:
                yield _Task(experiment, name, part.under(quick, faithful))


def _audit(
    task: _Task, place: Path, out: Path, weights: str | Path | None, seed: int, force: bool, progress: bool
) -> Report:
    options = task.part.audit
    found = data_of(str(place), options.get("size", 32), options.get("fit", "crop"), options.get("channels"))
    held = found.images
    experiment = task.part.experiment(str(place), seed, len(held.classes), len(held))
    if task.part.needs_weights:
        experiment = experiment.model_copy(update={"weights": str(weights)})
    report = perform(experiment, out, force, progress)
    if task.part.explained:
        keep(out, study_index(out, held, found.source, found.place).images, features(held.images))
    return report


def _write(out: Path, rows: list[Row], gaps: list[Gap], theirs: list[Published]) -> tuple[Path, ...]:
    made = []
    for experiment in dict.fromkeys(row["experiment"] for row in rows):
        own = [row for row in rows if row["experiment"] == experiment]
        notes = [gap.what for gap in gaps if gap.experiment in ("", experiment)]
        text = as_markdown(study(experiment).title, study(experiment).source, own, notes)
        found = sorted(_runs(out).glob(f"{experiment}-*/{KEPT}"))
        if runs := {path.parent.name.split("-")[1]: path.parent for path in found}:
            rows_by_set = {name: list(read_rows(run / ROWS)) for name, run in runs.items()}
            text += "\n" + relations(rows_by_set, {name: kept(run) for name, run in runs.items()}) + "\n"
        if compared := beside(theirs, own):
            text += "\n" + compared
        for suffix, content in (("md", text), ("csv", as_table(own)), ("tex", as_latex(own))):
            made.append(write(out / f"{experiment}.{suffix}", content.encode()))
    return tuple(made)
