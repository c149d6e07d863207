"""Federated training: plays every round that is not done yet, and reports."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any

from torch import nn

from medpfl.core.errors import InputError
from medpfl.core.experiments.schedule import Schedule
from medpfl.core.plan import Plan
from medpfl.core.roles import NO_DEFENSE, DataSource, Defense, Model
from medpfl.data.images import LabelledImages
from medpfl.data.partition import Partition
from medpfl.inputs.parts import defenses_of, model_of, partition_of
from medpfl.runs.directory import check_outside, made
from medpfl.runs.environment import device_of
from medpfl.runs.identity import unchanged
from medpfl.runs.progress_bar import name_skipped, rounds_of
from medpfl.runs.study_key import study_index
from medpfl.training.report import Trained, settings_of, trained
from medpfl.training.setup import TrainingSetup
from medpfl.training.splits import splits_of
from medpfl.training.store import training_in
from medpfl.training.trainer import Trainer

__all__ = ["train"]


def train(
    model: str | Model | nn.Module = "ConvNet(width=16, depth=3, norm='batch')",
    data: str | Path | DataSource | LabelledImages = "samples",
    *,
    defense: str | Defense | Sequence[str | Defense] = (),
    plan: Plan | None = None,
    rounds: int = 20,
    clients: int | None = None,
    partition: str | Partition = "IID(clients=4)",
    fraction: float = 1.0,
    decay: float = 1.0,
    server_momentum: float = 0.0,
    balance: bool = False,
    augment: bool = False,
    validation: str | Path | DataSource | LabelledImages | None = None,
    test: str | Path | DataSource | LabelledImages | None = None,
    holdout: int = 5,
    weights: str | Path | None = None,
    delta: float = 1e-5,
    size: int = 32,
    fit: str = "crop",
    channels: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    out: str | Path | None = None,
    force: bool = False,
    progress: bool = False,
) -> Trained:
    """Trains a model on these images by federated learning, with the clients that an audit plays.

    With `out`, each round leaves a checkpoint that `medpfl.audit` takes as its model, and a killed training
    continues where it stopped; with more rounds, a finished one is prolonged.

    Args:
        model, data: as in `medpfl.audit`; the data is that of all clients.
        defense: a spec or an object, or several that act one after the other.
        plan: of every client, FedAvg on batches of 32 by default; ``local_images`` of ``None`` is all that a
            client has, in whole batches. A client with less than a batch has a batch of what it has.
        rounds: of training.
        clients: their number, if not as `partition` says.
        partition: deals the images to clients, by patient where patients are known.
        fraction: share of the clients that take part in a round.
        decay: factor of the learning rate from round to round.
        server_momentum: of the global model's steps.
        balance: whether clients draw their images evenly over the classes that they have, rare ones repeatedly.
        augment: whether clients shift, turn, zoom and shade their images at random, anew in each round, so that the
            model holds under other positions and exposures; an audit attacks images as they are.
        validation, test: images to judge the model by; MedMNIST's own splits, if its file is the data.
        holdout: one in so many images is held out where there is no validation set, patients whole.
        weights: a weights file to start from.
        delta: of epsilon.
        size, fit, channels, seed, device, out, force, progress: as in `medpfl.audit`.

    Raises:
        InputError: anything that cannot work, before work is done; a training that diverges.

    >>> result = train("MLP(hidden=(8,))", rounds=2, clients=2, plan=Plan("FedAvg", batch_size=8))
    >>> [row.round for row in result.rows]
    [0, 1, 2]
    """
    out = None if out is None else Path(out)
    setup = TrainingSetup(
        model=model_of(model),
        weights=None if weights is None else Path(weights),
        splits=splits_of(data, validation, test, holdout, seed, size=size, fit=fit, channels=channels),
        defense=_joined(defense),
        plan=plan or Plan("FedAvg", batch_size=32, learning_rate=0.05),
        partition=partition_of(partition, clients),
        schedule=Schedule(rounds, fraction, decay, server_momentum, balance, augment, delta),
        seed=seed,
        device=device_of(device),
    )
    name_skipped(setup.data.skipped, setup.data.notes)
    check_outside(out, setup.splits.found.place)
    setup.check()
    return _run(setup, out, force, progress)


def _joined(defense: Any) -> Defense:
    """One defense of all that are given, in order."""
    given = [one for one in defenses_of(defense) if one != NO_DEFENSE]
    asked = 1 if isinstance(defense, str | Defense) else len(defense)
    if len(given) > asked:
        raise InputError(f"{defense!r} is a sweep of {len(given)} defenses: a training is under one")
    return reduce(or_, given) if given else NO_DEFENSE


def _run(setup: TrainingSetup, out: Path | None, force: bool, progress: bool) -> Trained:
    if out is not None:
        made(out)
    index = study_index(out, setup.data, setup.splits.found.source, setup.splits.found.place, force)
    with training_in(out, setup.identity(index), force) as store:
        trainer = Trainer(setup, store)
        settings = settings_of(setup, trainer.spent.why) | {"started": datetime.now(UTC).isoformat(timespec="seconds")}
        store.note(settings=settings)
        with unchanged(setup.code, store.directory):
            for number in rounds_of(len(store.rows), setup.schedule.rounds, progress):
                trainer.play(number)
        return trained(store, store.cloak(settings), trainer.weights)
