"""Leakage over a training: audits of the model after several rounds, on the same images."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medpfl.auditing.execution import shared_attacks
from medpfl.auditing.report import Report
from medpfl.auditing.run import AuditCase, case_of
from medpfl.core.atomic_files import remove_leftovers, write
from medpfl.core.errors import InputError
from medpfl.core.experiments.experiment import Experiment
from medpfl.core.experiments.groups import Criteria, Run, Victims
from medpfl.core.messages import SHARE_FOLDER
from medpfl.core.plan import Plan
from medpfl.core.roles import Attack, DataSource, Defense
from medpfl.core.threat import HONEST, ThreatModel
from medpfl.data.images import LabelledImages
from medpfl.inputs.checkpoint import Checkpoint, checkpoint_at, is_checkpoint
from medpfl.reporting.leakage import RoundCell
from medpfl.runs.directory import Kind, lines, share_folder
from medpfl.runs.folders import check_made, check_shared
from medpfl.runs.outlook import Outlook
from medpfl.training.report import accuracies_in

__all__ = ["Leakage", "foresee_leakage", "leakage", "perform_leakage", "rounds_in"]

_LEAKAGE = Kind("leakage", 1, ("leakage.jsonl", "leakage.json", "leakage.html", "leakage.pdf"))


@dataclass(frozen=True, eq=False)
class Leakage:
    """The audits by round.

    Attributes:
        reports: the audit of each round, in order.
        accuracies: the model's balanced accuracy after each round, on the training's test images or, without any, its
            validation images; ``None`` if unknown.
        pages: the overview pages; each audit has its own as well.
    """

    reports: dict[int, Report]
    accuracies: dict[int, float | None]
    pages: tuple[Path, ...] = ()

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The findings from all rounds, each with its ``round``."""
        return [{"round": n, **row.to_dict()} for n, report in self.reports.items() for row in report.rows]

    @property
    def summary(self) -> list[RoundCell]:
        """The cells from all rounds, each with its round and the model's balanced accuracy."""
        return [RoundCell(n, self.accuracies[n], cell) for n, report in self.reports.items() for cell in report.summary]

    def __str__(self) -> str:
        from medpfl.reporting.leakage import sentence

        return sentence(self.summary)


def leakage(  # noqa: PLR0913  (as `audit`)
    model: str | Path,
    data: str | Path | DataSource | LabelledImages,
    rounds: Sequence[int],
    *,
    attacks: Sequence[str | Attack] = (),
    defenses: Sequence[str | Defense] = (),
    plan: Plan = Experiment.plan,
    threat: ThreatModel = HONEST,
    victims: Victims = Experiment.victims,
    criteria: Criteria = Experiment.criteria,
    run: Run = Experiment.run,
) -> Leakage:
    """Audit a training's global model after several rounds. With ``run.out``, an interrupted call can be continued.

    All audits attack the same images under the same seeds. Each has its own run directory, such as ``OUT-round-5``
    beside ``run.out``, so the key to the images lies in none of them. The figure over rounds, which holds no image,
    and all rows go into ``share`` of ``run.out``.

    Args:
        model: the training's directory.
        rounds: numbers of the rounds to audit.
        data, attacks, defenses, plan, threat, victims, criteria, run: as in `medpfl.audit`.

    Raises:
        InputError: if `model` is no training, a round is missing, or `medpfl.audit` raises it.
    """
    models = _models(model, rounds, None if run.out is None else Path(run.out))
    # Passed on as given: an attack from a file runs in its own process, so none of its code may run here.
    case = AuditCase(model, data, attacks, defenses, plan, threat, None, victims, criteria, run)
    reports = {number: audit.report() for number, audit in _audits(case, models).items()}
    some = next(iter(models.values()))
    found = Leakage(reports, accuracies_in(some.path.parents[1], models))
    return found if run.out is None else replace(found, pages=_written(Path(run.out), found, some))


def _audits(case: AuditCase, models: Mapping[int, Checkpoint]) -> dict[int, AuditCase]:
    """Return the audit of each round; all have the same attacks."""
    out = None if case.run.out is None else Path(case.run.out)
    own = {n: replace(case, model=one, run=replace(case.run, out=_beside(out, n))) for n, one in models.items()}
    attacks = shared_attacks(list(own.values()))
    return {number: replace(audit, attacks=attacks) for number, audit in own.items()}


def perform_leakage(experiment: Experiment) -> Leakage:
    """Run `leakage` for an experiment given as strings and numbers."""
    asked = _checked(experiment)
    return leakage(
        asked.model,
        asked.data,
        rounds_in(asked.rounds or ""),
        attacks=asked.attack,
        defenses=asked.defense,
        plan=asked.plan,
        threat=asked.threat,
        victims=asked.victims,
        criteria=asked.criteria,
        run=asked.run,
    )


def foresee_leakage(experiment: Experiment) -> Outlook:
    """Return the plan of these audits; nothing is written."""
    asked = _checked(experiment)
    models = _models(asked.model, rounds_in(asked.rounds or ""), None if asked.run.out is None else Path(asked.run.out))
    audits = _audits(case_of(asked.having(rounds=None)), models)
    return Outlook.of((f"round {number}", audit.outlook()) for number, audit in audits.items())


def _models(model: str | Path, rounds: Sequence[int], out: Path | None) -> dict[int, Checkpoint]:
    """Return the model of each round; raise `InputError` if one is missing, or if `out` cannot hold the overview."""
    if not is_checkpoint(model):
        raise InputError(f"--rounds needs a training's directory as --model; '{model}' is not one")
    if not rounds:
        raise InputError("no rounds were given: name some, such as --rounds 0,1,5")
    if out is not None:
        check_made(out)
        check_shared(out / SHARE_FOLDER, _LEAKAGE.shared)
    return {number: checkpoint_at(Path(model), number) for number in dict.fromkeys(rounds)}


def _checked(asked: Experiment) -> Experiment:
    if asked.weights is not None:
        raise InputError("--weights does not go with --rounds: a training's directory holds its own weights")
    if asked.truth is not None:
        raise InputError("--truth does not go with --rounds: it names the images behind a recorded update")
    return asked


def rounds_in(text: str) -> list[int]:
    """Return the round numbers in a text such as ``"0,1,5"``.

    Raises:
        InputError: if the text has another form.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words):
        raise InputError(f"--rounds is {text!r}: give round numbers, such as 0,1,5")
    return [int(word) for word in words]


def _beside(out: Path | None, number: int) -> Path | None:
    return None if out is None else out.with_name(f"{out.name}-round-{number}")


def _written(out: Path, found: Leakage, model: Checkpoint) -> tuple[Path, ...]:
    from medpfl.reporting.leakage import write_leakage_page

    folder = share_folder(out, _LEAKAGE)
    remove_leftovers(folder)
    write(folder / "leakage.jsonl", lines(found.rows))
    write(folder / "leakage.json", json.dumps([one.to_dict() for one in found.summary], indent=1).encode())
    settings, *others = (report.settings for report in found.reports.values())
    settings = settings.shared_with(others)
    # Replace the first round's entries by those for all rounds.
    own = {"model": model.trained, "weights": f"trained, rounds {', '.join(map(str, found.reports))}"}
    settings = replace(settings, experiment={**settings.experiment, **own})
    return (write_leakage_page(folder, settings.to_dict(), found.summary),)
