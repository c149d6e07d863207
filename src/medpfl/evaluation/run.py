"""The standard evaluation: an audit whose attack, images and seeds are fixed, so that results compare."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from medpfl.auditing.report import Report
from medpfl.auditing.run import AuditCase
from medpfl.core.errors import InputError
from medpfl.core.experiments.evaluation import EDITIONS, FIXED, Evaluating
from medpfl.core.experiments.groups import Criteria, Reading, Run, Victims
from medpfl.core.plan import Plan
from medpfl.core.roles import DataSource, Defense, Model
from medpfl.core.threat import ThreatModel
from medpfl.core.types import Finding
from medpfl.data.images import LabelledImages
from medpfl.runs.outlook import Outlook

__all__ = ["Evaluation", "evaluate", "foresee_evaluation", "perform_evaluation"]

_DIGITS = 3
"""Decimal digits of the scores that enter the checksum."""
_SHOWN = 12
"""Digits of a checksum, and of the weights' digest, in a line."""
_CLASSES = 12
"""Most classes whose sizes a line states one by one."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The result of a standard evaluation.

    Attributes:
        edition: name of the edition, such as ``"standard-2026.1"``.
        report: the audit behind it, with all rows.
    """

    edition: str
    report: Report

    @property
    def pages(self) -> tuple[Path, ...]:
        """The pages written."""
        return self.report.pages

    @property
    def checksums(self) -> dict[str, str]:
        """By defense spec, the first 12 hexadecimal digits of a SHA-256 that anyone can compute again for one line.

        It covers what the line states of the test (edition, model, data, defense, weights and their digest, plan, and
        what is sent), and the results of the defense's rows, with scores rounded to 3 digits. It depends neither on
        other defenses of the same call nor on the alias. The same machine and versions give the same checksum. On
        another machine, the last digits of scores may differ.
        """
        return {defense: self._checksum(defense) for defense in dict.fromkeys(c.defense for c in self.report.summary)}

    def _checksum(self, defense: str) -> str:
        asked, data = self.report.settings.experiment, self.report.settings.data
        test = {
            "edition": self.edition,
            "defense": defense,
            "digest": self.report.settings.model.get("weights"),
            **{name: asked[name] for name in ("model", "data", "weights", "plan", "sends")},
            **{f"data {name}": data[name] for name in ("images", "shape", "classes")},
        }
        told = sorted(json.dumps(_result(row)) for row in self.report.rows if row.defense == defense)
        return hashlib.sha256("\n".join([json.dumps(test, sort_keys=True), *told]).encode()).hexdigest()[:_SHOWN]

    @property
    def lines(self) -> list[str]:
        """A line for the undefended model and one for each defense, fit to be quoted."""
        from medpfl.reporting.phrases import counts, grouped
        from medpfl.reporting.words import label, number, percent

        asked, versions = self.report.settings.experiment, self.report.settings.versions
        weights = f"weights {asked['weights']}"
        if digest := self.report.settings.model.get("weights"):  # a model of one's own may bring weights without a file
            weights += f" ({digest[:_SHOWN]})"
        made, checksums = f"{weights}, {asked['plan']}, MedPFL {versions['medpfl']}", self.checksums
        return [
            f"{self.edition}: {label(asked['model'])} with {self._data()}, {label(cell.defense)}: "
            f"{counts(cell.union)}; any candidate {percent(cell.asr_worst.value)}; SSIM {number(cell.ssim.value)} "
            f"({made}, checksum {checksums[cell.defense]})"
            for (cell, *_) in grouped(self.report.summary)
        ]

    def _data(self) -> str:
        """Return the data's alias, source, shape and class sizes; no digest, since the images are private."""
        settings = self.report.settings
        data, alias = settings.data, settings.about.get("alias")
        sizes = list(data["classes"].values())
        each = ", ".join(map(str, sizes)) if len(sizes) <= _CLASSES else f"{min(sizes)} to {max(sizes)}"
        shape = " x ".join(map(str, data["shape"]))
        facts = f"{data['images']} images of {shape}, {len(sizes)} class{'es' * (len(sizes) > 1)} of {each}"
        source = settings.experiment["data"]
        return f'"{alias}" ({source}: {facts})' if alias else f"{source} ({facts})"

    def __str__(self) -> str:
        return "\n".join(self.lines)

    def _repr_html_(self) -> str:
        """Return the verdict and a table for a notebook, without an image."""
        return self.report._repr_html_()

    def to_dict(self) -> dict[str, Any]:
        """Return the lines, their checksums by defense, and the cells as JSON data."""
        cells = [cell.to_dict() for cell in self.report.summary]
        return {"edition": self.edition, "checksums": self.checksums, "lines": self.lines, "cells": cells}


