"""``python -m benchmarks matrix``: every attack on every model, each a small audit; writes ``docs/support.md``."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch

from medpfl import attacks as attack_package
from medpfl import models as model_package
from medpfl.auditing.engine import check_network
from medpfl.auditing.inputs import model_of
from medpfl.auditing.model_check import shortened
from medpfl.auditing.run import audit
from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.spec import registry
from medpfl.data.images import LabelledImages
from medpfl.data.masks import class_of
from medpfl.data.samples import Samples
from medpfl.reporting.flags import FLAGS

PAGE = Path(__file__).parent.parent / "docs" / "support.md"
PLANS = {
    (algorithm, mode): Plan(algorithm, mode=mode, local_images=2 if algorithm == "FedAvg" else None)
    for algorithm, mode in product(("FedSGD", "FedAvg"), ("train", "eval"))
}
RUNS = "runs"
SIZES = (32, 64)
STEPS = 2
FATAL = ("nonfinite", "zero-gradient", "wrong-derivative")
"""Flags of an audit after which its guesses are of no use."""

Cell = tuple[str, str, str, str]
"""Model, algorithm, mode, attack."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs all cells and writes the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks matrix", description=__doc__)
    parser.add_argument("--out", type=Path, default=PAGE, help="the page")
    out = parser.parse_args(arguments).out
    began, found = time.perf_counter(), {}
    for cell, said in cells(list(registry(model_package)), list(registry(attack_package))):
        found[cell] = said
        print(*cell, said, f"({time.perf_counter() - began:.0f} s)", flush=True)
    out.parent.mkdir(exist_ok=True)
    out.write_text(page(found))


def cells(models: Sequence[str], attacks: Sequence[str]) -> Iterator[tuple[Cell, str]]:
    """Each cell, and `RUNS` or why not: the audit's own words."""
    for model in models:
        data = images_for(model)
        for ((algorithm, mode), plan), attack in product(PLANS.items(), attacks):
            yield (model, algorithm, mode, attack), outcome(model, attack, plan, data)


def outcome(model: str, attack: str, plan: Plan, data: LabelledImages) -> str:
    """`RUNS`, or the error or flags of an audit of one update."""
    try:
        short = shortened(registry(attack_package)[attack](), STEPS)
        report = audit(model, data, attacks=[short], plan=plan, images=plan.images)
    except InputError as error:
        return str(error).partition("\n")[0]
    raised = {flag for row in report.rows if not row.control for flag in row.flags}
    return "; ".join(f"{flag}: {FLAGS[flag].raised}" for flag in FATAL if flag in raised) or RUNS


def images_for(model: str) -> LabelledImages:
    """The embedded samples, gray, of the smallest of `SIZES` of which the model takes one image in train mode.

    Each has a mask, its bright half, for models that give a class for every pixel.
    """
    for size in SIZES:
        data = _with_masks(Samples(size=size, channels=1).load())
        network = model_of(model).build(data.shape, len(data.classes), 0)
        try:
            check_network(network, data.images[:1], len(data.classes), Plan(), masks=True)
        except InputError:
            continue
        break
    return data


def _with_masks(data: LabelledImages) -> LabelledImages:
    middle = data.images.flatten(1).median(1).values.view(-1, 1, 1)
    masks = (data.images[:, 0] > middle).to(torch.int64)
    return replace(data, masks=masks, labels=class_of(masks), classes=("background", "structure"))


def page(found: Mapping[Cell, str]) -> str:
    """The page in Markdown: a row for each model and plan, a column for each attack, reasons below."""
    attacks = list(dict.fromkeys(cell[3] for cell in found))
    reasons = list(dict.fromkeys(said for said in found.values() if said != RUNS))
    rows = [
        [f"`{model}`", algorithm, mode, *(_short(found[model, algorithm, mode, name], reasons) for name in attacks)]
        for model, algorithm, mode in dict.fromkeys(cell[:3] for cell in found)
    ]
    table = [_line(["Model", "Algorithm", "Mode", *(f"`{name}`" for name in attacks)]), "|" + " --- |" * len(rows[0])]
    notes = [f"{number}. {reason}" for number, reason in enumerate(reasons, 1)]
    return "\n".join([_HEAD, *table, *map(_line, rows), "", "## Why not", "", *notes, ""])


def _short(said: str, reasons: Sequence[str]) -> str:
    return said if said == RUNS else f"no: {reasons.index(said) + 1}"


def _line(words: Sequence[str]) -> str:
    return "| " + " | ".join(words) + " |"


_HEAD = f"""# Which attack takes which model

Made by `make matrix`, which audits every registered model under every registered attack, each with its default
arguments but {STEPS} steps and one start: one image behind the update of FedSGD, two local steps on one image each
behind that of FedAvg; gray samples of 32 pixels a side, or 64 where batch norm in train mode takes no single one of
32; nothing granted. Models that give a class for every pixel have masks, which the attacks optimize with the images.

**{RUNS}** means that the attack ends with finite guesses. It says nothing of its success. **no** is followed by the
number of the reason, below, which is the audit's own message or flag. For your own model, `medpfl check-model` says
the same and more.
"""
