"""Federated training: runs all rounds, continuing where an earlier call stopped, and reports."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import reduce
from operator import or_
from pathlib import Path
from time import monotonic
from typing import Any

from torch import nn

from medpfl.auditing.forecast.plan import peak
from medpfl.core.errors import InputError
from medpfl.core.experiments.groups import Cohort, Run
from medpfl.core.experiments.schedule import Schedule
from medpfl.core.experiments.training import Training
from medpfl.core.messages import log
from medpfl.core.plan import Plan
from medpfl.core.progress import phase
from medpfl.core.roles import NO_DEFENSE, DataSource, Defense, Model
from medpfl.data.images import LabelledImages
from medpfl.engines.choice import described, engine_of, ready, workers_of
from medpfl.engines.engine import Inline
from medpfl.engines.threads import threads
from medpfl.inputs.parts import defenses_of, model_of, partition_of
from medpfl.runs.directory import RunDirectory
from medpfl.runs.environment import device_of
from medpfl.runs.folders import check_made, check_outside, made
from medpfl.runs.identity import unchanged
from medpfl.runs.outlook import Outlook, Step
from medpfl.runs.progress_bar import name_skipped, rounds_of
from medpfl.runs.pulse import pulsing
from medpfl.runs.study_key import study_index
from medpfl.training.report import Trained, trained, training_settings
from medpfl.training.setup import TrainingSetup
from medpfl.training.splits import splits_of
from medpfl.training.store import TRAINING, TrainingStore, training_in, whole_rounds
from medpfl.training.trainer import Trainer
from medpfl.training.work import ClientWork

__all__ = ["OF_ATTACKS", "foresee", "perform_training", "train"]

OF_ATTACKS = ("memory", "isolate", "numbers_only")
"""Options of a run that a training does not have."""

WORK = (ClientWork.__module__, "torch._dynamo")
"""Modules that workers import; torch imports the second with its first derivative, which takes seconds."""


def train(
    model: str | Model | nn.Module = Training.model,
    data: str | Path | DataSource | LabelledImages = Training.data,
    *,
    defense: str | Defense | Sequence[str | Defense] = (),
    plan: Plan = Training.plan,
    schedule: Schedule = Training.schedule,
    cohort: Cohort = Training.cohort,
    weights: str | Path | None = None,
    run: Run = Training.run,
) -> Trained:
    """Train a model by federated learning, with the same simulated clients as an audit.

    With ``run.out``, each round leaves a checkpoint, which `medpfl.audit` accepts as its model. Repeat the call to
    continue a killed training, or with more rounds to prolong a finished one.

    Args:
        model, data: as in `medpfl.audit`; the data is distributed among all clients.
        defense: a spec or an object, or several, applied in order.
        plan: the plan for every client; FedAvg with batches of 32 by default. ``local_images = None`` means all of a
            client's images, in whole batches. A client with fewer images than a batch uses one smaller batch.
        schedule: number of rounds, clients per round, and learning rates.
        cohort: how to read images, distribute them among clients and hold some out.
        weights: file with initial weights.
        run: seed, device, run directory, engine and the like; `memory` and `isolate` do not apply. The clients of a
            round are trained at the same time by several `workers`.

    Raises:
        InputError: if anything cannot work (before work begins), or the training diverges.

    >>> plan = Plan("FedAvg", batch_size=8)
    >>> result = train("MLP(hidden=(8,))", plan=plan, schedule=Schedule(rounds=2), cohort=Cohort(clients=2))
    >>> [row.round for row in result.rows]
    [0, 1, 2]
    """
    for name in OF_ATTACKS:
        if getattr(run, name) != getattr(Run, name):
            raise InputError(f"{name} applies to attacks only: leave it out for a training")
    with pulsing(run.visible), ready(run, *WORK):
        setup = _setup(model, data, defense, plan, schedule, cohort, weights, run)
        return _run(setup, None if run.out is None else Path(run.out), run)


def _setup(
    model: str | Model | nn.Module,
    data: str | Path | DataSource | LabelledImages,
    defense: str | Defense | Sequence[str | Defense],
    plan: Plan,
    schedule: Schedule,
    cohort: Cohort,
    weights: str | Path | None,
    run: Run,
) -> TrainingSetup:
    """Return the training's setup after all checks."""
    with phase("reading the images"):
        splits = splits_of(data, cohort, run.seed)
    setup = TrainingSetup(
        model=model_of(model),
        weights=None if weights is None else Path(weights),
        splits=splits,
        defense=_joined(defense),
        plan=plan,
        partition=partition_of(cohort.partition, cohort.clients),
        schedule=schedule,
        seed=run.seed,
        device=device_of(run.device),
        threads=run.threads,
    )
    name_skipped(setup.data.skipped, setup.data.notes)
    check_outside(None if run.out is None else Path(run.out), setup.splits.found.place)
    with phase("checking model, plan and defense"):
        setup.check()
    return setup


