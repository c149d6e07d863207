"""Re-identification: is a guess nearer to its own image than to all others?"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Nearest", "distances", "nearest"]

_ELEMENTS = 2**18
"""Number of gallery elements that are compared together."""

_ROUNDING = 1e-5
"""Relative rounding error of `distances`, with a wide margin."""


class Nearest(NamedTuple):
    """The gallery images nearest to N images.

    Attributes:
        own: distances (N,), as float64, to the images' own gallery images.
        other: the same to the nearest other gallery images; infinite if there is none.
        place: gallery indices (N,) of the latter; the first of equally near ones, 0 if there is none.
    """

    own: Tensor
    other: Tensor
    place: Tensor

    @property
    def identified(self) -> Tensor:
        """(N,) booleans: nearer to the own image than to every other; a tie is not a re-identification."""
        return self.own < self.other

    def of_all(self, own: Tensor) -> Tensor:
        """Return the index (N,) of the nearest gallery image, the own one (at `own`) included; the first on a tie."""
        first = (self.own < self.other) | ((self.own == self.other) & (own < self.place))
        return torch.where(first, own, self.place)


def distances(images: Tensor, gallery: Tensor) -> Tensor:
    """Return mean squared errors (N, M) between images (N, C, H, W) and a gallery (M, C, H, W), both in [0, 1]."""
    a, b = images.flatten(1), gallery.flatten(1)
    # Explicit differences: the expanded square would lose the digits that tell near twins apart.
    rows = [(b - row).square().mean(1) for row in a]
    return torch.stack(rows) if rows else a.new_zeros(0, len(b))


def nearest(images: Tensor, own: Tensor, gallery: Iterable[Tensor], excluded: Callable[[int, int], Tensor]) -> Nearest:
    """Compare images with a gallery, which is passed through once, part by part.

    The result is that of `distances` to all gallery images, but only near ones are compared by explicit differences:
    the expanded square, a matrix product, tells in float64 which ones can be nearest at all.

    Args:
        images: (N, C, H, W) in [0, 1].
        own: (N,) gallery indices of the images' own images.
        gallery: consecutive parts (m, C, H, W) of the gallery, in [0, 1].
        excluded: function of a range of gallery indices (start, end). It returns booleans (N, end - start), true for
            images to leave out of the comparison: others of the same patient.
    """
    queries, first = images.flatten(1), 0
    found = _Search(queries, own)
    for part in gallery:
        for piece in part.flatten(1).split(max(1, _ELEMENTS // max(1, queries.shape[1]))):
            found.compare(piece, first, excluded(first, first + len(piece)))
            first += len(piece)
    return Nearest(found.own, found.other, found.place)


class _Search:
    """The nearest images so far, for queries (N, D) with their own images at `places` (N,)."""

    def __init__(self, queries: Tensor, places: Tensor) -> None:
        self.queries, self.places = queries, places
        self.wide = queries.double()
        self.squares = self.wide.square().sum(1)
        self.own = torch.full((len(queries),), torch.inf, dtype=torch.float64)
        self.other = self.own.clone()
        self.place = torch.zeros(len(queries), dtype=torch.long)

    def compare(self, piece: Tensor, first: int, excluded: Tensor) -> None:
        """Compare all queries with gallery images (m, D), the first of which has the gallery index `first`."""
        inside = ((self.places >= first) & (self.places < first + len(piece))).nonzero()[:, 0].tolist()
        excluded = excluded.clone()
        for k in inside:
            place = int(self.places[k]) - first
            excluded[k, place] = True
            self.own[k] = _exact(self.queries[k], piece[[place]])[0]
        wide = piece.double()
        squares, size = wide.square().sum(1), piece.shape[1]
        rough = ((self.squares[:, None] + squares - 2 * self.wide @ wide.T) / size).masked_fill_(excluded, torch.inf)
        # Bounds on the errors of this product, and of float32 in `distances`.
        error = 4 * torch.finfo(torch.float64).eps * (self.squares + squares.max())
        least = rough.amin(1)
        possible = (1 - _ROUNDING) * least - error <= self.other
        for k in (possible & least.isfinite()).nonzero()[:, 0].tolist():
            near = (rough[k] <= least[k] * (1 + 4 * _ROUNDING) + 2 * error[k]).nonzero()[:, 0]
            exact = _exact(self.queries[k], piece[near])
            best = exact.min()
            if best < self.other[k]:
                self.other[k], self.place[k] = best, first + near[(exact == best).nonzero()[0, 0]]


def _exact(query: Tensor, images: Tensor) -> Tensor:
    """Return the row of `distances` for one query (D,) and gallery images (m, D)."""
    # A single row would be summed in another order if torch uses several threads.
    return distances(query[None], images if len(images) > 1 else images.expand(2, -1))[0][: len(images)]
