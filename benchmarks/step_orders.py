"""``python -m benchmarks step_orders``: what a search reads of FedAvg updates of several steps in an unknown order.

Each step uses one image. *Unknown*: the attacker infers labels and order. *Granted*: it knows both. Images are gray.
*Identified*: the guess is nearer to its own image than to any other of the set.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.rows import columns, conditions, now, rate
from benchmarks.scenes import REPORTED, TUNED, available, held_out, known_images, play, shuffled
from medpfl.attacks import Posterior, WorstCase
from medpfl.core.plan import Plan
from medpfl.core.threat import ThreatModel
from medpfl.core.types import Reconstruction
from medpfl.metrics import ssim
from medpfl.metrics.identification import distances, nearest
from medpfl.metrics.pairing import pair
from medpfl.models import ConvNet, LeNet

MODELS = {"LeNet": LeNet("idlg"), "ConvNet": ConvNet()}

GRANTS = {"unknown": (), "granted": ("labels", "order")}

HEAD = columns(("set", -12), ("model", -9), ("rate", 7), ("steps", 6), ("", 2), ("order", -9), ("images", 6))
HEAD += columns(("identified", 11), ("", 2), ("ASR [95 %]", -19), ("SSIM", 6), ("labels", 7), ("in order", 9), ("s", 6))


@dataclass
class Tally:
    """Results of one cell: each image's SSIM, and numbers of images and of updates."""

    scores: list[Tensor] = field(default_factory=list)
    identified: int = 0
    labels: int = 0
    ordered: int = 0
    updates: int = 0
    seconds: float = 0.0

    def add(self, found: Reconstruction, truth: Tensor, labels: Tensor, places: Tensor, known: Tensor) -> None:
        """Add an update's images (N, C, H, W) in the order of its steps, with labels (N,) and places in the set."""
        guess = found.guesses[0].nan_to_num(0.0).clamp(0, 1)
        order = pair(guess, truth)
        self.scores.append(ssim(guess[order], truth))
        same = distances(truth, known) == 0
        near = nearest(guess[order], places, [known], lambda start, end: same[:, start:end])
        self.identified += int(near.identified.sum())
        told = found.labels[0] if found.labels is not None else torch.full_like(labels, -1)
        self.labels += int(torch.equal(told.sort().values, labels.sort().values))
        self.ordered += int(torch.equal(told, labels))
        self.updates += 1

    def line(self) -> str:
        """Return the end of the row."""
        score = torch.cat(self.scores)
        row = f"{len(score):>6}{self.identified / len(score):>11.2f}  {rate(score):<19}{float(score.mean()):>6.3f}"
        labels, ordered = (f"{n}/{self.updates}" for n in (self.labels, self.ordered))
        return f"{row}{labels:>7}{ordered:>9}{self.seconds / self.updates:>6.0f}"


def lines(chosen: argparse.Namespace, go_on: Callable[[], bool] = lambda: True) -> Iterator[str]:
    """Yield the table's lines."""
    yield conditions()
    yield HEAD
    for model in chosen.models:
        for order in chosen.orders:
            for name in chosen.sets:
                row = f"{name:<12}{model:<9}{chosen.rate:>7g}{chosen.images * chosen.epochs:>6}  {order:<9}"
                if not go_on():
                    yield f"{row}not run: time is up"
                    continue
                tally = Tally()
                for draw in range(chosen.draws):
                    _draw(chosen, name, model, order, draw, tally)
                yield row + tally.line()


def _draw(chosen: argparse.Namespace, name: str, model: str, order: str, draw: int, tally: Tally) -> None:
    first = TUNED if chosen.tune else REPORTED
    images, labels, classes = held_out(name, 1000, chosen.size, chosen.tune)
    images, known = images.mean(1, keepdim=True), known_images(name, chosen.size).mean(1, keepdim=True)
    plan = Plan(
        "FedAvg",
        batch_size=1,
        local_images=chosen.images,
        epochs=chosen.epochs,
        learning_rate=chosen.rate,
        mode="eval",
    )
    (own,) = shuffled(len(images), chosen.images, first + draw)[:1]
    network = MODELS[model].build(tuple(images.shape[1:]), classes, first + draw)
    threat = ThreatModel(GRANTS[order])
    case = play(network, images[own][None], labels[own][None], classes, plan=plan, threat=threat)
    asked = play(network, images[own][None], labels[own][None], classes, plan=plan, threat=ThreatModel(("order",)))
    began = now()
    attack = WorstCase(chosen.budget) if chosen.budget else Posterior(steps=chosen.steps)
    found = attack(case.seen, torch.Generator().manual_seed(draw))
    tally.seconds += now() - began
    steps = torch.arange(len(own)) if asked.seen.order is None or order == "granted" else asked.seen.order[0, 0]
    places = torch.stack([(known == image).flatten(1).all(1).nonzero()[0, 0] for image in images[own[steps]]])
    tally.add(found, images[own[steps]], labels[own[steps]], places, known)


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks step_orders", description=__doc__)
    parser.add_argument("--sets", nargs="+", default=available(), help="image sets (default: all on this machine)")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--orders", nargs="+", default=list(GRANTS), choices=list(GRANTS))
    parser.add_argument("--images", type=int, default=5, help="images, one for each step of an epoch")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--rate", type=float, default=0.01, help="local learning rate")
    parser.add_argument("--size", type=int, default=32, help="pixels per side")
    parser.add_argument("--draws", type=int, default=3, help="draws of the weights, with one update each")
    parser.add_argument("--steps", type=int, default=600, help="steps of Posterior")
    parser.add_argument("--budget", type=int, default=0, help="evaluations of WorstCase, in place of Posterior")
    parser.add_argument("--tune", action="store_true", help="use the rows and weights for tuning")
    return parser.parse_args(arguments)