def foresee(training: Training) -> Outlook:
    """Return a training's plan, from its first round in memory; nothing is written."""
    setup = _setup(
        training.model,
        training.data,
        training.defense,
        training.plan,
        training.schedule,
        training.cohort,
        training.weights,
        training.run,
    )
    out = None if training.run.out is None else Path(training.run.out)
    done = 0 if out is None else _done(setup, out, training.run.force)
    rounds = training.schedule.rounds
    with phase("timing a round"), threads(training.run.threads), Inline().crew(ClientWork(setup)) as crew:
        trainer = Trainer(setup, TrainingStore(None), crew)
        trainer.play(0)
        began = monotonic()
        trainer.play(1)
        seconds = (monotonic() - began) / min(workers_of(training.run), len(setup.participants(1)))
    done = min(done, rounds + 1)
    what = f"training under {setup.defense!r}"
    step = Step(what, rounds, "rounds", rounds + 1, done, seconds * (rounds + 1 - done))
    return Outlook((step,), peak())


def _done(setup: TrainingSetup, out: Path, force: bool) -> int:
    """Return the number of rounds that the run directory holds; raise `InputError` if the training would refuse it."""
    check_made(out)
    found = setup.splits.found
    index = study_index(out, setup.data, found.source, found.place, force, keep=False)
    continued = RunDirectory(out, TRAINING, setup.identity(index)).check(force)
    return len(whole_rounds(out)) if continued else 0


def perform_training(training: Training) -> Trained:
    """Run `train` for a training given as strings and numbers."""
    return train(
        training.model,
        training.data,
        defense=training.defense,
        plan=training.plan,
        schedule=training.schedule,
        cohort=training.cohort,
        weights=training.weights,
        run=training.run,
    )


def _joined(defense: Any) -> Defense:
    """Combine all given defenses into one, in order."""
    given = [one for one in defenses_of(defense) if one != NO_DEFENSE]
    asked = 1 if isinstance(defense, str | Defense) else len(defense)
    if len(given) > asked:
        raise InputError(f"{defense!r} is a sweep over {len(given)} defenses: a training takes only one")
    return reduce(or_, given) if given else NO_DEFENSE


def _run(setup: TrainingSetup, out: Path | None, run: Run) -> Trained:
    if out is not None:
        made(out)
    index = study_index(out, setup.data, setup.splits.found.source, setup.splits.found.place, run.force)
    with (
        training_in(out, setup.identity(index), run.force) as store,
        engine_of(run).crew(ClientWork(setup)) as crew,
    ):
        trainer = Trainer(setup, store, crew)
        started = datetime.now(UTC).isoformat(timespec="seconds")
        settings = training_settings(setup, trainer.spent.why) | {
            "engine": described(run),
            "started": started,
            "about": run.about(),
        }
        store.note(settings=settings)
        with unchanged(setup.code, store.directory):
            for number in rounds_of(len(store.rows), setup.schedule.rounds, run.visible):
                trainer.play(number)
                log(f"round {number} done")
        with phase("writing the page"):
            return trained(store, store.cloak(settings), trainer.weights)
