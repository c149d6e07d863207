"""``python -m benchmarks adaptive``: compare attacks that know the defense with attacks that do not.

Each update comes from one image, on LeNet('idlg') at 32 px. A naive attack does not get the defense's disclosure, an
adaptive attack does. Both infer the labels. The difference in success is the defense's false security: what a test
with naive attacks alone would miss.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence

import torch

from benchmarks.rows import columns, conditions, now, rate, scores
from benchmarks.scenes import REPORTED, TUNED, Scene, available, held_out, play
from medpfl.attacks import Posterior, iDLG
from medpfl.core.roles import Attack, Defense
from medpfl.core.threat import ThreatModel
from medpfl.defenses import (
    DPSGD,
    PRECODE,
    QSGD,
    Clipping,
    GaussianNoise,
    LaplaceNoise,
    NoDefense,
    Signs,
    Soteria,
    TopK,
)
from medpfl.models import LeNet

DEFENSES: dict[str, Defense] = {
    "none": NoDefense(),
    "Laplace 1e-3": LaplaceNoise(1e-3),
    "Laplace 1e-2": LaplaceNoise(1e-2),
    "Laplace 1e-1/layer": LaplaceNoise(0.1, "layer"),
    "Gaussian 1e-2": GaussianNoise(1e-2),
    "top 0.5": TopK(0.5),
    "top 0.2": TopK(0.2),
    "top 0.1": TopK(0.1),
    "QSGD 1024": QSGD(1024),
    "QSGD 64": QSGD(64),
    "clipping 1": Clipping(1.0),
    "signs": Signs(feedback=False),
    "DP-SGD 1e-3": DPSGD(1.0, 1e-3),
    "Soteria 0.5": Soteria(0.5),
    "PRECODE": PRECODE(),
}
OURS: dict[str, Attack] = {"iDLG": iDLG(), "Posterior": Posterior()}
HEAD = columns(("defense", -20), ("attack", -11), ("images", 6), ("", 2), ("naive", -19), ("SSIM", 7))
HEAD += columns(("", 2), ("adaptive", -19), ("SSIM", 7), ("s/image", 9))


def scenes(defense: Defense, chosen: argparse.Namespace, grants: tuple[str, ...]) -> list[Scene]:
    """Build one scene for each set."""
    first, made = TUNED if chosen.tune else REPORTED, []
    for name in chosen.sets:
        images, labels, classes = held_out(name, chosen.images, 32, chosen.tune)
        network = LeNet("idlg").build(tuple(images.shape[1:]), classes, first)
        threat = ThreatModel(grants)
        made.append(play(network, images[:, None], labels[:, None], classes, defense=defense, threat=threat))
    return made


def read_back(attack: Attack, cases: Sequence[Scene]) -> tuple[torch.Tensor, float]:
    """Attack all scenes; return the SSIM of all images (M,), and the seconds."""
    began, each = now(), []
    for i, case in enumerate(cases):
        found = attack(case.seen, torch.Generator().manual_seed(i))
        each.append(scores(found.guesses, case.batches))
    return torch.cat(each), now() - began


def lines(chosen: argparse.Namespace, go_on: Callable[[], bool] = lambda: True) -> Iterator[str]:
    """Yield the table's lines. Once `go_on` returns False, the remaining rows are named and skipped."""
    yield conditions()
    yield HEAD
    for name in chosen.defenses:
        for which in chosen.ours:
            yield line(name, which, chosen) if go_on() else f"{name:<20}{which:<11}not run: time is up"


def line(name: str, which: str, chosen: argparse.Namespace) -> str:
    """Return the row of one attack under one defense, naive and adaptive."""
    row, seconds, images = f"{name:<20}{which:<11}", 0.0, 0
    cells = []
    for grants in ((), ("defense",)):
        score, spent = read_back(OURS[which], scenes(DEFENSES[name], chosen, grants))
        cells.append(f"  {rate(score):<19}{score.mean():>7.3f}")
        seconds, images = seconds + spent, len(score)
    return f"{row}{images:>6}{''.join(cells)}{seconds / 2 / images:>9.2f}"


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks adaptive", description=__doc__)
    parser.add_argument("--images", type=int, default=4, help="images per set (%(default)s)")
    parser.add_argument("--sets", nargs="+", default=available())
    parser.add_argument("--defenses", nargs="+", choices=list(DEFENSES), default=list(DEFENSES), help="defenses (all)")
    parser.add_argument("--ours", nargs="+", choices=list(OURS), default=list(OURS), help="attacks (all)")
    parser.add_argument("--tune", action="store_true", help="use the rows and weights for tuning")
    return parser.parse_args(arguments)
