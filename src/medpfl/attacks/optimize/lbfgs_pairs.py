"""The inverse Hessian of limited-memory BFGS for a stack of rows, in its compact form."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Pairs"]


class Pairs:
    """At most M steps s and changes of gradients y of each of A rows, and what they say of the inverse Hessian.

    Byrd, Nocedal and Schnabel 1994 ("Representations of quasi-Newton matrices and their use in limited memory
    methods", equation 3.1) write the product of the inverse Hessian with a gradient in the inner products of the
    pairs. It equals the two-loop recursion of Nocedal 1980, but reads the pairs as two matrices, once each, where
    the recursion reads them one by one: the time of a stack is that of its memory. Inner products are kept in
    float64: systems of so many equations lose more digits than the pixels have.

    Args:
        like: (A, D) points, for shape, device and type.
        history: M.
    """

    def __init__(self, like: Tensor, history: int) -> None:
        rows = len(like)
        self.moves, self.changes = (like.new_zeros(rows, history, like.shape[1]) for _ in range(2))
        self.cross, self.square = (
            like.new_zeros(rows, 2 * history, 2 * history, dtype=torch.float64) for _ in range(2)
        )
        """Inner products of steps with changes (on and above the diagonal), and of changes with changes.

        The pairs' vectors are overwritten in turn, but of these (A, 2 M, 2 M) a window moves down the diagonal, oldest
        first: solving triangular systems takes no sorting of matrices then. A pair that says nothing has a diagonal
        of 1 in the first, so that the systems have a solution, 0 there.
        """
        self.along = like.new_zeros(rows, 0, 2, dtype=torch.float64)
        """Of steps and of changes, oldest first, with the gradient at which they were last added."""
        self.scale = like.new_zeros(rows)
        """Of the first inverse Hessian, s . y / y . y of the newest pair; 0 before the first."""
        self.count = self.end = 0
        """Pairs added, and where the window ends."""

    def take(self, keep: Tensor) -> None:
        """Drops the other rows."""
        for name in ("moves", "changes", "cross", "square", "along", "scale"):
            setattr(self, name, getattr(self, name)[keep])

    def forget(self, which: Tensor) -> None:
        """Drops all pairs of some rows (A,)."""
        if which.any():
            for kept in (self.moves, self.changes, self.cross, self.square, self.along, self.scale):
                kept[which] = 0
            self.cross.diagonal(dim1=1, dim2=2)[which] = 1

    def add(self, move: Tensor, change: Tensor, gradient: Tensor, found: Tensor) -> None:
        """The newest pairs (A, D), in place of the oldest; `gradient` is that at the new points.

        A pair without positive curvature is kept as zeros, which say nothing. Rows that have not `found` a step
        forget all.
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
        """Where the vectors of the pairs are, oldest first."""
        history = self.moves.shape[1]
        oldest = max(self.count - history, 0)
        return torch.arange(oldest, self.count, device=self.moves.device) % history

    def _slide(self) -> slice:
        """The window with room for one more pair at its end."""
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
        """(A, D) the inverse Hessian times the gradient (A, D) with which `add` was last called."""
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
