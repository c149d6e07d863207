"""A watch for a training in another thread than the filters, as in FLARE's in-process client API."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from medpfl.core.records.steps import Setting
from medpfl.recording.watching.losses import LossWatch
from medpfl.recording.watching.watch import Watch

__all__ = ["WatchAnywhere"]

_local = threading.local()


class _Nobody:
    """A listener that hears nothing."""

    def loss(self, name: str, targets: Tensor | None, settings: dict[str, Setting]) -> None:
        """Do nothing."""

    def breaks(self, error: Exception) -> None:
        """Do nothing."""


class WatchAnywhere(Watch):
    """A watch that belongs to the first thread that calls a trainable module with gradients, until `stop`.

    Args:
        keep: True keeps pixels and labels for a truth file.
    """

    def __init__(self, keep: bool = False) -> None:
        super().__init__(None, keep)
        self._thread = 0  # none yet
        self._mode: LossWatch | None = None
        self._handles: list[Any] = [
            register_module_forward_pre_hook(self.before),
            register_module_forward_hook(self.after, always_call=True),
            register_optimizer_step_pre_hook(self.before_step),
            register_optimizer_step_post_hook(self.after_step),
        ]

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Take the thread of the first trained module, and note what enters the outermost module."""
        if not self._thread and torch.is_grad_enabled() and any(p.requires_grad for p in module.parameters()):
            self._thread = threading.get_ident()
            try:
                self._listen()
            except Exception as error:
                self.breaks(error)
        super().before(module, args)

    def _listen(self) -> None:
        """See losses in this thread. The mode stays: only the thread that entered it could leave it."""
        mode = getattr(_local, "mode", None)
        if mode is None:
            mode = _local.mode = LossWatch(self)
            mode.__enter__()
        mode.seen, self._mode = self, mode

    def stop(self) -> None:
        """Remove all hooks. A second call does nothing."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self._mode is not None and self._mode.seen is self:  # the thread may live on: it must not keep the images
            self._mode.seen = _Nobody()
        self.close()
