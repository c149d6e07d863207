"""One of a study's audits: a part in a form on a set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medpfl.auditing.report import Report
from medpfl.auditing.run import foresee, perform
from medpfl.core.experiments.experiment import Experiment
from medpfl.core.experiments.groups import Reading, Run
from medpfl.core.experiments.training import Training
from medpfl.inputs.checkpoint import round_folder
from medpfl.inputs.parts import Found, data_of
from medpfl.reproduction.experiments import StudyPart
from medpfl.reproduction.modalities import features, keep
from medpfl.reproduction.scale import Form
from medpfl.runs.directory import RUNS
from medpfl.runs.outlook import Outlook
from medpfl.runs.study_key import study_index
from medpfl.training.train import perform_training

__all__ = ["Task", "training_folder"]

_READING = ("size", "fit", "channels")


@dataclass(frozen=True)
class Task:
    """One audit to run.

    Attributes:
        experiment: the experiment's name.
        part: the part, as in the experiment's file.
        set: name of the image set.
        form: the study's form.
    """

    experiment: str
    part: StudyPart
    set: str
    form: Form

    @property
    def key(self) -> tuple[str, str, str]:
        """The names of experiment, part and set."""
        return self.experiment, self.part.name, self.set

    @property
    def title(self) -> str:
        """The title above its pictures."""
        return f"{self} ({self.experiment})"

    def __str__(self) -> str:
        return f"{self.part.name} on {self.set}"

    def out(self, root: Path) -> Path:
        """Return the task's run directory."""
        words = "".join(c if c.isalnum() else "-" for c in self.part.name.lower()).replace("--", "-")
        return root / RUNS / f"{self.experiment}-{self.set}-{words}"

    def run(self, place: Path, root: Path, run: Run) -> Report:
        """Run the audit as `run` says (its engine, force and progress), and reuse any work that is already done."""
        part, out, form = self.form.part(self.part), self.out(root), self.form
        experiment, found = self._experiment(place)
        if part.training and not self._given_weights:
            trained = _trained(part, place, training_folder(out), form, run.force, run.visible)
            experiment = experiment.having(model=str(trained))
        report = perform(
            experiment.having(out=out, force=run.force, progress=run.visible, engine=run.engine, workers=run.workers)
        )
        if part.explained:
            held = found.images
            keep(out, study_index(out, held, found.source, found.place).images, features(held.images[:]))
        return report

    def outlook(self, place: Path, root: Path, force: bool) -> Outlook:
        """Return the audit's plan, on an untrained model if it would train one; nothing is written."""
        experiment, _ = self._experiment(place)
        return foresee(experiment.having(out=self.out(root), force=force))

    @property
    def _given_weights(self) -> bool:
        return self.form.part(self.part).needs_weights and self.form.weights is not None

    def _experiment(self, place: Path) -> tuple[Experiment, Found]:
        """Return the audit's options, and the images."""
        part, form = self.form.part(self.part), self.form
        options, data = part.audit, part.data(str(place))
        found = data_of(data, Reading(**{name: options[name] for name in _READING if name in options}))
        held = found.images
        experiment = part.experiment(data, len(held.classes), len(held), form.seed, form.device)
        return experiment.having(weights=str(form.weights)) if self._given_weights else experiment, found


def training_folder(out: Path) -> Path:
    """Return the directory for training an audit's network."""
    return out.with_name(f"{out.name}-training")


def _trained(part: StudyPart, place: Path, out: Path, form: Form, force: bool, progress: bool) -> Path:
    """Train a part's network briefly on the attacked images, and return the last round's directory."""
    own = {name: value for name, value in part.audit.items() if name in ("model", *_READING)}
    where = {"data": str(place), "seed": form.seed, "device": form.device, "out": out, "force": force}
    training = Training.of(**{**own, **part.training, **where}, progress=progress)
    perform_training(training)
    return round_folder(out, training.schedule.rounds)
