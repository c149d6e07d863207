"""The inverse Hessian in limited-memory BFGS for a stack of rows, in compact form."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Pairs"]


class Pairs:
    """At most M pairs of steps s and gradient changes y for each of A rows, and their inverse Hessian.

    Byrd, Nocedal and Schnabel 1994 ("Representations of quasi-Newton matrices and their use in limited memory methods",
    equation 3.1) express the product of inverse Hessian and gradient by the pairs' inner products. It equals the
    two-loop recursion (Nocedal 1980), but reads the pairs as two matrices, once each, where the recursion reads them
    one by one. For a stack, memory bandwidth determines the time. Inner products are kept in float64, because systems
    with this many equations lose more digits than pixels have.

    Args:
        like: (A, D) points that determine shape, device and dtype.
        history: M.
    """

    def __init__(self, like: Tensor, history: int) -> None:
        rows = len(like)
        self.moves, self.changes = (like.new_zeros(rows, history, like.shape[1]) for _ in range(2))
        self.cross, self.square = (
            like.new_zeros(rows, 2 * history, 2 * history, dtype=torch.float64) for _ in range(2)
        )
        """Inner products of steps with changes (on and above the diagonal), and of changes with changes.

        The pairs' vectors are overwritten in turn. In these (A, 2 M, 2 M) matrices, a window moves down the
        diagonal, oldest pair first, so that triangular systems can be solved without sorting. An unused pair has a 1
        on the diagonal of the first matrix, so that the system has the solution 0 there."""
        self.along = like.new_zeros(rows, 0, 2, dtype=torch.float64)
        """Inner products of steps and of changes, oldest first, with the gradient last passed to `add`."""
        self.scale = like.new_zeros(rows)
        """Scale of the initial inverse Hessian, s . y / y . y of the newest pair; 0 before the first pair."""
        self.count = self.end = 0
        """Number of pairs added, and the end of the window."""

    def take(self, keep: Tensor) -> None:
        """Keep only the given rows."""
        for name in ("moves", "changes", "cross", "square", "along", "scale"):
            setattr(self, name, getattr(self, name)[keep])

    def forget(self, which: Tensor) -> None:
        """Drop all pairs of some rows (A,)."""
        if which.any():
            for kept in (self.moves, self.changes, self.cross, self.square, self.along, self.scale):
                kept[which] = 0
            self.cross.diagonal(dim1=1, dim2=2)[which] = 1

    def add(self, move: Tensor, change: Tensor, gradient: Tensor, found: Tensor) -> None:
        """Replace the oldest pairs by new ones (A, D). `gradient` is the one at the new points.

        A pair without positive curvature is stored as zeros and has no effect. Rows without a step `found` drop all
        pairs.
        """
        product, size = torch.linalg.vecdot(move, change), change.square().sum(1)
        good = found & (product > 1e-10 * (size * move.square().sum(1)).sqrt()) & (size > 0)
        slot = self.count % self.moves.shape[1]
        self.moves[:, slot] = torch.where(good[:, None], move, 0)
        self.changes[:, slot] = torch.where(good[:, None], change, 0)
        self.scale = torch.where(good, product / torch.where(good, size, 1), self.scale)
        self.count += 1
        both = torch.stack([self.changes[:, slot], gradient], 1)
        order, window, last = self._order(), self._slide(), self.end - 1
        filled = len(order)
        steps, changes = (torch.bmm(both, t[:, :filled].mT)[:, :, order].double() for t in (self.moves, self.changes))
        self.cross[:, window, last] = steps[:, 0]
        self.cross[:, last, last] += (steps[:, 0, -1] == 0).to(self.cross)
        self.square[:, window, last] = self.square[:, last, window] = changes[:, 0]
        self.along = torch.stack([steps[:, 1], changes[:, 1]], 2)
        self.forget(~found)

    def _order(self) -> Tensor:
        """Return the slots of the pairs' vectors, oldest first."""
        history = self.moves.shape[1]
        oldest = max(self.count - history, 0)
        return torch.arange(oldest, self.count, device=self.moves.device) % history

    def _slide(self) -> slice:
        """Return the window with room for one more pair at its end."""
        history = self.moves.shape[1]
        if self.end == 2 * history:
            for products in (self.cross, self.square):
                products[:, :history, :history] = products[:, history:, history:]
            self.end = history
        self.end += 1
        return self._window()

    def _window(self) -> slice:
        return slice(max(self.end - self.moves.shape[1], 0), self.end)

    def times(self, gradient: Tensor) -> Tensor:
        """Return the inverse Hessian times the gradient, (A, D). The gradient must be the one last passed to `add`."""
        scale = torch.where(self.scale > 0, self.scale, 1.0)
        if not self.count:
            return gradient * scale[:, None]
        order, window = self._order(), self._window()
        upper, square = (t[:, window, window] for t in (self.cross, self.square))
        steps, changes = self.along.unbind(2)
        first = scale.double()[:, None, None]
        u = torch.linalg.solve_triangular(upper, steps[..., None], upper=True)
        right = upper.diagonal(dim1=1, dim2=2)[..., None] * u + first * (square @ u - changes[..., None])
        v = torch.linalg.solve_triangular(upper.mT, right, upper=False)
        weights = torch.stack([v[..., 0], -first[..., 0] * u[..., 0]], 1)
        back = torch.empty_like(weights)
        back[:, :, order] = weights
        along_steps, along_changes = back.to(gradient).split(1, dim=1)
        size = len(order)
        product = gradient * scale[:, None] + torch.bmm(along_steps, self.moves[:, :size])[:, 0]
        return product + torch.bmm(along_changes, self.changes[:, :size])[:, 0]
