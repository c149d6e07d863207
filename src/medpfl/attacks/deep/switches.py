"""Separation of a linear layer's gradient by the states of the ReLU behind it.

A linear layer's gradient is ``G = sum_i d_i x_i^T``, one term per image. Where a ReLU follows the layer, and then only
affine operations, ``d_i = s_i * (A p_i)``: s_i are the ReLU's states, 0 or 1, A is known from the weights, and p_i is
the derivative by the logits. So each image is a vector in the space of G's columns in which every entry is either 0 or
that of ``A p``, for one p. As many entries as there are unknowns determine such a vector, up to its size. All others
then test it. The inputs x_i are not restricted, and may be alike: their states need only differ somewhere.

Vectors are found by random states of a few entries, and then in turns: the nearer state of every entry, and the vector
that fits all states best. With two classes, few combinations of images are such vectors too: the difference of nested
states, for one. The inputs decide: run forward, they must give the states by which they were separated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from medpfl.attacks.deep.sources import DEVIATIONS, GAP, RowSpace, required

__all__ = ["Head", "States", "most_images", "separate_states"]

_ROUNDED = 1e-6
"""Relative error of a derivative that float32 alone can cause."""

_DECISIVE = 10.0
"""An entry tests a vector if its two values differ by more than this many times their error."""

_REACH = 17
"""Largest number of unknowns of one vector with which the search is tried."""

_DRAWS, _TURNS = 500, 12
"""Starts of one round, and the number of turns for each."""

_ROUNDS, _PATIENCE = 120, 20
"""Maximum number of rounds, and the number of rounds without any vector after which the search ends."""

_SAME = 1e-6
"""Two vectors are the same if their cosine is above 1 minus this number."""

_INDEPENDENT = 1e-5
"""Smallest part of a vector, relative to its size, that is not a combination of others."""

_FORWARD = 1e-4
"""Share of a layer's typical output below which the state of its ReLU is undecided without noise."""

_CHOICES = 8
"""Number of choices among the vectors that are improved after one round."""

_UNDECIDED = 0.02
"""Largest share of the states that may be undecided."""


@dataclass(frozen=True, eq=False)
class States:
    """The images of a gradient, separated by ReLU states.

    Attributes:
        inputs: (S, C) the layer's inputs; in no particular order. S is the rank, or 0.
        found: number of independent vectors that were found.
        rank: r, the number of terms in the sum; 0 if the spectrum shows none.
        agreed: number of states that follow from the inputs, all of which agree with those of the vectors.
        undecided: number of states that noise or rounding leaves open.
    """

    inputs: Tensor
    found: int
    rank: int
    agreed: int = 0
    undecided: int = 0

    @property
    def complete(self) -> bool:
        """True if every term of the sum was found."""
        return 0 < self.rank == len(self.inputs)

    @property
    def evidence(self) -> str:
        """Why the inputs are right."""
        total = self.agreed + self.undecided
        return f"{self.agreed:,} of {total:,} ReLU states follow from the images again, and none is contradicted"


class Head(NamedTuple):
    """The derivative by a layer's outputs of an image whose ReLUs are all on.

    Attributes:
        weight: (O, K) for each class's logit.
        directions: (K, M) orthonormal basis of the images' derivatives by the logits.
    """

    weight: Tensor
    directions: Tensor


class _Vector(NamedTuple):
    """A vector with entries 0 or those of ``head @ pull``.

    Attributes:
        coefficients: (r,) in the columns' basis; of unit norm.
        entries: (O,) the vector.
        states: (O,) which entries are not 0.
    """

    coefficients: Tensor
    entries: Tensor
    states: Tensor


def most_images(outputs: int, classes: int, most: int) -> int:
    """Return the largest number of images, up to `most`, whose states can be told apart in a layer, by count.

    An image's vector has as many unknowns as there are images and directions of the derivative by the logits, less one
    for its size. Half of the layer's outputs are counted as ones that test a vector; the others are off everywhere.
    """

    def unknowns(images: int) -> int:
        return images + min(images, classes - 1) - 1

    return sum(unknowns(n) <= _REACH and 2 * required(unknowns(n)) <= outputs for n in range(1, most + 1))


