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
        self.cross, self.square = (like.new_zeros(rows, history, history, dtype=torch.float64) for _ in range(2))
        """Inner products (A, M, M) of steps with changes, and of changes with changes."""
        self.along = like.new_zeros(rows, history, 2, dtype=torch.float64)
        """Of steps and of changes with the gradient at which they were last added."""
        self.scale = like.new_zeros(rows)
        """Of the first inverse Hessian, s . y / y . y of the newest pair; 0 before the first."""
        self.count = 0

    def take(self, keep: Tensor) -> None:
        """Drops the other rows."""
        for name in ("moves", "changes", "cross", "square", "along", "scale"):
            setattr(self, name, getattr(self, name)[keep])

    def forget(self, which: Tensor) -> None:
        """Drops all pairs of some rows (A,)."""
        if which.any():
            for kept in (self.moves, self.changes, self.cross, self.square, self.along, self.scale):
                kept[which] = 0

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
        filled = min(self.count, self.moves.shape[1])
        steps, changes = (torch.bmm(both, t[:, :filled].mT).double() for t in (self.moves, self.changes))
        self.cross[:, :filled, slot] = steps[:, 0]
        self.square[:, :filled, slot] = self.square[:, slot, :filled] = changes[:, 0]
        self.along[:, :filled] = torch.stack([steps[:, 1], changes[:, 1]], 2)
        self.forget(~found)

    def times(self, gradient: Tensor) -> Tensor:
        """(A, D) the inverse Hessian times the gradient (A, D) with which `add` was last called."""
        size, history = min(self.count, self.moves.shape[1]), self.moves.shape[1]
        scale = torch.where(self.scale > 0, self.scale, 1.0)
        if not size:
            return gradient * scale[:, None]
        order = torch.arange(self.count - size, self.count, device=gradient.device) % history  # oldest first
        cross, square = (t[:, order[:, None], order] for t in (self.cross, self.square))
        steps, changes = self.along[:, order].unbind(2)
        first = scale.double()[:, None, None]
        diagonal = cross.diagonal(dim1=1, dim2=2)
        upper = cross.triu() + torch.diag_embed((diagonal == 0).to(cross))
        u = torch.linalg.solve_triangular(upper, steps[..., None], upper=True)
        right = diagonal[..., None] * u + first * (square @ u - changes[..., None])
        v = torch.linalg.solve_triangular(upper.mT, right, upper=False)
        weights = torch.stack([v[..., 0], -first[..., 0] * u[..., 0]], 1)
        back = torch.empty_like(weights)
        back[:, :, order] = weights
        along_steps, along_changes = back.to(gradient).split(1, dim=1)
        product = gradient * scale[:, None] + torch.bmm(along_steps, self.moves[:, :size])[:, 0]
        return product + torch.bmm(along_changes, self.changes[:, :size])[:, 0]
