"""Repetitions of a finished audit, whose report is read from its run directory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from medpfl.auditing.isolating import Isolation
from medpfl.auditing.records.recorded import Recorded
from medpfl.auditing.report import Report, read
from medpfl.auditing.scenario import Scenario
from medpfl.auditing.settings import of_reading
from medpfl.auditing.store import AUDIT, ROWS, check_claim
from medpfl.core.errors import InputError
from medpfl.core.experiments.settings import Json
from medpfl.core.messages import say
from medpfl.core.progress import phase
from medpfl.inputs.standard import kept
from medpfl.runs.directory import RunDirectory, known_in, reading
from medpfl.runs.environment import versions
from medpfl.runs.study_key import key_of, study_index

__all__ = ["finished_report", "reported"]


def finished_report(scenario: Scenario, isolation: Isolation, place: str, check: Json | None) -> Report | None:
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
            if known["reported"] != reported(scenario, isolation, check, pages) or not all(map(Path.is_file, pages)):
                return None
            store, report = read(out)
        if run.numbers_only or all(map(store.pictured, store.sizes)):
            if run.visible:
                say(f"all {len(store.sizes)} jobs are done already")
            return replace(report, pages=tuple(pages), classes=scenario.data.classes)
    return None


def reported(scenario: Scenario, isolation: Isolation, check: Json | None, pages: Sequence[Path]) -> dict[str, Any]:
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
    with (out / ROWS).open("rb") as file:
        rows = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "asked": hashlib.sha256(json.dumps(asked, default=repr).encode()).hexdigest(),
        "rows": rows,
        "pages": [page.relative_to(out).as_posix() for page in pages],
    }