def separate_states(matrix: Tensor, head: Head, run: Callable[[Tensor], Tensor], gain: Tensor) -> States:
    """Return the separated images of a gradient; all or none.

    Args:
        matrix: (O, C + 1) gradient of the layer's weight, and of its bias as last column, in float64 on the CPU.
        head: the network behind the ReLU.
        run: returns the inputs (r, O) of the ReLU for inputs (r, C) of the layer.
        gain: (O,) largest change of the ReLU's inputs per unit of the layer's inputs.
    """
    space = RowSpace.of(matrix.numpy())
    if not space.gap > GAP:
        return States(matrix.new_zeros(0, matrix.shape[1] - 1), 0, 0)
    search, generator = _Search(matrix, space, head), torch.Generator().manual_seed(0)
    vectors: list[_Vector] = []
    found = idle = 0
    for _ in range(_ROUNDS):
        before = len(vectors)
        for one in search.drawn(generator):
            if all(abs(float(one.coefficients @ other.coefficients)) < 1 - _SAME for other in vectors):
                vectors.append(one)
        idle = idle + 1 if len(vectors) == before else 0
        found = len(_independent(vectors))
        if not idle and found == search.rank:
            joined = _joined(matrix, vectors, space, run, gain)
            if joined is not None:
                return joined
        if idle >= _PATIENCE and not vectors:
            break
    return States(matrix.new_zeros(0, matrix.shape[1] - 1), found, search.rank)


class _Search:
    """The search for vectors in the space of a matrix's columns."""

    def __init__(self, matrix: Tensor, space: RowSpace, head: Head) -> None:
        rows, sizes = (torch.from_numpy(part) for part in (space.rows, space.sizes))
        self.rank, self.noise, self.sizes = len(rows), space.noise, sizes
        self.basis, self.head = matrix @ rows.T / sizes, head.weight @ head.directions
        self.rounded = _ROUNDED * head.weight.norm(dim=1)
        height = (self.basis * sizes).norm(dim=1)
        limit = max(DEVIATIONS * space.noise * self.rank**0.5, 1e-12 * float(height.max()))
        self.live = ((height > limit) & (self.head.norm(dim=1) > 0)).nonzero()[:, 0]
        pairs = torch.einsum("or,om->orm", self.basis, self.head).flatten(1)
        squares = torch.einsum("om,on->omn", self.head, self.head).flatten(1)
        self.own, self.products = self.basis.T @ self.basis, torch.cat([pairs, squares], 1)

    def drawn(self, generator: torch.Generator) -> list[_Vector]:
        """Return the vectors found from random states of a few entries."""
        count = self.rank + self.head.shape[1] - 1
        if len(self.live) < count:
            return []
        rows = self._rows(count, generator)
        states = torch.randint(0, 2, (_DRAWS, count), generator=generator).to(self.basis)
        system = torch.cat([self.basis[rows].expand(_DRAWS, -1, -1), -states[:, :, None] * self.head[rows]], 2)
        found = torch.linalg.eigh(system.mT @ system).eigenvectors[:, :, 0]
        for _ in range(_TURNS):
            states = self._states(found)
            found = self._fitted(states)[states.any(1)]
        return self._certified(torch.unique(self._states(found), dim=0))

    def _rows(self, count: int, generator: torch.Generator) -> Tensor:
        """Return entries that differ much between the images, at random: a pivoted choice among scaled rows."""
        rest = normalize(self.basis[self.live] / self.head[self.live].norm(dim=1, keepdim=True), dim=0)
        rest = rest * torch.rand(len(rest), 1, generator=generator).to(rest)
        chosen = []
        for _ in range(self.rank):
            chosen.append(int(rest.norm(dim=1).argmax()))
            unit = normalize(rest[chosen[-1]], dim=0)
            rest = rest - (rest @ unit)[:, None] * unit
        others = [k for k in torch.randperm(len(rest), generator=generator).tolist() if k not in chosen]
        return self.live[chosen + others[: count - len(chosen)]]

    def _values(self, found: Tensor) -> tuple[Tensor, Tensor]:
        """Return the entries (V, O) of vectors (V, r + M) in the columns' space, and those with all ReLUs on."""
        return found[:, : self.rank] @ self.basis.T, found[:, self.rank :] @ self.head.T

    def _states(self, found: Tensor) -> Tensor:
        """Return the nearer state (V, O) of each entry."""
        values, opened = self._values(found)
        return (values - opened).abs() < values.abs()

    def _fitted(self, states: Tensor) -> Tensor:
        """Return the vectors (V, r + M) that fit states (V, O) best."""
        rank, width = self.rank, self.head.shape[1]
        pairs, squares = (states.to(self.products) @ self.products).split([rank * width, width**2], 1)
        normal = self.own.new_zeros(len(states), rank + width, rank + width)
        normal[:, :rank, :rank] = self.own
        normal[:, :rank, rank:] = -pairs.view(-1, rank, width)
        normal[:, rank:, :rank] = normal[:, :rank, rank:].mT
        normal[:, rank:, rank:] = squares.view(-1, width, width)
        return torch.linalg.eigh(normal).eigenvectors[:, :, 0]

    def _certified(self, states: Tensor) -> list[_Vector]:
        """Return the vectors that their states (V, O) determine and all entries confirm."""
        found, least = self._fitted(states), required(self.rank + self.head.shape[1] - 1)
        values, opened = self._values(found)
        errors = DEVIATIONS * self.noise * (found[:, : self.rank] / self.sizes).norm(dim=1, keepdim=True)
        errors = errors + found[:, self.rank :].norm(dim=1, keepdim=True) * self.rounded
        fits = (values - torch.where(states, opened, 0.0)).abs() <= errors
        decisive = (opened.abs() > _DECISIVE * errors)[:, self.live]
        on = decisive & states[:, self.live]  # without any, a vector of zeros would fit
        right = fits.all(1) & (decisive.sum(1) >= least) & (2 * on.sum(1) >= least)
        return [
            _Vector(normalize(found[k, : self.rank], dim=0), normalize(opened[k] * states[k], dim=0), states[k])
            for k in right.nonzero()[:, 0].tolist()
        ]


