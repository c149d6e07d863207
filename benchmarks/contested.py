"""``python -m benchmarks contested``: compare our attacks with breaching's on cases where success is uncertain.

The cases are batches, noise and weight differences, on LeNet('idlg') at 32 px. All attacks get the labels. Ours run
first, with all victims in one stack. A peer takes one update at a time. It then gets as many seconds per update as our
slowest attack took, or enough for its minimum number of evaluations if that takes longer.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.peers import PEERS, missing
from benchmarks.rows import columns, conditions, now, rate, scores
from benchmarks.scenes import REPORTED, TUNED, Scene, available, dealt, held_out, play
from medpfl.attacks import GradInv, Posterior, iDLG
from medpfl.core.plan import Plan
from medpfl.core.roles import Attack
from medpfl.core.threat import ThreatModel
from medpfl.defenses import LaplaceNoise, NoDefense
from medpfl.models import LeNet

OURS: dict[str, Attack] = {
    "iDLG": iDLG(),
    "GradInv": GradInv(),
    "Posterior": Posterior(),
}
"""Our attacks by name, for `--ours`."""

THEIRS = ("deepleakage", "deepleakage+labels", "invertinggradients")
LEAST = 100
"""Minimum number of evaluations for a peer."""


@dataclass(frozen=True)
class Cell:
    """Settings of one case: images per update, scale of Laplace noise, and weight difference instead of gradient."""

    batch: int = 1
    noise: float = 0.0
    averaging: bool = False

    def scene(self, name: str, count: int, seed: int, tune: bool = False) -> Scene:
        """Build updates from `count` images in total, in full batches, under one draw of the weights."""
        images, labels, classes = held_out(name, count, 32, tune)
        images, labels = dealt(images, labels, self.batch, seed)
        network = LeNet("idlg").build(tuple(images.shape[2:]), classes, seed)
        plan = Plan(algorithm="FedAvg" if self.averaging else "FedSGD", batch_size=self.batch)
        noise = LaplaceNoise(self.noise) if self.noise else NoDefense()
        return play(network, images, labels, classes, plan=plan, defense=noise, threat=ThreatModel(("labels",)))


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
    seconds: float = 0.0
    evaluations: float = 0.0

    def add(self, score: Tensor, seconds: float, evaluations: float) -> None:
        """Add the results of one stack or one update."""
        self.scores.append(score)
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
        return f"{cell:<21}{method:<20}{len(score):>6}  {rate(score):<19}{self.mean:>7.3f}{''.join(each)}"


HEAD = columns(("cell", -21), ("method", -20), ("images", 6), ("", 2), ("ASR [95 %]", -19), ("SSIM", 7))
HEAD += columns(("evals/im", 9), ("s/image", 9))


def compare(cell: Cell, scenes: Sequence[Scene], ours: dict[str, Attack], theirs: Sequence[str]) -> dict[str, Tally]:
    """Run every method on the same scenes, ours first. Peers get as much time per update as our slowest attack."""
    tallies = {name: Tally() for name in (*ours, *theirs)}
    for draw, case in enumerate(scenes):
        budget = 0.0
        for name, attack in ours.items():
            began = now()
            found = attack(case.seen, torch.Generator().manual_seed(draw))
            spent = now() - began
            tallies[name].add(scores(found.guesses, case.batches), spent, float(found.evaluations.sum()))
            budget = max(budget, spent / len(case.seen))
        for name in theirs:
            peer, pace = PEERS[name], PEERS[name].pace(case)
            for v in range(len(case.seen)):
                outcome = peer.within(case, v, budget, pace, LEAST, seed=v)
                score = scores(outcome.guess[None], case.batches[v : v + 1])
                tallies[name].add(score, outcome.seconds, outcome.evaluations)
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
    theirs = chosen.theirs
    if theirs and (why := missing()):
        yield f"(the peers' rows are missing: {why})"
        theirs = []
    yield conditions()
    yield HEAD
    ours, first = {name: OURS[name] for name in chosen.ours}, TUNED if chosen.tune else REPORTED
    for name in chosen.cells:
        if not go_on():
            yield f"{name:<21}not run: time is up"
            continue
        cell = CELLS[name]
        places = [(s, first + d) for s in chosen.sets for d in range(chosen.draws)]
        scenes = [cell.scene(s, chosen.images, seed, chosen.tune) for s, seed in places]
        tallies = compare(cell, scenes, ours, theirs)
        yield from (tally.line(name, method) for method, tally in tallies.items())
        yield verdict(name, tallies, list(ours), theirs, sum(s.zero for s in scenes))


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks contested", description=__doc__)
    parser.add_argument("--full", action="store_true", help="24 images per set and 3 draws of the weights")
    parser.add_argument("--quick", action="store_true", help="4 images, three cells, two peers")
    parser.add_argument("--images", type=int, help="images per set and draw (8)")
    parser.add_argument("--draws", type=int, help="draws of the weights (1)")
    parser.add_argument("--sets", nargs="+", default=available())
    parser.add_argument("--cells", nargs="+", choices=list(CELLS), help="cells to run (all)")
    parser.add_argument("--ours", nargs="+", choices=list(OURS), help="our attacks (all)")
    parser.add_argument("--theirs", nargs="*", choices=list(PEERS), help="breaching's attacks (all)")
    parser.add_argument("--tune", action="store_true", help="use the rows and weights for tuning")
    chosen = parser.parse_args(arguments)
    form = QUICK if chosen.quick else {"images": 24, "draws": 3} if chosen.full else {}
    for name, value in ({"images": 8, "draws": 1, "cells": CELLS, "ours": OURS, "theirs": THEIRS} | form).items():
        if getattr(chosen, name) is None:
            setattr(chosen, name, value if isinstance(value, int) else list(value))
    return chosen