def _result(row: Finding) -> list[Any]:
    scores = {name: None if value is None else round(value, _DIGITS) for name, value in sorted(row.scores.items())}
    place = [row.control, row.defense, row.draw, row.stack, row.victim, row.position]
    return [*place, row.success, row.identified, row.label_guess, row.ended, scores]


def evaluate(
    model: str | Path | Model | nn.Module = Evaluating.model,
    data: str | Path | DataSource | LabelledImages = Evaluating.data,
    *,
    defenses: Sequence[str | Defense] = (),
    plan: Plan = Evaluating.plan,
    weights: str | Path | None = None,
    reading: Reading = Evaluating.reading,
    edition: str = Evaluating.edition,
    run: Run = Evaluating.run,
) -> Evaluation:
    """Measure by a fixed standard how well a server can reconstruct images, so that results can be compared and cited.

    The edition sets the attack with its budget, the number of images and all seeds (docs/standard.md). The attack knows
    each defense, and no label is granted.

    Args:
        model, data, weights, defenses: as in `medpfl.audit`.
        plan: every client's local training, by default FedSGD on one image.
        reading: how images are read.
        edition: name of the edition.
        run: device, run directory and so on. The edition sets seed, memory and threads; its attack runs in this process
            and has a budget, so isolate and minutes cannot be set either.

    Raises:
        InputError: there is no such edition, `run` sets what the edition sets, `medpfl.audit` raises it, or a stack of
            victims runs out of memory: an audit would split it, and then its rows differ.
    """
    return Evaluation(edition, _case(model, data, defenses, plan, weights, reading, edition, run).report())


def perform_evaluation(asked: Evaluating) -> Evaluation:
    """Run `evaluate` for options given as strings and numbers."""
    return Evaluation(asked.edition, _case_of(asked).report())


def foresee_evaluation(asked: Evaluating) -> Outlook:
    """Return the plan of an evaluation; nothing is written."""
    return _case_of(asked).outlook()


def _case_of(asked: Evaluating) -> AuditCase:
    rest = (asked.plan, asked.weights, asked.reading, asked.edition, asked.run)
    return _case(asked.model, asked.data, asked.defense, *rest)


def _case(
    model: str | Path | Model | nn.Module,
    data: str | Path | DataSource | LabelledImages,
    defenses: Sequence[str | Defense],
    plan: Plan,
    weights: str | Path | None,
    reading: Reading,
    edition: str,
    run: Run,
) -> AuditCase:
    if edition not in EDITIONS:
        raise InputError(f"there is no edition '{edition}': choose {' or '.join(EDITIONS)}")
    set_ = EDITIONS[edition]
    for name in FIXED:
        if getattr(run, name) != getattr(Run, name):
            raise InputError(f"{name} is {getattr(run, name)}, but the edition sets it: leave it out, or use audit")
    images: Any = {"size": reading.size, "fit": reading.fit, "channels": reading.channels}
    return AuditCase(
        model=model,
        data=data,
        attacks=[set_.attack],
        defenses=defenses,
        plan=plan,
        threat=ThreatModel(("defense",)),
        weights=weights,
        victims=Victims(**images),
        criteria=Criteria(),
        run=replace(run, seed=set_.seed),
        images=set_.images,
        whole=True,
    )
