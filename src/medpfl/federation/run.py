"""Audits of a federation's records, site by site and round by round, as one experiment that survives a kill."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from medpfl.auditing.execution import shared_attacks
from medpfl.auditing.records.run import RecordCase, RecordOptions, record_options
from medpfl.auditing.report import reread
from medpfl.core.errors import InputError, private
from medpfl.core.experiments.experiment import Experiment
from medpfl.core.experiments.limits import shortened
from medpfl.core.experiments.settings import Json
from medpfl.core.experiments.signatures import taking
from medpfl.core.messages import counted, say
from medpfl.federation.basis import basis_of
from medpfl.federation.checks import Checks, Facts, Problems, check_alike, check_all, facts_of, labelled
from medpfl.federation.folders import MEAN, NAME, SITE, Entry, Files, entries, files_at, sites_of, truth_of
from medpfl.federation.result import FEDERATION, Audited, Federation, written
from medpfl.inputs.spelling import path_of
from medpfl.runs.cloak import Cloak
from medpfl.runs.directory import RUNS, RunDirectory, known_in, reading
from medpfl.runs.estimate import Pace
from medpfl.runs.folders import made
from medpfl.runs.identity import Code, Identity
from medpfl.runs.outlook import Outlook
from medpfl.runs.study_key import Key, key_of

__all__ = ["audit_federation", "foresee_federation", "perform_federation", "remake"]

_WITHOUT = re.compile(rf"(?:{SITE.pattern}|{MEAN})(?:, round [0-9]{{1,6}})?")
_ONLY_MASKED = (
    "there are only masked messages of secure aggregation ({}): alone, each is random numbers, and no attack was run. "
    "The server learns their mean: record the global model before and after the round (docs/federation.md)"
)


@dataclass(frozen=True)
class _Records:
    """The first argument of `FederationCase`, before its options."""

    records: str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class FederationCase(RecordOptions, _Records):
    """The records of a federation, and how to audit them.

    Attributes:
        records, truth: as in `audit_federation`.
    """

    truth: str | Path | None = field(default=None, kw_only=True)

    def of(self, entry: Entry, out: Path | None = None) -> RecordCase:
        """Return the audit of one record, with its own run directory in `out`."""
        assert entry.truth is not None
        run = replace(self.run, out=None if out is None else out / RUNS / entry.name)
        return RecordCase(entry.path, entry.truth, **{**self.options(), "run": run})


@taking(FederationCase)
def audit_federation(case: FederationCase) -> Federation:
    """Audit the records of several sites and rounds as one experiment.

    All records are checked before any attack. Each is then audited as by `medpfl.audit_record`, in a run directory of
    its own in ``run.out``. Repeat the same call to continue a killed one, or to add rounds.

    Args:
        records: a pattern such as ``"updates/site-*/round-*.safetensors"``, a folder that holds records, or a list of
            these. The folder of a record is its site.
        model: as in `medpfl.audit`; the records hold its weights.
        truth: folder with one truth for each site, see docs/federation.md; without it, the truth files in
            ``private-truth`` beside the records. Records without truth are left out, and counted.
        attacks, defenses, threat, reading, criteria, run: as in `medpfl.audit_record`.

    Raises:
        InputError: a record is wrong (the message names all), records do not belong together, or there is none to
            audit; raised before any attack runs.
    """
    files, place, run = files_at(case.records), None if case.truth is None else path_of(case.truth), case.run
    _check_places(files, place)
    if run.out is None:
        secret = secrets.token_hex(16)
        todo = _prepared(files, place, case, Key(secret), None)
        return _found(todo, _audits(todo, case, secret=secret))
    out = Path(run.out)
    made(out)
    key = key_of(out, run.force)
    directory = _directory(case, out, key)
    with directory.locked():
        directory.claim(run.force)
        todo = _prepared(files, place, case, key, directory)
        directory.note(**todo.to_dict())
        return written(out, _found(todo, _audits(todo, case, out)))


def _directory(case: FederationCase, out: Path, key: Key) -> RunDirectory:
    """Return the run directory of a federation's audits."""
    told = {**case.criteria.told(), **case.run.told()}
    options = {**told, "threat": repr(case.threat), "tolerance": case.criteria.tolerance}
    return RunDirectory(out, FEDERATION, Identity(options, Code.of(tuple), key))


