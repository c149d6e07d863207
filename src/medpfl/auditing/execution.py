"""The course of every audit: read the images, check that it can work, run all unfinished jobs, and report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from medpfl.auditing.feasibility import Feasibility
from medpfl.auditing.forecast.budget import standard_attack
from medpfl.auditing.forecast.costs import announced, estimated
from medpfl.auditing.isolating import Isolation
from medpfl.auditing.jobs import jobs_of
from medpfl.auditing.player import Player
from medpfl.auditing.records.recorded import Recorded
from medpfl.auditing.report import Report, finish, read
from medpfl.auditing.scenario import Scenario
from medpfl.auditing.scoring import Scorer
from medpfl.auditing.settings import of_reading, settings_of
from medpfl.auditing.store import AUDIT, ROWS, check_claim, claimed
from medpfl.core.errors import InputError
from medpfl.core.experiments.groups import Reading, Run
from medpfl.core.experiments.settings import Json, Settings
from medpfl.core.messages import log, say
from medpfl.core.progress import phase
from medpfl.core.roles import Attack, DataSource
from medpfl.data.images import LabelledImages
from medpfl.inputs.parts import Found, data_of
from medpfl.inputs.standard import kept, standard
from medpfl.runs.cloak import Cloak
from medpfl.runs.directory import RunDirectory, check_outside, known_in, made, reading
from medpfl.runs.environment import versions
from medpfl.runs.identity import unchanged
from medpfl.runs.progress_bar import name_skipped, watching
from medpfl.runs.study_key import key_of, study_index

__all__ = ["Prepared", "checked", "executed", "feasible", "images_of", "shared_attacks"]


class Prepared(Protocol):
    """An audit that can be set up: of a model, or of a record."""

    @property
    def attacks(self) -> Sequence[str | Attack]:
        """The attacks that it names."""
        ...

    @property
    def run(self) -> Run:
        """Its run directory, device and so on."""
        ...

    def scene(self) -> AbstractContextManager[tuple[Any, ...]]:
        """Yield its scenario, its isolation, and more."""
        ...


def images_of(data: str | Path | DataSource | LabelledImages, reading: Reading, run: Run) -> Found:
    """Read the images, and report skipped files."""
    with phase("reading the images"):
        found = data_of(data, reading)
    name_skipped(found.images.skipped, found.images.notes)
    check_outside(None if run.out is None else Path(run.out), found.place)
    return found


def checked(scenario: Scenario, isolation: Isolation) -> Feasibility:
    """Return a scenario's checks, with any standard attack if it names none; raise `InputError` if one fails."""
    with phase("checking the model, attacks and defenses"):
        found = Feasibility(
            scenario if scenario.attacks else replace(scenario, attacks=isolation.as_these([standard()]))
        )
        found.check()
        return found


def feasible(
    scenario: Scenario, isolation: Isolation, also: Iterable[Path] | None = None
) -> tuple[Scenario, Feasibility]:
    """Return the scenario, with the standard attack if it names none, and its checks; `InputError` if one fails.

    Args:
        scenario, isolation: the audit.
        also: run directories of further audits with the same attack, which may hold its budget; ``None`` if there are
            no further audits.
    """
    found = checked(scenario, isolation)
    if not scenario.attacks:
        attack = standard_attack(found.scenario, also)
        found.scenario = replace(scenario, attacks=isolation.as_these([attack]))
    return found.scenario, found


def shared_attacks(audits: Sequence[Prepared]) -> Sequence[str | Attack]:
    """Return the attacks of several audits: those that they name, or the standard attack with one budget for all.

    A run directory of any of them may hold that budget; otherwise, the first audit decides it.
    """
    first = audits[0]
    if first.attacks:
        return first.attacks
    with first.scene() as (scenario, isolation, *_):
        outs = [Path(one.run.out) for one in audits if one.run.out is not None]
        also = outs if len(audits) > 1 else None
        return [repr(attack) for attack in feasible(scenario, isolation, also)[0].attacks]


