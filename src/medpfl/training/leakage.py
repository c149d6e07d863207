"""Leakage over a training: an audit of the model of each of some rounds, on the same images, side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medpfl.auditing.report import Report
from medpfl.auditing.run import HONEST, audit
from medpfl.core.atomic_files import remove_leftovers, write
from medpfl.core.errors import InputError
from medpfl.core.experiments.experiment import STANDARD, Experiment
from medpfl.core.experiments.groups import Criteria, Run, Victims
from medpfl.core.plan import Plan
from medpfl.core.roles import Attack, DataSource, Defense
from medpfl.core.threat import ThreatModel
from medpfl.data.images import LabelledImages
from medpfl.inputs.checkpoint import Checkpoint, checkpoint_at, is_checkpoint
from medpfl.reporting.leakage import RoundCell
from medpfl.runs.directory import lines, share_folder
from medpfl.training.report import accuracies_in

__all__ = ["Leakage", "leakage", "perform_leakage", "rounds_in"]


@dataclass(frozen=True, eq=False)
class Leakage:
    """The audits by round.

    Attributes:
        reports: one for each round, in their order.
        accuracies: balanced accuracy of the model after each round, on the images that the training was judged by (its
            test images, if it has any); ``None`` where it is not known.
        pages: the files written beside those of the single audits.
    """

    reports: dict[int, Report]
    accuracies: dict[int, float | None]
    pages: tuple[Path, ...] = ()

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The findings of all rounds, each with its ``round``."""
        return [{"round": n, **row.to_dict()} for n, report in self.reports.items() for row in report.rows]

    @property
    def summary(self) -> list[RoundCell]:
        """The cells of all rounds, each with its round and the model's balanced accuracy."""
        return [RoundCell(n, self.accuracies[n], cell) for n, report in self.reports.items() for cell in report.summary]

    def __str__(self) -> str:
        from medpfl.reporting.leakage import sentence

        return sentence(self.summary)


def leakage(
    model: str | Path,
    data: str | Path | DataSource | LabelledImages,
    rounds: Sequence[int],
    *,
    attacks: Sequence[str | Attack] = STANDARD,
    defenses: Sequence[str | Defense] = (),
    plan: Plan = Experiment.plan,
    threat: ThreatModel = HONEST,
    victims: Victims = Experiment.victims,
    criteria: Criteria = Experiment.criteria,
    run: Run = Experiment.run,
) -> Leakage:
    """Audit the global model of some rounds of a training. With ``run.out``, it continues where it was stopped.

    The audits attack the same images, under the same seeds. Each has a run directory of its own, ``OUT-round-5``
    beside ``run.out``, so that the key to the images lies in none of them. The folder ``share`` of ``run.out`` gets the
    figure over rounds, which holds no image, and all rows.

    Args:
        model: the directory of a training.
        rounds: whose models are audited.
        data, attacks, defenses, plan, threat, victims, criteria, run: as in `medpfl.audit`.

    Raises:
        InputError: no training, a round that it has not, or what `medpfl.audit` raises.
    """
    if not is_checkpoint(model):
        raise InputError(f"--rounds needs the directory of a training as --model: '{model}' is none")
    if not rounds:
        raise InputError("no round was given: --rounds 0,1,5")
    models = {number: checkpoint_at(Path(model), number) for number in dict.fromkeys(rounds)}
    out = None if run.out is None else Path(run.out)
    # As they were given: an attack that is given by its file runs in a process of its own, and none of its code here.
    parts: dict[str, Any] = {"attacks": attacks, "defenses": defenses}
    scenario = parts | {"plan": plan, "threat": threat, "victims": victims, "criteria": criteria}
    reports = {n: audit(one, data, run=replace(run, out=_beside(out, n)), **scenario) for n, one in models.items()}
    some = next(iter(models.values()))
    found = Leakage(reports, accuracies_in(some.path.parents[1], models))
    return found if out is None else replace(found, pages=_written(out, found, some))


def perform_leakage(experiment: Experiment) -> Leakage:
    """Audit the rounds of a training that an experiment describes in strings and numbers; see `leakage`."""
    asked = experiment
    if asked.weights is not None:
        raise InputError("the weights of a training's rounds are in its directory: leave out --weights")
    if asked.truth is not None:
        raise InputError("truth goes with a record of an update; here, the data is the truth")
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


def rounds_in(text: str) -> list[int]:
    """Round numbers from ``"0,1,5"``.

    Raises:
        InputError: anything else.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words):
        raise InputError(f"--rounds is {text!r}: give numbers of rounds, such as 0,1,5")
    return [int(word) for word in words]


def _beside(out: Path | None, number: int) -> Path | None:
    return None if out is None else out.with_name(f"{out.name}-round-{number}")


def _written(out: Path, found: Leakage, model: Checkpoint) -> tuple[Path, ...]:
    from medpfl.reporting.leakage import write_leakage_page

    folder = share_folder(out)
    remove_leftovers(folder)
    write(folder / "leakage.jsonl", lines(found.rows))
    write(folder / "leakage.json", json.dumps([one.to_dict() for one in found.summary], indent=1).encode())
    settings = next(iter(found.reports.values())).settings
    # What is of all rounds in place of what is of the first.
    own = {"model": model.trained, "weights": f"of a training, rounds {', '.join(map(str, found.reports))}"}
    settings = replace(settings, experiment={**settings.experiment, **own})
    return (write_leakage_page(folder, settings.to_dict(), found.summary),)
