"""The gradients of the backward passes, and how the loop changed them before the optimizer's step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Gradients"]


class Gradients:
    """Copies of the gradients after each backward pass, by parameter."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}
        self._hooks: list[Any] = []

    @property
    def watched(self) -> bool:
        """True between `watch` and `close`."""
        return bool(self._hooks)

    def watch(self, parameters: Iterable[Tensor], keep: Callable[[Tensor], None]) -> None:
        """Call a function with each parameter when a backward pass has added to its gradient, until `close`."""
        leaves = (p for p in parameters if p.requires_grad and p.is_leaf)
        self._hooks = [p.register_post_accumulate_grad_hook(keep) for p in leaves]

    def keep(self, parameter: Tensor) -> None:
        """Copy a parameter's gradient."""
        if parameter.grad is not None:
            self._kept[id(parameter)] = (parameter, parameter.grad.detach().clone())

    def forget(self) -> None:
        """Free the copies."""
        self._kept = {}

    def close(self) -> None:
        """Remove the hooks on the parameters, and free the copies."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self.forget()

    def change(self, optimizer: torch.optim.Optimizer) -> str:
        """Return how the optimizer's gradients differ from the copies: ``""``, ``"clipped"`` or ``"changed"``.

        They are clipped if all differ by one factor below 1.
        """
        factors = []
        for group in optimizer.param_groups:
            for p in group["params"]:
                _, kept = self._kept.get(id(p), (None, None))
                if p.grad is None or (kept is not None and _same(p.grad, kept)):
                    continue
                if kept is None or not (size := kept.norm()) or not size.isfinite():
                    return "changed"
                factor = p.grad.norm() / size
                if not torch.allclose(p.grad, kept * factor, rtol=1e-3, atol=float(size) * 1e-6):
                    return "changed"
                factors.append(float(factor))
        if not factors:
            return ""
        return "clipped" if max(factors) < 1 and max(factors) - min(factors) < 1e-2 * max(factors) else "changed"


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one, other) or torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)
