"""``python -m benchmarks contested``: compare our attacks with those of peers on cases where success is uncertain.

The cases are batches, noise and weight differences, at 32 px. All attacks get the labels. With `--gray`, all images are
gray in three equal channels, and our attacks know it, as in an audit. *Mean image*: the guess is the mean of the other
rows' images, without any update. Ours run first, with all victims in one stack. A peer takes one update at a time. It
then gets as many seconds per update as our slowest attack took, or enough for its minimum number of evaluations if that
takes longer.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Literal

import torch
from torch import Tensor

from benchmarks import leakpro
from benchmarks.leakpro import LeakPro
from benchmarks.peers import PEERS as BREACHING
from benchmarks.peers import Peer, missing
from benchmarks.rows import columns, conditions, identified, now, rate, scores
from benchmarks.scenes import REPORTED, TUNED, Scene, available, dealt, held_out, known_images, play
from medpfl import models as model_parts
from medpfl.attacks import APRIL, GradInv, Posterior, WorstCase, iDLG
from medpfl.core.plan import Plan
from medpfl.core.roles import Attack, Model
from medpfl.core.spec import build, registry
from medpfl.core.threat import ThreatModel
from medpfl.defenses import LaplaceNoise, NoDefense

Mode = Literal["train", "eval"]

OURS: dict[str, APRIL | GradInv | Posterior | WorstCase | iDLG] = {
    "iDLG": iDLG(),
    "GradInv": GradInv(),
    "GradInv, tv 0.1": GradInv(tv=0.1, rate=0.1),
    "Posterior": Posterior(),
    "WorstCase": WorstCase(),
    "APRIL": APRIL(),
}
"""Our attacks by name, for `--ours`; by default, its searches."""
SEARCHES = ("iDLG", "GradInv", "Posterior")

PEERS: dict[str, Peer | LeakPro] = BREACHING | {
    "leakpro: inverting": LeakPro("inverting_gradients_attack"),
    "leakpro: huang": LeakPro("huang_attack"),
    "leakpro: running": LeakPro("gia_running_attack"),
}
THEIRS = ("deepleakage", "deepleakage+labels", "invertinggradients")
MEAN = "mean image"
LEAST = 100
"""Minimum number of evaluations for a peer."""


@dataclass(frozen=True)
class Cell:
    """Settings of one case: images per update, scale of Laplace noise, and weight difference instead of gradient."""

    batch: int = 1
    noise: float = 0.0
    averaging: bool = False

    def scene(self, name: str, seed: int, chosen: argparse.Namespace, network: Model, mode: Mode) -> Scene:
        """Build updates from `chosen.images` images in total, in full batches, under one draw of the weights."""
        images, labels, classes = held_out(name, chosen.images, 32, chosen.tune)
        images = gray(images) if chosen.gray else images
        images, labels = dealt(images, labels, self.batch, seed)
        plan = Plan(algorithm="FedAvg" if self.averaging else "FedSGD", batch_size=self.batch, mode=mode)
        noise = LaplaceNoise(self.noise) if self.noise else NoDefense()
        threat, model = ThreatModel(("labels",)).knowing(chosen.gray), network.build((3, 32, 32), classes, seed)
        return play(model, images, labels, classes, plan=plan, defense=noise, threat=threat)


def gray(images: Tensor) -> Tensor:
    """Return images in gray, with three equal channels."""
    return images.mean(1, keepdim=True).expand_as(images).contiguous()


CELLS = {
    "batch 2": Cell(2),
    "batch 4": Cell(4),
    "batch 8": Cell(8),
    "Laplace 1e-3": Cell(noise=1e-3),
    "Laplace 1e-2": Cell(noise=1e-2),
    "FedAvg, 1 step": Cell(averaging=True),
    "FedAvg, 1 step of 4": Cell(4, averaging=True),
}

QUICK = {
    "images": 4,
    "cells": ["batch 4", "Laplace 1e-2", "FedAvg, 1 step"],
    "ours": ["Posterior"],
    "theirs": ["deepleakage", "invertinggradients"],
}


@dataclass
class Tally:
    """A method's results in one cell."""

    scores: list[Tensor] = field(default_factory=list)
    named: list[Tensor] = field(default_factory=list)
    seconds: float = 0.0
    evaluations: float = 0.0

    def add(self, guess: Tensor, truth: Tensor, known: Tensor, seconds: float = 0.0, evaluations: float = 0.0) -> None:
        """Add the guesses (V, N, C, H, W) of one stack or one update, among known images (G, C, H, W)."""
        self.scores.append(scores(guess, truth))
        self.named.append(identified(guess, truth, known))
        self.seconds += seconds
        self.evaluations += evaluations

    @property
    def mean(self) -> float:
        """The mean SSIM."""
        return float(torch.cat(self.scores).mean())

    def line(self, cell: str, method: str) -> str:
        """Return the row. Its seconds and evaluations are per image."""
        score = torch.cat(self.scores)
        each = (f"{self.evaluations / len(score):>8.0f}", f"{self.seconds / len(score):>10.2f}")
        named = float(torch.cat(self.named).float().mean())
        return f"{cell:<21}{method:<20}{len(score):>6}  {rate(score):<19}{self.mean:>7.3f}{named:>12.2f}{''.join(each)}"


HEAD = columns(("cell", -21), ("method", -20), ("images", 6), ("", 2), ("ASR [95 %]", -19), ("SSIM", 7))
HEAD += columns(("identified", 12), ("evals/im", 9), ("s/image", 9))


