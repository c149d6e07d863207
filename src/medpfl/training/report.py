"""A training's result, and reading it again from its directory."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medpfl.auditing.privacy.epsilon import has_statistics
from medpfl.auditing.settings import of_reading
from medpfl.core.atomic_files import write
from medpfl.core.errors import InputError
from medpfl.core.messages import counted
from medpfl.core.rounds import Round
from medpfl.core.types import Weights
from medpfl.data.images import LabelledImages
from medpfl.runs.directory import RunDirectory, reading, share_folder
from medpfl.runs.environment import versions
from medpfl.training.setup import TrainingSetup
from medpfl.training.store import ROWS, TRAINING, TrainingStore, read_rounds

if TYPE_CHECKING:
    from medpfl.reporting.figures.plots import Plot

__all__ = ["Trained", "accuracies_in", "read_training", "reread_training", "trained", "training_settings"]


@dataclass(frozen=True, eq=False)
class Trained:
    """The result of a training.

    Attributes:
        rows: one row for each round; the first is the model before training.
        settings: the training's settings, and facts about its data.
        weights: the global model's weights after the last round; ``None`` if the rows were read from a directory.
        pages: the pages written.
    """

    rows: list[Round]
    settings: dict[str, Any]
    weights: Weights | None = None
    pages: tuple[Path, ...] = ()

    @property
    def summary(self) -> dict[str, Any]:
        """The last row, and the bytes sent in all rounds."""
        last = self.rows[-1].to_dict()
        return {**last, "bytes_total": sum(row.bytes_sent for row in self.rows)}

    def plot(self) -> Plot:
        """Draw the model's scores by round; return a matplotlib figure and its axes."""
        from medpfl.reporting.figures.plots import plot_rounds
        from medpfl.reporting.training import judging_set

        return plot_rounds(self.rows, judging_set(self.rows))

    def __str__(self) -> str:
        from medpfl.reporting.training import sentences

        return "\n".join(sentences(self.rows, self.settings))


def trained(store: TrainingStore, settings: dict[str, Any], weights: Weights | None = None) -> Trained:
    """Return the result for a store's rows, and write its summary and page."""
    result = Trained(store.rows, settings, weights)
    if store.out is None:
        return result
    from medpfl.reporting.training import write_training_page

    folder = share_folder(store.out, TRAINING)
    write(folder / "summary.json", json.dumps(result.summary, indent=1).encode())
    page = write_training_page(folder, settings, store.rows)
    return Trained(store.rows, settings, weights, (page,))


def reread_training(out: Path) -> Trained:
    """Write a training's summary and page again from its rows, which stay as they are.

    Raises:
        InputError: if `out` holds no training, no finished round, or a training from another version.
    """
    with reading(out):
        return trained(*_stored(RunDirectory(out, TRAINING)))


def read_training(out: Path) -> Trained:
    """Return the rows and settings in a training's directory; nothing is written.

    Raises:
        InputError: as in `reread_training`.
    """
    with reading(out):
        store, settings = _stored(RunDirectory(out, TRAINING))
        return Trained(store.rows, settings)


def accuracies_in(training: Path, rounds: Iterable[int]) -> dict[int, float | None]:
    """Return the balanced accuracy after the given rounds, read from a training's directory; ``None`` if unknown."""
    from medpfl.reporting.training import judging_set

    with reading(training):
        rows = list(read_rounds(training / ROWS))
        known = {row.round: row.scores[judging_set(rows)]["balanced_accuracy"] for row in rows}
    return {number: known.get(number) for number in rounds}


def _stored(directory: RunDirectory) -> tuple[TrainingStore, dict[str, Any]]:
    known, store, rows = directory.noted(), TrainingStore(directory), read_rounds(directory.path / ROWS, whole=True)
    store.rows = [row for number, row in enumerate(rows) if row.round == number]
    if not store.rows:
        raise InputError(f"'{directory.path}' holds no finished round yet: repeat the same train command")
    return store, known.get("settings", {})


def training_settings(setup: TrainingSetup, why: str) -> dict[str, Any]:
    """Return the settings for a training's page, without paths and without names of images, patients or classes.

    Args:
        setup: the training.
        why: why no epsilon is stated; empty if there is nothing to explain.
    """
    data, schedule = setup.data, setup.schedule
    return {
        "experiment": {
            "data": setup.splits.found.source,
            "model": repr(setup.model),
            "defense": repr(setup.defense),
            "clients": len(setup.clients),
            "partition": repr(setup.partition),
            "plan": repr(setup.plan),
            "rounds": schedule.rounds,
            "fraction": schedule.fraction,
            "decay": schedule.decay,
            "server_momentum": schedule.server_momentum,
            "balanced": schedule.balance,
            "augmented": schedule.augment,
            "weights": "untrained" if setup.weights is None else "given",
        },
        "data": {
            "clients": [f"client {i}: {_counts(data, own.tolist())}" for i, own in enumerate(setup.clients)],
            **{name: _counts(images, list(range(len(images)))) for name, images in setup.splits.judged.items()},
            "classes": len(data.classes),
            "shape": list(data.shape),
            "patients": len({p for p in data.patients if p is not None}) or None,
            "skipped": len(data.skipped),
        },
        "model": {"parameters": sum(p.numel() for p in setup.base().parameters())},
        "versions": versions(),
        "device": str(setup.device),
        "seed": setup.seed,
        "notes": [*_notes(setup), *([why] if why else [])],
    }


def _counts(images: LabelledImages, places: list[int]) -> str:
    counts = images.labels[places].bincount(minlength=len(images.classes)).tolist()
    return f"{counted(len(places), 'image')} (" + ", ".join(f"class {i}: {n}" for i, n in enumerate(counts)) + ")"


def _notes(setup: TrainingSetup) -> list[str]:
    data, notes = setup.data, []
    for client, own in enumerate(setup.clients):
        missing = sorted(set(range(len(data.classes))) - set(data.labels[own].tolist()))
        if missing:
            notes.append(f"client {client} has no image of class {' or '.join(map(str, missing))}")
    for name, images in setup.splits.judged.items():
        if len(images.labels.unique()) < 2:
            notes.append(f"all {name} images belong to one class, so AUROC is undefined")
        shared = {p for p in images.patients if p is not None} & {data.patients[i] for i in setup.splits.train.tolist()}
        if shared:
            notes.append(f"{len(shared)} patients of the {name} set are also in the training set, judging by their ids")
    if has_statistics(setup.base(), setup.plan) and "buffers" not in setup.plan.sends:
        notes.append("clients do not send batch-norm statistics: the global model is scored with its initial ones")
    if setup.plan.sampling == "poisson":
        idle = sum(len(own) - setup.plan_of(client).images for client, own in enumerate(setup.clients))
        notes += [f"{counted(idle, 'image')} that fill no whole batch are never used"] if idle else []
    return notes + of_reading(data)