def perform_federation(experiment: Experiment) -> Federation:
    """Run `audit_federation` for an experiment given as strings and numbers."""
    asked = _checked(experiment)
    return audit_federation(asked.data, truth=asked.truth, **record_options(asked))


def foresee_federation(experiment: Experiment) -> Outlook:
    """Return the plan of a federation's audits, after a check of all records; nothing is written."""
    asked = _checked(experiment)
    truth = None if asked.truth is None else path_of(asked.truth)
    files = files_at(asked.data)
    _check_places(files, truth)
    case = FederationCase(asked.data, truth=asked.truth, **record_options(asked))
    out, force = None if case.run.out is None else Path(case.run.out), case.run.force
    key = Key(secrets.token_hex(16)) if out is None else key_of(out, force, keep=False)
    if out is not None:
        _directory(case, out, key).check(force)
    todo = _prepared(files, truth, case, key, None)
    return Outlook.of((str(one), audit.outlook()) for one, audit in _cases(todo, case, out))


def _checked(asked: Experiment) -> Experiment:
    if asked.weights is not None:
        raise InputError("records hold the clients' initial weights: leave out --weights")
    if asked.rounds is not None:
        raise InputError("--rounds goes with the run directory of a training: to audit some rounds, name their records")
    if asked.realism:
        raise InputError("--realism needs images: records hold updates, whose assumptions cannot be dropped")
    return asked


def remake(out: Path) -> Federation:
    """Write a finished federation's page and tables again from its rows.

    Raises:
        InputError: `out` holds no federation, or an unfinished one.
    """
    with reading(out):
        noted = RunDirectory(out, FEDERATION).noted_as(_Noted)
        told = [Audited(site, number, name, reread(out / RUNS / name)) for site, number, name in noted.records]
        found = Federation(tuple(told), tuple(noted.without_truth), noted.masked, noted.clients)
        return written(out, found)


@dataclass(frozen=True)
class _Noted:
    """The parts of ``run.json`` behind the page, which another party may have written.

    Raises:
        InputError: a text does not have the form that MedPFL writes.
    """

    records: tuple[tuple[str, int | None, str], ...]
    without_truth: tuple[str, ...]
    masked: int
    clients: int

    def __post_init__(self) -> None:
        for site, _, name in self.records:
            if not (SITE.fullmatch(site) or site == MEAN) or not NAME.fullmatch(name):
                raise InputError(f"{shortened(name)} of {shortened(site)} is no name of a record")
        if wrong := [text for text in self.without_truth if not _WITHOUT.fullmatch(text)]:
            raise InputError(f"{shortened(wrong[0])} is no name of a record")
        if not self.records or self.masked < 0 or self.clients < 1:
            raise InputError("it counts no record, or fewer than none")


@dataclass(frozen=True)
class _Todo:
    """The records to audit, with their checks, and what was left out."""

    entries: list[Entry]
    checks: dict[str, Json]
    without_truth: tuple[str, ...]
    masked: int
    clients: int

    def to_dict(self) -> dict[str, Any]:
        """Return the notes for ``run.json``; they name no file and no folder."""
        return {
            "records": [[one.site, one.round, one.name] for one in self.entries],
            "without_truth": list(self.without_truth),
            "masked": self.masked,
            "clients": self.clients,
        }


def _found(todo: _Todo, records: Sequence[Audited]) -> Federation:
    return Federation(tuple(records), todo.without_truth, todo.masked, todo.clients)


def _check_places(files: Files, truth: Path | None) -> None:
    """Raise `InputError` if there are only masked messages, or no folder of truths, before anything is written."""
    if not files.records:
        raise InputError(_ONLY_MASKED.format(len(files.masked)))
    if truth is not None and not truth.is_dir():
        raise InputError(
            f"--truth '{private(truth)}' is no folder: for several records, name a folder with one truth each"
        )