def compare(
    scenes: Sequence[tuple[Scene, Tensor, Tensor]], ours: Mapping[str, Attack], theirs: Sequence[str]
) -> dict[str, Tally]:
    """Run every method on the same scenes, ours first. Peers get as much time per update as our slowest attack.

    Args:
        scenes: each with the known images (G, C, H, W), and the mean (C, H, W) of images that are not attacked.
        ours, theirs: the methods.
    """
    tallies = {name: Tally() for name in (*ours, *theirs, MEAN)}
    for draw, (case, known, mean) in enumerate(scenes):
        budget = 0.0
        for name, attack in ours.items():
            began = now()
            found = attack(case.seen, torch.Generator().manual_seed(draw))
            spent = now() - began
            tallies[name].add(found.guesses, case.batches, known, spent, float(found.evaluations.sum()))
            budget = max(budget, spent / len(case.seen))
        for name in theirs:
            peer, pace = PEERS[name], PEERS[name].pace(case)
            for v in range(len(case.seen)):
                outcome = peer.within(case, v, budget, pace, LEAST, seed=v)
                truth = case.batches[v : v + 1]
                tallies[name].add(outcome.guess[None], truth, known, outcome.seconds, outcome.evaluations)
        tallies[MEAN].add(mean.expand_as(case.batches), case.batches, known)
    return tallies


def verdict(cell: str, tallies: dict[str, Tally], ours: Sequence[str], theirs: Sequence[str], zero: int) -> str:
    """Return the SSIM difference between our best method and the best peer, and the number of skipped updates."""
    left_out = f"{zero} zero updates left out"
    if not theirs:
        return f"{cell:<21}{left_out}"
    mine, other = (max(names, key=lambda n: tallies[n].mean) for names in (ours, theirs))
    return f"{cell:<21}{mine} - {other}: {tallies[mine].mean - tallies[other].mean:+.3f} SSIM; {left_out}"


def lines(chosen: argparse.Namespace, go_on: Callable[[], bool] = lambda: True) -> Iterator[str]:
    """Yield the table's lines. Once `go_on` returns False, the remaining cells are named and skipped."""
    theirs = list(chosen.theirs)
    for package, check in ((Peer, missing), (LeakPro, leakpro.missing)):
        asked = [name for name in theirs if isinstance(PEERS[name], package)]
        if asked and (why := check()):
            yield f"(the rows of {', '.join(asked)} are missing: {why})"
            theirs = [name for name in theirs if name not in asked]
    yield conditions()
    yield HEAD
    ours = {name: shortened(OURS[name], chosen.steps) for name in chosen.ours}
    for spec, mode, name in product(chosen.models, chosen.modes, chosen.cells):
        row = name if len(chosen.models) * len(chosen.modes) == 1 else f"{spec}, {mode}, {name}: "
        if not go_on():
            yield f"{row:<21}not run: time is up"
            continue
        scenes = scenes_of(CELLS[name], spec, mode, chosen)
        tallies = compare(scenes, ours, theirs)
        yield from (tally.line(row, method) for method, tally in tallies.items())
        yield verdict(row, tallies, list(ours), theirs, sum(case.zero for case, _, _ in scenes))


def shortened(attack: APRIL | GradInv | Posterior | WorstCase | iDLG, steps: int) -> Attack:
    """Return the attack with this many steps, or evaluations of `WorstCase`; with its own if `steps` is 0."""
    if not steps or isinstance(attack, APRIL):
        return attack
    return WorstCase(steps) if isinstance(attack, WorstCase) else replace(attack, steps=steps)


def scenes_of(cell: Cell, spec: str, mode: Mode, chosen: argparse.Namespace) -> list[tuple[Scene, Tensor, Tensor]]:
    """Return a cell's scenes for all sets and draws, each with the known images and the mean of the other rows."""
    model = build(spec, registry(model_parts), "model")
    assert isinstance(model, Model)
    found = []
    for name in chosen.sets:
        known, rest = known_images(name, 32), held_out(name, 1000, 32, not chosen.tune)[0]
        known, rest = (gray(images) if chosen.gray else images for images in (known, rest))
        for draw in range(chosen.draws):
            seed = (TUNED if chosen.tune else REPORTED) + draw
            found.append((cell.scene(name, seed, chosen, model, mode), known, rest.mean(0)))
    return found


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks contested", description=__doc__)
    parser.add_argument("--full", action="store_true", help="24 images per set and 3 draws of the weights")
    parser.add_argument("--quick", action="store_true", help="4 images, three cells, two peers")
    parser.add_argument("--images", type=int, help="images per set and draw (8)")
    parser.add_argument("--draws", type=int, help="draws of the weights (1)")
    parser.add_argument("--sets", nargs="+", default=available())
    parser.add_argument("--models", nargs="+", default=["LeNet('idlg')"], help="models, as specs (%(default)s)")
    parser.add_argument("--modes", nargs="+", default=["train"], choices=["train", "eval"])
    parser.add_argument("--gray", action="store_true", help="gray images, in three equal channels")
    parser.add_argument("--cells", nargs="+", choices=list(CELLS), help="cells to run (all)")
    parser.add_argument("--ours", nargs="+", choices=list(OURS), help="our attacks (all searches)")
    parser.add_argument(
        "--theirs",
        nargs="*",
        choices=list(PEERS),
        help="attacks of peers (all of breaching; LeakPro's need a clone, see benchmarks/leakpro.py)",
    )
    parser.add_argument("--steps", type=int, default=0, help="steps, or evaluations of WorstCase (0: its own)")
    parser.add_argument("--tune", action="store_true", help="use the rows and weights for tuning")
    chosen = parser.parse_args(arguments)
    form = QUICK if chosen.quick else {"images": 24, "draws": 3} if chosen.full else {}
    for name, value in ({"images": 8, "draws": 1, "cells": CELLS, "ours": SEARCHES, "theirs": THEIRS} | form).items():
        if getattr(chosen, name) is None:
            setattr(chosen, name, value if isinstance(value, int) else list(value))
    return chosen
