"""The trainings of a study: a network that is to be attacked trained, and what a defense costs in accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medpfl.auditing.checkpoint import round_folder
from medpfl.auditing.inputs import defenses_of
from medpfl.auditing.perform_training import perform_training
from medpfl.auditing.training_report import Trained, reread_training
from medpfl.core.errors import DivergedError, InputError
from medpfl.core.training import Training
from medpfl.core.verdicts import UNDEFENDED
from medpfl.reproduction.experiments import Part, Study

__all__ = [
    "ACCURACY_SET",
    "Accuracies",
    "accuracies",
    "accuracy_data",
    "defenses_in",
    "known_accuracies",
    "trained_here",
]

ACCURACY_SET = "pneumonia_mnist"
"""The set that defended trainings are judged on, where it is there."""

Accuracies = dict[str, dict[str, Any]]
"""Balanced accuracy of the test images with its interval, by defense; empty where a training diverged."""


def trained_here(part: Part, place: str, out: Path, seed: int, force: bool, progress: bool) -> Path:
    """Trains a part's network on the images that are attacked, briefly, and returns the last round's directory."""
    kept = ("model", "size", "fit", "channels")
    own = {name: value for name, value in part.audit.items() if name in kept}
    training = Training(**{**own, **part.training, "data": place, "seed": seed})
    perform_training(training, out, force, progress)
    return round_folder(out, training.rounds)


def accuracy_data(folder: Path) -> Path | None:
    """The file of `ACCURACY_SET`: the only ``.npz`` in its folder, or the file itself."""
    if folder.is_file():
        return folder
    files = sorted(folder.glob("*.npz")) if folder.is_dir() else []
    if len(files) > 1:
        raise InputError(f"'{folder}' holds several .npz files: give the one of {ACCURACY_SET} in --sets")
    return files[0] if files else None


def defenses_in(part: Part) -> list[str]:
    """Specs of the defenses of a part, the undefended one among them."""
    return list(map(repr, defenses_of(part.audit.get("defense", ()))))


def _settings(study: Study) -> list[str]:
    return list(dict.fromkeys(spec for part in study.parts for spec in defenses_in(part)))


def accuracies(
    study: Study, data: Path, root: Path, options: Mapping[str, Any], seed: int, force: bool, progress: bool
) -> Accuracies:
    """Trains under each defense of a study, each in a directory of its own, and judges the test images."""
    found: Accuracies = {}
    for i, spec in enumerate(_settings(study)):
        defense = [] if spec == UNDEFENDED else [spec]
        training = Training(**{**options, "data": str(data), "defense": defense, "seed": seed})
        try:
            found[spec] = _scores(perform_training(training, _place(root, i), force, progress))
        except DivergedError:
            found[spec] = {}
    return found


def known_accuracies(study: Study, root: Path) -> Accuracies:
    """The same, from the rows of trainings that are there."""
    places = {spec: _place(root, i) for i, spec in enumerate(_settings(study))}
    return {spec: _scores(reread_training(out)) for spec, out in places.items() if (out / "summary.json").is_file()}


def _place(root: Path, number: int) -> Path:
    return root.with_name(f"{root.name}-{number}")


def _scores(trained: Trained) -> dict[str, Any]:
    scores = trained.rows[-1].scores
    own = scores.get("test") or scores["validation"]
    return {
        "accuracy": own["balanced_accuracy"],
        "accuracy_low": own["balanced_accuracy_low"],
        "accuracy_high": own["balanced_accuracy_high"],
    }
