"""``python -m benchmarks matrix``: every attack on every model, each a small audit; writes ``docs/support.md``.

``--new`` runs only what the page does not have yet, and ``--missing`` names it. Adding an attack or a model needs
neither: the page is brought up to date before a release.
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
"""Flags of an audit after which its guesses are of no use."""

Cell = tuple[str, str, str, str]
"""Model, algorithm, mode, attack."""


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks matrix", description=__doc__)
    parser.add_argument("--out", type=Path, default=PAGE, help="the page")
    parser.add_argument("--new", action="store_true", help="keep the page's cells, and run only those that it lacks")
    parser.add_argument("--missing", action="store_true", help="run nothing, and name what the page lacks")
    return parser.parse_args(arguments)


def lines(chosen: argparse.Namespace) -> Iterator[str]:
    """What each cell says, as it is run; then writes the page."""
    kept = known(chosen.out.read_text()) if chosen.new and chosen.out.is_file() else {}
    if chosen.missing:
        yield from missing(known(chosen.out.read_text()) if chosen.out.is_file() else {})
        return
    began, found = time.perf_counter(), {}
    for cell, said in cells(sorted(registry(model_package)), sorted(registry(attack_package)), kept):
        found[cell] = said
        if cell not in kept:
            yield f"{' '.join(cell)} {said} ({time.perf_counter() - began:.0f} s)"
    chosen.out.parent.mkdir(exist_ok=True)
    chosen.out.write_text(page(found))


def missing(kept: Mapping[Cell, str]) -> Iterator[str]:
    """The attacks and models of the registries that a page lacks."""
    for place, package in ((0, model_package), (3, attack_package)):
        yield from sorted(set(registry(package)) - {cell[place] for cell in kept})


def cells(models: Sequence[str], attacks: Sequence[str], kept: Mapping[Cell, str]) -> Iterator[tuple[Cell, str]]:
    """Each cell, and `RUNS` or why not: the audit's own words, of cells that are not kept from before."""
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
    """The cells of a page, as `page` writes them."""
    reasons = dict(re.findall(r"^(\d+)\. (.*)$", text, re.MULTILINE))
    lines = [[word.strip(" `") for word in line.split("|")[1:-1]] for line in text.splitlines() if line[:2] == "| "]
    head, *rows = [line for line in lines if line[0] != "---"]
    return {
        (row[0], row[1], row[2], attack): said if said == RUNS else reasons[said.removeprefix("no: ")]
        for row in rows
        for attack, said in zip(head[3:], row[3:], strict=True)
    }


def outcome(model: str, attack: str, plan: Plan, data: LabelledImages) -> str:
    """`RUNS`, or the error or flags of an audit of one update."""
    short = shortened_names(registry(attack_package)[attack](), STEPS)
    try:
        report = audit(model, data, attacks=[short], plan=plan, victims=Victims(images=plan.images))
    except InputError as error:
        return str(error).partition("\n")[0].removeprefix(f"{short!r}: ")
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
    return data  # pyright: ignore[reportPossiblyUnboundVariable]


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
number of the reason, below, which is the audit's own message or flag. An attack or a model that is newer than this
page is not in it: `python -m benchmarks matrix --missing` names those. For your own model, `medpfl check-model` says
the same and more.
"""
