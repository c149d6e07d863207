"""``python -m benchmarks sources``: certified sources of made-up gradient matrices that hold none, or known ones.

A false read is a certified vector whose cosine to every planted source is below 0.9999 without noise, and below 0.999
under noise. Matrices without separable sources must give none.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.rows import columns
from medpfl.attacks.deep.sources import separate

CHANNELS, OUTPUTS = 128, 128
HEAD = columns(("matrices", -44), ("number", 8), ("sources", 9), ("certified", 11), ("false", 7))

Planted = tuple[Tensor, Tensor]
"""Sources (r, C), and the matrix (O, C) that they make."""


def _mixed(inputs: Tensor, generator: torch.Generator, noise: float = 0.0) -> Planted:
    matrix = torch.randn(OUTPUTS, len(inputs), generator=generator, dtype=torch.float64) @ inputs
    drawn = torch.randn(matrix.shape, generator=generator, dtype=torch.float64)
    return inputs, matrix + noise * matrix.square().mean().sqrt() * drawn


def _dense(rank: int, generator: torch.Generator, alike: float = 0.0) -> Tensor:
    inputs = torch.rand(rank, CHANNELS, generator=generator, dtype=torch.float64)
    return (1 - alike) * inputs + alike * inputs[:1]


def _sparse(rank: int, generator: torch.Generator, alike: float = 0.0) -> Tensor:
    values = torch.randn(rank, CHANNELS, generator=generator, dtype=torch.float64)
    return (alike**0.5 * values[:1] + (1 - alike) ** 0.5 * values).clamp(min=0)


def _covered(rank: int, generator: torch.Generator) -> Tensor:
    inputs = _sparse(rank, generator)
    inputs[-1] *= inputs[0] > 0
    return inputs


def _dead(rank: int, generator: torch.Generator) -> Tensor:
    inputs = _dense(rank, generator)
    inputs[:, : CHANNELS // 2] = 0
    return inputs


def _doubled(rank: int, generator: torch.Generator) -> Tensor:
    inputs = _sparse(rank, generator)
    return torch.cat([inputs, inputs[:1]])


KINDS: dict[str, Callable[[int, torch.Generator], Planted]] = {
    "dense": lambda rank, g: _mixed(_dense(rank, g), g),
    "dense, much alike": lambda rank, g: _mixed(_dense(rank, g, 0.8), g),
    "dense, half of the channels dead": lambda rank, g: _mixed(_dead(rank, g), g),
    "dense, noise 1 %": lambda rank, g: _mixed(_dense(rank, g), g, 0.01),
    "dense, noise 3 %": lambda rank, g: _mixed(_dense(rank, g), g, 0.03),
    "dense, noise 10 %": lambda rank, g: _mixed(_dense(rank, g), g, 0.1),
    "sparse, more than can be separated": lambda rank, g: _mixed(_sparse(60 + rank, g), g),
    "noise alone": lambda _, g: _mixed(_sparse(1, g), g, 1e6),
    "sparse, one inside another's support": lambda rank, g: _mixed(_covered(rank, g), g),
    "sparse": lambda rank, g: _mixed(_sparse(rank, g), g),
    "sparse, much alike": lambda rank, g: _mixed(_sparse(rank, g, 0.6), g),
    "sparse, one twice": lambda rank, g: _mixed(_doubled(rank, g), g),
    "sparse, noise 1 %": lambda rank, g: _mixed(_sparse(rank, g), g, 0.01),
    "sparse, noise 3 %": lambda rank, g: _mixed(_sparse(rank, g), g, 0.03),
}
"""Ways to draw matrices of a rank."""


def lines(chosen: argparse.Namespace, go_on: Callable[[], bool] = lambda: True) -> Iterator[str]:
    """Yield the table's lines."""
    yield HEAD
    for kind, draw in KINDS.items():
        if not go_on():
            yield f"{kind}: not run: time is up"
            continue
        planted, certified, false = 0, 0, 0
        for seed in range(chosen.matrices):
            inputs, matrix = draw(2 + seed % 7, torch.Generator().manual_seed(seed))
            found = separate(matrix).inputs
            best = (normalize(found, dim=1) @ normalize(inputs, dim=1).T).amax(1) if len(found) else torch.zeros(0)
            planted, certified = planted + len(inputs), certified + len(found)
            false += int((best < (0.999 if "noise" in kind else 0.9999)).sum())
        yield f"{kind:<44}{chosen.matrices:>8}{planted:>9}{certified:>11}{false:>7}"


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks sources", description=__doc__)
    parser.add_argument("--matrices", type=int, default=100, help="matrices of each kind")
    return parser.parse_args(arguments)
