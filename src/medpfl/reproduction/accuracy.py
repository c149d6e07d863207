"""The accuracy cost of an experiment's defenses, measured by training a network under each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medpfl.core.errors import DivergedError
from medpfl.core.experiments.training import Training
from medpfl.core.messages import SHARE_FOLDER
from medpfl.core.verdicts import UNDEFENDED
from medpfl.inputs.parts import defenses_of
from medpfl.reproduction.experiments import Study, StudyPart
from medpfl.reproduction.places import ACCURACY_SET
from medpfl.reproduction.scale import Form
from medpfl.runs.directory import RUNS
from medpfl.training.report import Trained, reread_training
from medpfl.training.train import perform_training

__all__ = ["Accuracies", "AccuracyRuns", "defenses_in"]

Accuracies = dict[str, dict[str, Any]]
"""Balanced accuracy on the test images, with its interval, by defense; empty if the training diverged."""


def defenses_in(part: StudyPart) -> list[str]:
    """Return the specs of a part's defenses, including the undefended one."""
    return list(map(repr, defenses_of(part.audit.get("defense", ()))))


@dataclass(frozen=True)
class AccuracyRuns:
    """An experiment's trainings, each in its own directory.

    Attributes:
        name, study: the experiment's name and content.
        out: the reproduction's directory.
    """

    name: str
    study: Study
    out: Path

    def train(self, data: Path, form: Form, force: bool, progress: bool) -> Accuracies:
        """Train under each defense on a file of `ACCURACY_SET`, and score its test images."""
        options = {**self.study.accuracy, **(self.study.accuracy_quick if form.quick else {})}
        options |= {"data": str(data), "seed": form.seed, "device": form.device}
        options |= {"force": force, "progress": progress}
        found: Accuracies = {}
        for spec, place in self._each():
            training = Training.of(**options, defense=[] if spec == UNDEFENDED else [spec], out=place)
            try:
                found[spec] = _scores(perform_training(training))
            except DivergedError:
                found[spec] = {}
        return found

    def known(self) -> Accuracies:
        """Return the accuracies from the rows of finished trainings."""
        finished = {spec: p for spec, p in self._each() if (p / SHARE_FOLDER / "summary.json").is_file()}
        return {spec: _scores(reread_training(place)) for spec, place in finished.items()}

    def _each(self) -> Iterator[tuple[str, Path]]:
        specs = dict.fromkeys(itertools.chain.from_iterable(map(defenses_in, self.study.parts)))
        root = self.out / RUNS
        return ((spec, root / f"{self.name}-{ACCURACY_SET}-accuracy-{i}") for i, spec in enumerate(specs))


def _scores(trained: Trained) -> dict[str, Any]:
    scores = trained.rows[-1].scores
    own = scores.get("test") or scores["validation"]
    return {
        "accuracy": own["balanced_accuracy"],
        "accuracy_low": own["balanced_accuracy_low"],
        "accuracy_high": own["balanced_accuracy_high"],
    }
