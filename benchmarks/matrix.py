"""``python -m benchmarks matrix``: run every attack on every model in a small audit, and write ``docs/support.md``.

``--new`` runs only the cells that the page lacks, and ``--missing`` lists the parts that it lacks. A new attack or
model requires neither: the page is updated before each release.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch

from medpfl import Victims
from medpfl import attacks as attack_package
from medpfl import models as model_package
from medpfl.auditing.run import audit
from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.spec import registry
from medpfl.data.images import LabelledImages
from medpfl.data.reading.masks import class_of
from medpfl.data.samples import Samples
from medpfl.inputs.network import check_network
from medpfl.inputs.parts import model_of
from medpfl.inspection.check import shortened_names
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
"""Audit flags that make the guesses useless."""

Cell = tuple[str, str, str, str]
"""Model, algorithm, mode, attack."""


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks matrix", description=__doc__)
    parser.add_argument("--out", type=Path, default=PAGE, help="page to write")
    parser.add_argument("--new", action="store_true", help="run only the cells that the page lacks")
    parser.add_argument("--missing", action="store_true", help="run nothing; list parts that the page lacks")
    return parser.parse_args(arguments)


def lines(chosen: argparse.Namespace) -> Iterator[str]:
    """Yield each cell's result as it is run, then write the page."""
    kept = known(chosen.out.read_text()) if chosen.new and chosen.out.is_file() else {}
    if chosen.missing:
        yield from missing(known(chosen.out.read_text()) if chosen.out.is_file() else {})
        return
    began, found = time.perf_counter(), {}
    for cell, said in cells(sorted(registry(model_package)), sorted(single()), kept):
        found[cell] = said
        if cell not in kept:
            yield f"{' '.join(cell)} {said} ({time.perf_counter() - began:.0f} s)"
    chosen.out.parent.mkdir(exist_ok=True)
    chosen.out.write_text(page(found))


def single() -> list[str]:
    """Return the registered attacks by name, without ensembles: these run where one of their members does."""
    return [name for name, kind in registry(attack_package).items() if not kind.members]


def missing(kept: Mapping[Cell, str]) -> Iterator[str]:
    """Yield the registered models and attacks that a page lacks."""
    for place, names in ((0, registry(model_package)), (3, single())):
        yield from sorted(set(names) - {cell[place] for cell in kept})


def cells(models: Sequence[str], attacks: Sequence[str], kept: Mapping[Cell, str]) -> Iterator[tuple[Cell, str]]:
    """Yield each cell with `RUNS` or the reason why it does not run. Cells in `kept` are not run again."""
    for model in models:
        own = [(*plan, attack) for plan, attack in product(PLANS, attacks)]
        data = None if all((model, *cell) in kept for cell in own) else images_for(model)
        for algorithm, mode, attack in own:
            cell = (model, algorithm, mode, attack)
            if data is None or cell in kept:
                yield cell, kept[cell]
            else:
                yield cell, outcome(model, attack, PLANS[algorithm, mode], data)


def known(text: str) -> dict[Cell, str]:
    """Read the cells from a page that `page` wrote."""
    reasons = dict(re.findall(r"^(\d+)\. (.*)$", text, re.MULTILINE))
    lines = [[word.strip(" `") for word in line.split("|")[1:-1]] for line in text.splitlines() if line[:2] == "| "]
    head, *rows = [line for line in lines if line[0] != "---"]
    return {
        (row[0], row[1], row[2], attack): said if said == RUNS else reasons[said.removeprefix("no: ")]
        for row in rows
        for attack, said in zip(head[3:], row[3:], strict=True)
    }


def outcome(model: str, attack: str, plan: Plan, data: LabelledImages) -> str:
    """Audit one update; return `RUNS`, the error, or the flags."""
    short = shortened_names(registry(attack_package)[attack](), STEPS)
    try:
        report = audit(model, data, attacks=[short], plan=plan, victims=Victims(images=plan.images))
    except InputError as error:
        return str(error).partition("\n")[0].removeprefix(f"{short!r}: ")
    raised = {flag for row in report.rows if not row.control for flag in row.flags}
    return "; ".join(f"{flag}: {FLAGS[flag].raised}" for flag in FATAL if flag in raised) or RUNS


def images_for(model: str) -> LabelledImages:
    """Return the embedded samples in gray, at the smallest size in `SIZES` at which the model trains on a single image.

    Each image has a mask (its bright half) for models that predict a class for every pixel.
    """
    for size in SIZES:
        data = _with_masks(Samples(size=size, channels=1).load())
        network = model_of(model).build(data.shape, len(data.classes), 0)
        try:
            check_network(network, data.images[:1], len(data.classes), Plan(), masks=True)
        except InputError:
            continue
        break
    return data  # pyright: ignore[reportPossiblyUnboundVariable]


def _with_masks(data: LabelledImages) -> LabelledImages:
    images = data.images[:]
    middle = images.flatten(1).median(1).values.view(-1, 1, 1)
    masks = (images[:, 0] > middle).to(torch.int64)
    return replace(data, masks=masks, labels=class_of(masks), classes=("background", "structure"))


def page(found: Mapping[Cell, str]) -> str:
    """Return the page in Markdown: a row per model and plan, a column per attack, and the reasons below."""
    attacks = list(dict.fromkeys(cell[3] for cell in found))
    reasons = list(dict.fromkeys(said for said in found.values() if said != RUNS))
    rows = [
        [f"`{model}`", algorithm, mode, *(_short(found[model, algorithm, mode, name], reasons) for name in attacks)]
        for model, algorithm, mode in dict.fromkeys(cell[:3] for cell in found)
    ]
    table = [_line(["Model", "Algorithm", "Mode", *(f"`{name}`" for name in attacks)]), "|" + " --- |" * len(rows[0])]
    notes = [f"{number}. {reason}" for number, reason in enumerate(reasons, 1)]
    return "\n".join([_HEAD, *table, *map(_line, rows), "", "## Reasons", "", *notes, ""])


def _short(said: str, reasons: Sequence[str]) -> str:
    return said if said == RUNS else f"no: {reasons.index(said) + 1}"


def _line(words: Sequence[str]) -> str:
    return "| " + " | ".join(words) + " |"


_HEAD = f"""# Which attack runs on which model

`make matrix` writes this page. It audits every registered model under every registered attack, with the attack's
default settings except {STEPS} steps and one restart. The update comes from one image (FedSGD) or from two local steps
on one image each (FedAvg). Images are gray samples at 32 x 32 pixels, or at 64 x 64 if batch norm in train mode rejects
a single smaller one. The attacker has no grants. Models that predict a class for every pixel get masks, which the
attacks optimize with the images.

**{RUNS}** means that the attack ends with finite guesses, not that it succeeds. **no** is followed by the number of a
reason below: the audit's own message or flag. Attacks and models newer than this page are missing;
`python -m benchmarks matrix --missing` lists them. For your own model, `medpfl check-model` gives the same information
and more.
"""