def _independent(vectors: list[_Vector]) -> list[int]:
    """Return the places of vectors none of which is a combination of those before."""
    chosen: list[int] = []
    basis: list[Tensor] = []
    for k, one in enumerate(vectors):
        rest = one.coefficients
        for unit in basis * 2:  # twice: the first pass leaves rounding
            rest = rest - (rest @ unit) * unit
        if rest.norm() > _INDEPENDENT:
            chosen.append(k)
            basis.append(rest / rest.norm())
    return chosen


def _joined(
    matrix: Tensor, vectors: list[_Vector], space: RowSpace, run: Callable[[Tensor], Tensor], gain: Tensor
) -> States | None:
    """Return the images of the vectors whose inputs give their own states; ``None`` if no choice of them does.

    A choice is improved by exchanging one vector as long as fewer states are wrong, from several random choices.
    """

    def read(chosen: list[int]) -> tuple[int, States | None]:
        return _read(matrix, [vectors[k] for k in chosen], space, run, gain)

    generator = torch.Generator().manual_seed(0)
    for k in range(_CHOICES):
        order = torch.randperm(len(vectors), generator=generator).tolist() if k else list(range(len(vectors)))
        best = [order[place] for place in _independent([vectors[j] for j in order])]
        wrong, states = read(best)
        improved = wrong > 0
        while improved:
            improved = False
            for other in _exchanged(best, vectors):
                fewer, found = read(other)
                if fewer < wrong:
                    best, wrong, states, improved = other, fewer, found, fewer > 0
                    break
        if states is not None or len(best) == len(vectors):
            return states
    return None


def _exchanged(chosen: list[int], vectors: list[_Vector]) -> Iterator[list[int]]:
    """Yield the independent choices in which one vector is another."""
    for new in range(len(vectors)):
        for place in range(len(chosen)) if new not in chosen else ():
            other = [*chosen[:place], new, *chosen[place + 1 :]]
            if len(_independent([vectors[k] for k in other])) == len(other):
                yield other


def _read(
    matrix: Tensor, vectors: list[_Vector], space: RowSpace, run: Callable[[Tensor], Tensor], gain: Tensor
) -> tuple[int, States | None]:
    """Return how many states do not follow from the inputs, and the images if all do."""
    inverse = torch.linalg.pinv(torch.stack([one.entries for one in vectors], 1))
    found = inverse @ matrix
    shares = found[:, -1:]  # the bias's input is 1 for every image
    inputs, states = found[:, :-1] / shares, torch.stack([one.states for one in vectors])
    if not inputs.isfinite().all():
        return states.numel(), None
    values = run(inputs)
    errors = DEVIATIONS * space.noise * (inverse.norm(dim=1, keepdim=True) / shares.abs()) * gain
    errors = errors + _FORWARD * values.square().mean(1, keepdim=True).sqrt()
    decided = values.abs() > errors
    wrong = int((decided & ((values > 0) != states)).sum())
    undecided = int((~decided).sum())
    if wrong or undecided > _UNDECIDED * states.numel():
        return max(wrong, 1), None
    return 0, States(inputs, len(vectors), len(vectors), states.numel() - undecided, undecided)
