"""Losses as a watched loop calls them, and their settings as a record states them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from medpfl.core.records.steps import Setting

__all__ = ["LOSSES", "LossWatch", "plain"]

LOSSES = (
    "cross_entropy", "nll_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits", "mse_loss", "l1_loss",
    "smooth_l1_loss", "huber_loss", "kl_div", "multi_margin_loss", "multilabel_margin_loss", "hinge_embedding_loss",
    "multilabel_soft_margin_loss", "soft_margin_loss", "poisson_nll_loss", "gaussian_nll_loss",
)  # fmt: skip
"""Losses in ``torch.nn.functional`` that are seen; a loss of one's own is seen if it calls one of them."""


class _Listener(Protocol):
    def loss(self, name: str, targets: Tensor | None, settings: dict[str, Setting]) -> None:
        """Note a loss."""

    def breaks(self, error: Exception) -> None:
        """Stop listening after an error."""


class LossWatch(TorchFunctionMode):
    """A mode that tells a listener, such as a `Watch`, about every loss of ``torch.nn.functional``."""

    def __init__(self, seen: _Listener) -> None:
        super().__init__()
        self.seen = seen
        self.known = {getattr(nn.functional, name): name for name in LOSSES}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Note a loss, and call it."""
        kwargs = dict(kwargs or {})
        name = self.known.get(func) if getattr(func, "__hash__", None) else None
        if name is not None and torch.is_grad_enabled():
            try:
                target, settings = _loss_call(func, args, kwargs)
                self.seen.loss(name, target, settings)
            except Exception as error:  # the loss is the training's own call: it runs in any case
                self.seen.breaks(error)
        return func(*args, **kwargs)


def plain(value: Any) -> Setting:
    """Return a setting of an optimizer or a loss as a record states it: a number, a text, a tuple, or a type's name."""
    try:
        if isinstance(value, Tensor) and value.numel() == 1:
            value = float(value)
        elif isinstance(value, Tensor):
            value = tuple(float(v) for v in value.detach().flatten())
        elif isinstance(value, tuple | list):
            value = tuple(float(v) for v in value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return type(value).__name__
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, bool | int | float | str | tuple) else type(value).__name__


def _loss_call(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Tensor | None, dict[str, Setting]]:
    """Return a loss's targets, and its settings that differ from their defaults and matter."""
    signature = inspect.signature(func)
    given = signature.bind(*args, **kwargs).arguments
    target = given.get("target")
    names = [n for n, p in signature.parameters.items() if p.default is not p.empty and n in given]
    settings = {n: plain(given[n]) for n in names if _differs(given[n], signature.parameters[n].default)}
    if isinstance(target, Tensor) and "ignore_index" in settings and not bool((target == given["ignore_index"]).any()):
        settings.pop("ignore_index")  # nothing is ignored
    return (target if isinstance(target, Tensor) else None), settings


def _differs(value: Any, default: Any) -> bool:
    return isinstance(value, Tensor) or value != default
