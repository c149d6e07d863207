"""Runs the paper's experiments on the available data sets, and writes their tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

from medpfl.core.errors import InputError, listed, nearest
from medpfl.core.experiments.groups import Run
from medpfl.core.progress import phase
from medpfl.reproduction import experiments as files
from medpfl.reproduction.accuracy import Accuracies, AccuracyRuns, defenses_in
from medpfl.reproduction.collection import Collection, Reproduction
from medpfl.reproduction.experiments import EXPERIMENTS, SAMPLES, SETS, Study
from medpfl.reproduction.ledger import Claims
from medpfl.reproduction.outputs import Gap
from medpfl.reproduction.places import ACCURACY_SET, Places
from medpfl.reproduction.published import Published, read_published
from medpfl.reproduction.scale import Form, Scale, Studies
from medpfl.reproduction.task import Task
from medpfl.runs.estimate import Pace
from medpfl.runs.outlook import Outlook

__all__ = ["Gap", "Reproduction", "foresee", "remake", "reproduce"]


def reproduce(
    experiments: Sequence[str] = EXPERIMENTS,
    *,
    data: str | Path,
    sets: Mapping[str, str | Path] | None = None,
    published: str | Path | None = None,
    parts: Sequence[str] = (),
    scale: Scale = Studies.scale,
    run: Run = Studies.run,
) -> Reproduction:
    """Run the paper's experiments on every available image set.

    Every audit has its own run directory under ``run.out``. Repeat the same call to continue a killed reproduction;
    at most one stack of images is redone. Calls for other parts, even in another form, may use the same directory; the
    tables then cover all of them.

    Args:
        experiments: names, see `medpfl.reproduction.experiments.EXPERIMENTS`.
        data: folder with the sets' folders ``melanoma``, ``brain_mri`` and ``covid_xray``; or ``"samples"`` for the
            embedded images, which anyone may see.
        sets: other folders for sets, by name.
        published: CSV file of published values for comparison, see `medpfl.reproduction.published`.
        parts: names of parts, as in the tables' attack column; empty for all.
        scale: how much of each part to run.
        run: seed, device and the like. Tables go into ``share`` of ``run.out``, panels of private images into
            ``private``, runs into ``runs``; the key to study indices lies beside ``run.out``.

    Raises:
        InputError: if an experiment or part is unknown, there is no set, or ``run.out`` holds a part in another form.
    """
    if run.out is None:
        raise InputError("a reproduction needs a directory for its runs and tables: set run=Run(out=...)")
    if (run.memory, run.isolate) != (Studies.run.memory, Studies.run.isolate):
        raise InputError("the experiments' files set the memory of a stack themselves: leave out memory and isolate")
    if run.numbers_only:
        raise InputError("a reproduction draws panels of images: leave out numbers_only, or audit each set by itself")
    chosen, wanted = _chosen(experiments, parts), Form(**vars(scale), seed=run.seed, device=run.device)
    places, out, force, progress = Places.among(Path(data), sets or {}), Path(run.out), run.force, run.visible
    theirs = _published(published, tuple(places.found))
    claims = Claims.extend(out, chosen, places, wanted, force)
    made = Collection(out, theirs, claims.gaps())
    for name in chosen:
        costs = AccuracyRuns(name, files.study(name), out)
        made.costs[name] = _accuracies(costs, places, wanted, force, progress, made.gaps)
    tasks = [task for task in claims.tasks() if task.experiment in chosen]
    todo = [t for t in tasks if t.part in chosen[t.experiment].parts and t.set in places.found]
    pace, done = Pace({"audit": len(todo)}, progress), 0
    for task in tasks:
        if task not in todo:
            made.reread(task, force=True)
            continue
        try:
            with pace.one("audit", f"{task.experiment}: {task}"):
                made.add(task, task.run(places.found[task.set], out, run))
        except InputError as error:
            made.gaps.append(Gap(task.experiment, str(task), f"{error}", True))
            continue
        done += 1
        made.tables()  # after each audit: a reader need not wait for the last
    if not done:
        raise InputError("nothing could be run:" + listed(list(map(str, made.gaps))))
    return made.whole()


def foresee(asked: Studies, sets: Mapping[str, Path]) -> Outlook:
    """Return a reproduction's plan, without the trainings of its networks; nothing is written.

    Raises:
        InputError: as in `reproduce`.
    """
    chosen = _chosen(asked.experiment or EXPERIMENTS, asked.part)
    form = Form(**vars(asked.scale), seed=asked.run.seed, device=asked.run.device)
    places, out = Places.among(Path(asked.data), sets), Path(asked.run.out or "")
    _published(asked.published, tuple(places.found))
    Claims.check(out, chosen, form, asked.run.force)
    parts = []
    for name, study in chosen.items():
        for part, own in product(study.parts, places.found):
            task = Task(name, part, own, form)
            with phase(f"{name}, {task}"):
                parts.append((f"{name}, {task}", task.outlook(places.found[own], out, asked.run.force)))
    notes = tuple(f"not run: {own}, because its folder is not there" for own in places.missing)
    return replace(Outlook.of(parts), notes=notes)


def remake(out: str | Path, published: str | Path | None = None, force: bool = False) -> Reproduction:
    """Write a reproduction's tables, panels and page on legacy scores again from its rows.

    Raises:
        InputError: if `out` holds no reproduction or no finished rows, published values are wrong, or rows come from
            another version (with `force`, the tables say so instead).
    """
    out, theirs = Path(out), _published(published, (*SETS, SAMPLES))
    claims = Claims.read(out)
    made = Collection(out, theirs, claims.gaps())
    made.costs = {name: AccuracyRuns(name, files.study(name), out).known() for name in claims.forms}
    for task in claims.tasks():
        made.reread(task, force)
    if not made.rows:
        raise InputError(f"'{out}' holds no finished rows yet: repeat the command without --from")
    return made.whole()


def _chosen(experiments: Sequence[str], parts: Sequence[str]) -> dict[str, Study]:
    """Return the experiments with the requested parts only; experiments without any are left out."""
    found = {name: files.study(name) for name in experiments}
    names = dict.fromkeys(part.name for each in found.values() for part in each.parts)
    if unknown := [part for part in parts if part not in names]:
        raise InputError(f"these experiments have no part '{unknown[0]}'; {nearest(unknown[0], list(names))}")
    return {name: chosen for name, each in found.items() if (chosen := each.only(parts)).parts}


def _accuracies(
    runs: AccuracyRuns, places: Places, form: Form, force: bool, progress: bool, gaps: list[Gap]
) -> Accuracies:
    """Return the accuracies under an experiment's defenses, if it asks for them and there are images to train on."""
    if not runs.study.accuracy:
        return {}
    what = f"accuracy on {ACCURACY_SET}"
    try:
        if (found := places.accuracy_file()) is not None:
            return runs.train(found, form, force, progress)
        if known := runs.known():  # an earlier call had the images
            return known
        gaps.append(Gap(runs.name, what, "its folder with one .npz file is missing", False))
    except InputError as error:
        gaps.append(Gap(runs.name, what, f"{error}", True))
    return {}


def _published(path: str | Path | None, sets: Sequence[str]) -> list[Published]:
    if path is None:
        return []
    known = {name: {part.name: defenses_in(part) for part in files.study(name).parts} for name in EXPERIMENTS}
    return read_published(path, known, sets)
