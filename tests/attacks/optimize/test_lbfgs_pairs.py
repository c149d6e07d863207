"""The compact form of L-BFGS against Nocedal's two-loop recursion (1980), written here pair by pair."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medpfl.attacks.optimize.lbfgs_pairs import Pairs


def two_loops(pairs: list[tuple[Tensor, Tensor]], gradient: Tensor) -> Tensor:
    """Return the inverse Hessian times the gradient (D,); the oldest pair comes first."""
    q, weights = gradient.clone(), []
    for move, change in reversed(pairs):
        weights.append((move @ q) / (move @ change))
        q = q - weights[-1] * change
    if pairs:
        move, change = pairs[-1]
        q = q * (move @ change) / (change @ change)
    for (move, change), weight in zip(pairs, reversed(weights), strict=True):
        q = q + move * (weight - (change @ q) / (move @ change))
    return q


def drawn(rows: int, steps: int, generator: torch.Generator) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Draw steps, gradient changes under a positive Hessian, and gradients."""
    root = torch.randn(rows, 9, 9, generator=generator, dtype=torch.float64)
    hessian = root @ root.mT + torch.eye(9)
    moves = torch.randn(steps, rows, 9, generator=generator, dtype=torch.float64)
    gradients = torch.randn(steps, rows, 9, generator=generator, dtype=torch.float64)
    return [(m, (hessian @ m[..., None])[..., 0], g) for m, g in zip(moves, gradients, strict=True)]


@pytest.mark.parametrize("history", [1, 3, 8])
def test_is_the_recursion_of_the_newest_pairs(history: int) -> None:
    generator = torch.Generator().manual_seed(history)
    kept, all_found = Pairs(torch.zeros(4, 9, dtype=torch.float64), history), torch.ones(4, dtype=torch.bool)
    trace = drawn(4, 7, generator)
    for i, (move, change, gradient) in enumerate(trace):
        kept.add(move, change, gradient, all_found)
        product = kept.times(gradient)
        for row in range(4):
            mine = [(m[row], c[row]) for m, c, _ in trace[max(0, i + 1 - history) : i + 1]]
            torch.testing.assert_close(product[row], two_loops(mine, gradient[row]), rtol=1e-9, atol=1e-9)


def test_a_row_that_loses_a_pair_or_all_leaves_the_others_as_they_are() -> None:
    trace = drawn(3, 4, torch.Generator().manual_seed(1))
    kept = Pairs(torch.zeros(3, 9, dtype=torch.float64), 4)
    for i, (move, change, gradient) in enumerate(trace):
        if i == 2:
            change[1].neg_()  # negative curvature: the pair is left out
        kept.add(move, change, gradient, torch.tensor([True, True, i != 1]))
    last, usable = trace[-1][2], [[0, 1, 2, 3], [0, 1, 3], [2, 3]]
    for row, pairs in enumerate(usable):
        expected = two_loops([(trace[i][0][row], trace[i][1][row]) for i in pairs], last[row])
        torch.testing.assert_close(kept.times(last)[row], expected, rtol=1e-9, atol=1e-9)
    kept.take(torch.tensor([False, True, True]))
    torch.testing.assert_close(
        kept.times(last[1:])[1], two_loops([(trace[i][0][2], trace[i][1][2]) for i in (2, 3)], last[2])
    )


def test_without_pairs_it_is_the_gradient_itself() -> None:
    gradient = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Pairs(gradient, 3).times(gradient), gradient)