def executed(
    scenario: Scenario, isolation: Isolation, place: str, check: Json | None = None, secret: str | None = None
) -> Report:
    """Check a scenario, run its unfinished jobs, and report; `check` is that of a record.

    If all of that was done before, the report is read from the run directory.
    """
    if (found := _finished(scenario, isolation, place, check)) is not None:
        return found
    scenario, tested = feasible(scenario, isolation)
    run = scenario.run
    out = None if run.out is None else Path(run.out)
    if out is not None:
        made(out)
    index = study_index(out, scenario.data, scenario.source, place, run.force, secret)
    scorer = Scorer(scenario.data, index, bool(scenario.label_shape), scenario.criteria.best_match)
    player = Player(scenario, scorer, tested.wrong_layer is not None)
    identity, jobs = scenario.identity(index), jobs_of(scenario)
    sizes = {job.key: job.rows for job in jobs}
    cloak = identity.cloak if out is not None else Cloak(None)
    with claimed(out, identity, sizes, run.force, cloak, run.numbers_only) as store:
        with phase("testing what the defenses disclose"):
            settings = isolation.added_to(settings_of(tested, player, check), scenario.attacks)
        store.note(settings=settings.to_dict(), jobs=[[*key, count] for key, count in sizes.items()])
        todo = [job for job in jobs if job.key not in store]
        done = sum(sizes.values()) - sum(job.rows for job in todo)
        costs = estimated(player, todo) if run.visible else None
        if costs is not None:
            announced(costs, jobs, todo)
        with (
            unchanged(scenario.code, store.directory),
            watching(sum(sizes.values()), done, run.visible, costs) as during,
        ):
            for job in todo:
                with during(job.key, job.rows):
                    store.add(job.key, *player(job))
                log(f"{job.key.attack} x {job.control or job.key.defense}: {job.rows} images done")
        with phase("judging, and writing the pages"):
            report = finish(store, Settings.of(store.cloak(settings.to_dict())), scenario.data.classes)
            if store.directory is not None:
                store.directory.note(reported=_reported(scenario, isolation, check, report.pages))  # the last step
            return report


def _finished(scenario: Scenario, isolation: Isolation, place: str, check: Json | None) -> Report | None:
    """Return the report of this audit's run if nothing is left to do or to write, and ``None`` otherwise.

    Then the run's identity and all that its pages say were the same, so what cannot work was refused by then.
    """
    run = scenario.run
    known = {} if run.out is None or run.force else known_in(Path(run.out))
    if run.out is None or not isinstance(known.get("reported"), dict):
        return None
    out, standard_one = Path(run.out), kept(known["identity"].get("attacks"))
    if not scenario.attacks and standard_one is not None:
        scenario = replace(scenario, attacks=isolation.as_these([standard_one]))
    with suppress(InputError, OSError):  # whatever it is, the whole way says it
        _ = scenario.code  # before any of it runs
        index = study_index(out, scenario.data, scenario.source, place, keep=False)
        directory = RunDirectory(out, AUDIT, scenario.identity(index))
        if not check_claim(directory, False, run.numbers_only):
            return None
        with phase("judging"), reading(out), directory.locked():
            key_of(out)  # like the lock, this removes what a killed process left
            pages = [out / name for name in known["reported"]["pages"]]
            if known["reported"] != _reported(scenario, isolation, check, pages) or not all(map(Path.is_file, pages)):
                return None
            store, report = read(out)
        if run.numbers_only or all(map(store.pictured, store.sizes)):
            if run.visible:
                say(f"all {len(store.sizes)} jobs are done already")
            return replace(report, pages=tuple(pages), classes=scenario.data.classes)
    return None


def _reported(scenario: Scenario, isolation: Isolation, check: Json | None, pages: Sequence[Path]) -> dict[str, Any]:
    """Return what a finished run notes last, and a repetition compares: what was reported, beyond its identity.

    That is a digest of all that settings say beyond the identity, a digest of the rows, and the names of the pages.
    """
    run, data = scenario.run, scenario.data
    asked = {
        "medpfl": versions()["medpfl"],
        "criteria": repr(scenario.criteria),
        "about": run.about(),
        "isolate": [run.isolate, *isolation.notes],
        "weights": scenario.weights is None,
        "data": [len(data), len(data.skipped), *of_reading(data)],
        "record": [check, *(d.unknown for d in scenario.defenses if isinstance(d, Recorded))],
    }
    out = Path(run.out or "")
    return {
        "asked": hashlib.sha256(json.dumps(asked, default=repr).encode()).hexdigest(),
        "rows": hashlib.sha256((out / ROWS).read_bytes()).hexdigest(),
        "pages": [page.relative_to(out).as_posix() for page in pages],
    }
