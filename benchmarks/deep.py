"""``python -m benchmarks deep``: compare GradInv and DeepRGAP on ResNet-18 with breaching's invertinggradients.

Images are attacked one by one in eval mode, and all attacks get the labels. The peer runs for a set number of
iterations. GradInv then runs from scratch for fixed shares of the peer's time, each run with its own full schedule. The
table therefore shows the SSIM at equal time (share 1), and the smallest share at which GradInv reaches the peer's SSIM.
DeepRGAP has no time limit.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.overhead import overhead
from benchmarks.peers import PEERS, missing
from benchmarks.rows import columns, conditions, now, rate, scores
from benchmarks.scenes import REPORTED, Scene, available, play
from benchmarks.trained import Case, trained, untrained
from medpfl.attacks.deep_rgap import DeepRGAP
from medpfl.attacks.gradinv import TRAINED, UNTRAINED, GradInv
from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.threat import ThreatModel

OURS = {"untrained": UNTRAINED, "trained": TRAINED}
"""GradInv by kind of network. The available time sets `steps`."""

SHARES = (1 / 12, 1 / 6, 1 / 3, 1.0)
HEAD = columns(("network", -48), ("method", -20), ("images", 6), ("steps", 7), ("", 2), ("ASR [95 %]", -19))
HEAD += columns(("SSIM", 7), ("s/image", 9), ("share", 7))


def line(network: str, method: str, steps: int, score: Tensor, seconds: float, share: float | None) -> str:
    """Return a row; `share` is relative to the peer's time."""
    front = f"{network:<48}{method:<20}{len(score):>6}{steps:>7}  {rate(score):<19}"
    return f"{front}{score.mean():>7.3f}{seconds:>9.1f}{'-' if share is None else f'{share:.2f}':>7}"


def observed(case: Case) -> Scene:
    """Build one update for each image."""
    return play(
        case.network,
        case.images[:, None],
        case.labels[:, None],
        case.classes,
        plan=Plan(mode="eval"),
        threat=ThreatModel(("labels",)),
    )


def run(scene: Scene, attack: GradInv | DeepRGAP, steps: int) -> tuple[Tensor, float]:
    """Return the SSIM (V,) of one of our attacks after `steps` steps, and the seconds per image."""
    began = now()
    found = replace(attack, steps=steps)(scene.seen, torch.Generator().manual_seed(0))
    spent = now() - began
    return scores(found.guesses, scene.batches), spent / len(scene.seen)


def solved(case: Case, scene: Scene, theirs: float | None) -> str:
    """Return the row of DeepRGAP; `theirs` is the peer's time."""
    try:
        DeepRGAP().check(scene.seen.model, scene.seen.views[0].plans, scene.seen.image_shape)
    except InputError as error:
        return f"{case.name}: DeepRGAP does not apply: {error}"
    score, seconds = run(scene, DeepRGAP(), DeepRGAP().steps)
    return line(case.name, "DeepRGAP", DeepRGAP().steps, score, seconds, seconds / theirs if theirs else None)


def duel(case: Case, attack: GradInv, iterations: int, peer: bool) -> Iterator[str]:
    """Yield the rows of one network. Without the peer, GradInv runs for `iterations` steps."""
    scene = observed(case)
    if scene.zero:
        yield f"{case.name}: {scene.zero} zero updates left out"
    if not peer:
        yield solved(case, scene, None)
        score, seconds = run(scene, attack, iterations)
        yield line(case.name, "GradInv", iterations, score, seconds, None)
        return
    theirs, seconds = _theirs(scene, iterations)
    yield line(case.name, "invertinggradients", iterations, theirs, seconds, 1.0)
    yield solved(case, scene, seconds)
    pace = run(scene, attack, 4)[1] / 5  # evaluations are one more than steps
    reached = None
    for share in SHARES:
        steps = max(1, round(share * seconds / pace) - 1)
        score, spent = run(scene, attack, steps)
        yield line(case.name, "GradInv", steps, score, spent, spent / seconds)
        pace = spent / (steps + 1)
        if reached is None and score.mean() >= theirs.mean():
            reached = spent / seconds
    told = "does not reach it" if reached is None else f"reaches it in {reached:.2f} of its time"
    yield f"{case.name}: the peer has SSIM {theirs.mean():.3f}; ours {told}"


def _theirs(scene: Scene, iterations: int) -> tuple[Tensor, float]:
    """Return the peer's SSIM (V,) and the seconds per image."""
    peer = PEERS["invertinggradients"]
    peer.attack(scene, 0, 4)  # TorchScript compiles
    found = [peer.attack(scene, v, iterations, seed=v) for v in range(len(scene.seen))]
    return scores(torch.stack([f.guess for f in found]), scene.batches), sum(f.seconds for f in found) / len(found)


def lines(chosen: argparse.Namespace, go_on: Callable[[], bool] = lambda: True) -> Iterator[str]:
    """Yield the table's lines. Once `go_on` returns False, the remaining parts are named and skipped."""
    why = missing() or ("--alone was given" if chosen.alone else None)
    if why:
        yield f"(the peer's rows are missing: {why})"
    parts: dict[str, Callable[[], Iterator[str]]] = {
        "overhead": lambda: iter([overhead(observed(untrained(64, 1, REPORTED)))]),
        "untrained": lambda: _draws(chosen, "untrained", not why),
        "trained": lambda: _draws(chosen, "trained", not why),
        "224": lambda: duel(untrained(224, 1, REPORTED), OURS["untrained"], chosen.large, False),
    }
    yield conditions()
    yield HEAD
    for name in chosen.parts:
        yield from parts[name]() if go_on() else [f"{name}: not run: time is up"]


def _draws(chosen: argparse.Namespace, kind: str, peer: bool) -> Iterator[str]:
    for seed in range(REPORTED, REPORTED + chosen.draws):
        if kind == "trained":
            case = trained(64, chosen.images, seed, chosen.training)
        else:
            case = untrained(64, chosen.images, seed, chosen.set)
        yield from duel(case, OURS[kind], chosen.iterations, peer)


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks deep", description=__doc__)
    parser.add_argument("--full", action="store_true", help="6 images, 2,000 peer iterations, 3 draws")
    parser.add_argument("--images", type=int, help="images at 64 px per draw of the weights (1)")
    parser.add_argument("--iterations", type=int, help="peer iterations at 64 px (50)")
    parser.add_argument("--draws", type=int, help="draws of the weights (1)")
    parser.add_argument("--alone", action="store_true", help="run without the peer: our attacks for --iterations steps")
    parser.add_argument("--set", default=available()[0], help="image set for the untrained network (%(default)s)")
    parser.add_argument("--training", type=int, help="Adam steps of the trained network, 64 images each (20)")
    parser.add_argument("--large", type=int, help="GradInv steps on one image at 224 px (10)")
    names = ["overhead", "untrained", "trained", "224"]
    parser.add_argument("--parts", nargs="+", default=names, choices=names)
    chosen = parser.parse_args(arguments)
    forms = {"images": (1, 6), "iterations": (50, 2000), "draws": (1, 3), "training": (20, 120), "large": (10, 500)}
    for name, (quick, full) in forms.items():
        setattr(chosen, name, getattr(chosen, name) or (full if chosen.full else quick))
    return chosen