def _prepared(
    files: Files, truth: Path | None, case: FederationCase, key: Key, directory: RunDirectory | None
) -> _Todo:
    """Check all records, and return those to audit; what is found meanwhile is noted in the directory.

    Raises:
        InputError: as in `audit_federation`.
    """
    note: Callable[[str], Any] = say if case.run.visible else lambda _: None
    problems, held = Problems(), dict[Path, tuple[int | None, Facts]]()
    sites = _named_sites(files, case, key, directory)
    for path in files.records:
        try:
            held[path] = facts_of(path)
        except InputError as error:
            problems.add(labelled(sites[path.parent], path), path, error)
    of_means = {path for path, (_, facts) in held.items() if facts.clients > 1}
    named = {path: MEAN if path in of_means else sites[path.parent] for path in held}
    every = entries({path: number for path, (number, _) in held.items()}, named)
    every = [replace(one, truth=truth_of(one, truth, held[one.path][1].clients)) for one in every]
    if every:
        check_alike({one: held[one.path][1] for one in every})
    whole, bare = [one for one in every if one.truth], [one for one in every if not one.truth]
    checks = check_all(whole, lambda one: case.of(one).check(), problems, _checks(case, key, directory), note)
    problems.raise_if_any(len(files.records))
    if bare:
        say(f"note: {_without(bare, len(every))}")
    if not whole:
        raise InputError(f"no record can be audited: {_without(bare, len(every))}")
    if files.masked:
        say(f"note: {counted(len(files.masked), 'masked message')} left out: alone, each is random numbers")
    return _Todo(whole, checks, tuple(map(str, bare)), len(files.masked), held[whole[0].path][1].clients)


def _named_sites(files: Files, case: FederationCase, key: Key, directory: RunDirectory | None) -> dict[Path, str]:
    """Return the name under which each folder of records is shown, and note it, so that later calls use it too."""
    known = {
        tag: name
        for tag, name in _noted(directory, "sites").items()
        if isinstance(name, str) and SITE.fullmatch(name)  # it becomes part of a path
    }
    sites = sites_of((path.parent for path in files.records), known, key)
    if directory is not None:
        directory.note(sites={**known, **dict(sites.values())})
    for folder, (_, name) in sites.items() if case.run.visible else ():
        if folder.name != name:
            say(f"{name}: '{private(folder)}'")
    return {folder: name for folder, (_, name) in sites.items()}


def _noted(directory: RunDirectory | None, name: str) -> dict[str, Any]:
    found = None if directory is None else known_in(directory.path).get(name)
    return found if isinstance(found, dict) else {}


def _checks(case: FederationCase, key: Key, directory: RunDirectory | None) -> Checks:
    """Return the checks that an earlier call made; none if the call is to begin anew."""
    if directory is None:
        return Checks({}, "", key, Cloak(None), lambda _: None)
    known = {} if case.run.force else _noted(directory, "checks")
    cloak = Cloak(key, (*case.attacks, *case.defenses))
    return Checks(known, basis_of(case, key), key, cloak, lambda checks: directory.note(checks=checks))


def _without(bare: Sequence[Entry], total: int) -> str:
    named = ", ".join(f"{one} ('{private(one.path)}')" for one in bare[:5]) + ("" if len(bare) <= 5 else ", ...")
    have = f"{counted(total, 'record')} {'has' if len(bare) == 1 else 'have'} no truth"
    return (
        f"{len(bare)} of {have}, so they can be neither verified nor attacked: {named}. A truth file has its record's "
        "name and lies in private-truth beside it, or in the folder of the site in --truth DIR"
    )


def _audits(todo: _Todo, case: FederationCase, out: Path | None = None, secret: str | None = None) -> list[Audited]:
    pace, found = Pace({"audit": len(todo.entries)}, case.run.visible), []
    for entry, audit in _cases(todo, case, out):
        with pace.one("audit", f"audit of {entry}"):
            report = audit.report(todo.checks[entry.name], secret)
        found.append(Audited(entry.site, entry.round, entry.name, report))
    return found


def _cases(todo: _Todo, case: FederationCase, out: Path | None) -> list[tuple[Entry, RecordCase]]:
    """Return the audit of each record; all have the same attacks."""
    audits = [case.of(entry, out) for entry in todo.entries]
    attacks = shared_attacks(audits)
    return [(entry, replace(audit, attacks=attacks)) for entry, audit in zip(todo.entries, audits, strict=True)]
