"""Watching a training loop from outside: steps, labels and pixels, without a change to the loop."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Concatenate, ParamSpec

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from medpfl.core.errors import InputError, private
from medpfl.core.records.origin import Pixels
from medpfl.core.records.steps import Setting, Step, Steps
from medpfl.core.records.truth import RETENTION, Truth
from medpfl.models.wrapped import innermost
from medpfl.recording.watching.gradients import Gradients
from medpfl.recording.watching.intake import Intake
from medpfl.recording.watching.losses import LossWatch, plain

__all__ = ["Watch", "watch"]


_MOST_PASSES = 1000
"""Backward passes without a step whose images are kept in memory."""


@dataclass(eq=False)
class _Pass:
    """One forward pass with gradients. Until its backward pass, its graph holds it: it is freed with the graph."""

    number: int

    inputs: Tensor | None
    training: bool
    modes: dict[str, bool]
    generator: Tensor | None
    precision: str = ""
    targets: list[Tensor] = field(default_factory=list)
    losses: list[tuple[str, dict[str, Setting]]] = field(default_factory=list)


_P = ParamSpec("_P")


def _guarded(hook: Callable[Concatenate[Watch, _P], None]) -> Callable[Concatenate[Watch, _P], None]:
    """Return a hook that never raises: the training goes on, and the watch is broken."""

    @wraps(hook)
    def guarded(self: Watch, *args: _P.args, **kwargs: _P.kwargs) -> None:
        if not self.broken:
            try:
                hook(self, *args, **kwargs)
            except Exception as error:
                self.breaks(error)

    return guarded


class Watch:
    """A watched training: its steps, and its private images if they are kept.

    An error in a hook does not stop the training. The watch is then `broken`: it has no steps and no truth.

    Args:
        model: the trained model; ``None`` takes the outermost module that is called with gradients.
        keep: True keeps pixels and labels for a truth file; otherwise only their number and range.
    """

    def __init__(self, model: nn.Module | None = None, keep: bool = False) -> None:
        self.model, self.keep = model, keep
        self.problems: dict[str, None] = {}
        self.broken, self._over = False, False
        self._thread, self._depth = threading.get_ident(), 0
        self._begun = 0
        self._open: _Pass | None = None
        self._last: _Pass | None = None
        self._used: list[_Pass] = []
        self._steps: list[Step] = []
        self._intake = Intake()
        self._generators: list[Tensor] = []
        self._gradients = Gradients()
        self._change = ""
        self.carried, self.device = False, "cpu"

    # --- what was seen

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the trained parameters in the model's state dict; empty before the first pass."""
        if self.model is None:
            return ()
        return tuple(name for name, p in self.model.named_parameters() if p.requires_grad)

    def steps(self, sends: tuple[str, ...] = ("num_samples", "buffers")) -> Steps:
        """Return the steps taken.

        Raises:
            InputError: no step was seen, or the watch is broken.
        """
        if self.broken:
            raise InputError(f"the training was not seen to its end: {'; '.join(self.problems)}")
        if not self._steps:
            seen = "; ".join(self.problems) or "no optimizer of torch.optim took a step in this thread"
            raise InputError(f"no training step was seen: {seen}. Call the training inside the 'with' block")
        return Steps(tuple(self._steps), images=self._intake.different(), sends=sends)

    def truth(self, days: int = RETENTION) -> Truth | None:
        """Return the private images with labels and order; ``None`` if they were not kept or not all of it was seen."""
        if not self.keep or self.broken:
            return None
        generators = torch.stack(self._generators) if len(self._generators) == len(self._steps) else None
        return self._intake.truth(generators, days)

    @property
    def image_shape(self) -> tuple[int, ...] | None:
        """The shape (C, H, W) or (C, D, H, W) of the images, if any entered the model."""
        return self._intake.image_shape

    @property
    def pixels(self) -> Pixels | None:
        """The mapping by which pixels entered the model, inferred from their values."""
        return self._intake.pixels

    # --- hooks

    def breaks(self, error: Exception) -> None:
        """Stop watching after an error, and free the memory: it may be the reason."""
        self.broken = True
        self.problems[f"the watch broke: {type(error).__name__}: {private(error)}"] = None
        self._forget()
        self._intake = Intake()

    @_guarded
    def before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Note what enters the outermost module."""
        if threading.get_ident() != self._thread or next(module.parameters(), None) is None:
            return
        self._depth += 1
        if not torch.is_grad_enabled() or torch._C._current_graph_task_id() != -1:
            return  # an evaluation, or a pass repeated by activation checkpointing
        if self._depth > 1:
            if self._open is not None:
                self._open.precision = self._open.precision or _autocast(args)
        elif self._is_ours(module):
            self._open = self._last = self._pass(args)

    @_guarded
    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Wait for the gradient of the outermost module's output: a pass without one is no part of a step."""
        if threading.get_ident() != self._thread or next(module.parameters(), None) is None:
            return
        self._depth = max(self._depth - 1, 0)
        if self._depth:
            return
        passed, self._open = self._open, None
        found = None if passed is None else _first(output, lambda t: t.requires_grad)
        if passed is not None and found is not None:
            found.register_hook(lambda _: self._uses(passed))

    @_guarded
    def loss(self, name: str, targets: Tensor | None, settings: dict[str, Setting]) -> None:
        """Note a loss, and the targets that it compares with the last pass."""
        if self._last is not None:
            self._last.losses.append((name, settings))
            if targets is not None:
                self._last.targets.append(targets.detach().clone())

    @_guarded
    def before_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Compare the gradients with those of the backward pass, before the optimizer may change them."""
        if not self._steps and self._trains(optimizer) and _has_momentum(optimizer):
            self.carried = True
        if self._trains(optimizer) and self._used:
            self._change = self._gradients.change(optimizer)

    @_guarded
    def after_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Note a step; passes inside a closure, as in Lightning, are over only now."""
        if threading.get_ident() != self._thread or not self._trains(optimizer):
            return
        passes = sorted(self._used, key=lambda one: one.number)
        change = self._change or (self._gradients.change(optimizer) if passes else "")
        self._forget()
        if passes:
            self._steps.append(self._step(optimizer, passes, change))

    # --- parts

    def _is_ours(self, module: nn.Module) -> bool:
        trained = {id(p) for p in module.parameters() if p.requires_grad}
        if not trained:
            return False
        if self.model is None:
            self.model = innermost(module)
        own = {id(p) for p in self.model.parameters()}
        if not own & trained:
            self.problems["a second model is called in the loop"] = None
            return False
        if not self._gradients.watched:
            self._gradients.watch(self.model.parameters(), self._keep_gradient)
        return True

    @_guarded
    def _uses(self, passed: _Pass) -> None:
        """Keep a pass for the next step, at its backward pass."""
        if self._over or any(one is passed for one in self._used):
            return
        self._used.append(passed)
        if len(self._used) > _MOST_PASSES:
            self._used.pop(0)
            problem = f"more than {_MOST_PASSES:,} backward passes without a step: the first ones are missing"
            self.problems[problem] = None

    def _forget(self) -> None:
        self._open = self._last = None
        self._used, self._change = [], ""
        self._gradients.forget()

    @_guarded
    def _keep_gradient(self, parameter: Tensor) -> None:
        self._gradients.keep(parameter)

    def _pass(self, args: tuple[Any, ...]) -> _Pass:
        assert self.model is not None
        layers = {name: m for name, m in self.model.named_modules() if isinstance(m, _BatchNorm | _DropoutNd)}
        inputs = _first(args, lambda t: t.ndim in (4, 5))
        if inputs is None:
            self.problems["no batch of images (N, C, H, W) enters the model, or it is given by keyword"] = None
        else:
            inputs = inputs.detach().clone()
            self.device = inputs.device.type
        drawn = any(isinstance(m, _DropoutNd) and m.training for m in layers.values()) and self.device == "cpu"
        generator = torch.get_rng_state() if drawn and self.keep else None
        modes = {name: m.training for name, m in layers.items()}
        self._begun += 1
        return _Pass(self._begun, inputs, self.model.training, modes, generator, _autocast(args))

    def _trains(self, optimizer: torch.optim.Optimizer) -> bool:
        if self.model is None:
            return False
        own = {id(p) for p in self.model.parameters()}
        return any(id(p) in own for group in optimizer.param_groups for p in group["params"])

    def _step(self, optimizer: torch.optim.Optimizer, passes: list[_Pass], change: str) -> Step:
        for passed in passes:
            self._take_in(passed)
        first = passes[0]
        if first.generator is not None:
            self._generators.append(first.generator)
        names = {name for passed in passes for name, _ in passed.losses}
        if any(len(passed.losses) > 1 for passed in passes):
            self.problems["several losses are added"] = None
        loss, settings = first.losses[0] if first.losses else ("", {})
        own: dict[str, Setting] = dict(_settings_of(optimizer))
        if self.carried:
            own["carried"] = True
        return Step(
            images=sum(len(p.inputs) for p in passes if p.inputs is not None),
            optimizer=type(optimizer).__name__,
            settings=own,
            loss=" + ".join(sorted(names)) if len(names) > 1 else loss,
            loss_settings=settings,
            training=first.training,
            modes=first.modes,
            precision=next((p.precision for p in passes if p.precision), ""),
            passes=len(passes),
            change=change,
        )

    def _take_in(self, passed: _Pass) -> None:
        if passed.inputs is None:
            return
        targets = passed.targets[0].cpu() if passed.targets else None
        if targets is None or not targets.ndim or len(targets) != len(passed.inputs):
            self.problems["no label was seen: the loss is none of torch.nn.functional's"] = None
            targets = None
        self._intake.take(passed.inputs, targets, self.keep)

    def close(self) -> None:
        """Remove the hooks on the parameters, and forget gradients and unfinished passes."""
        self._gradients.close()
        self._over = True
        self._forget()


@contextmanager
def watch(model: nn.Module | None = None, keep: bool = False) -> Iterator[Watch]:
    """Watch the training loop in the body. Passes under ``torch.no_grad`` are no steps.

    Args:
        model: the trained model; ``None`` takes the outermost module that is called with gradients.
        keep: True keeps the private pixels and labels in memory, for a truth file.
    """
    seen = Watch(None if model is None else innermost(model), keep)
    handles = [
        register_module_forward_pre_hook(seen.before),
        register_module_forward_hook(seen.after, always_call=True),
        register_optimizer_step_pre_hook(seen.before_step),
        register_optimizer_step_post_hook(seen.after_step),
    ]
    try:
        with LossWatch(seen):
            yield seen
    finally:
        for handle in handles:
            handle.remove()
        seen.close()


def _first(value: Any, fits: Callable[[Tensor], bool]) -> Tensor | None:
    """Return the first fitting tensor in nested lists and dictionaries."""
    if isinstance(value, Tensor):
        return value if fits(value) else None
    inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple | list) else ()
    return next((found for one in inside if (found := _first(one, fits)) is not None), None)


def _autocast(args: tuple[Any, ...]) -> str:
    found = _first(args, lambda t: True)
    kind = "cpu" if found is None else found.device.type
    if not torch.is_autocast_enabled(kind):
        return ""
    return str(torch.get_autocast_dtype(kind)).removeprefix("torch.")


def _has_momentum(optimizer: torch.optim.Optimizer) -> bool:
    """Return True if the optimizer carries state from before the first watched step."""
    return any(isinstance(v, Tensor) and v.numel() for state in optimizer.state.values() for v in state.values())


def _settings_of(optimizer: torch.optim.Optimizer) -> Mapping[str, Setting]:
    """Return the optimizer's own settings: a loop may add others to a group, such as names, which may be private."""
    groups = [{k: plain(v) for k, v in g.items() if k in optimizer.defaults} for g in optimizer.param_groups]
    shared = {k: v for k, v in groups[0].items() if k.isidentifier()}
    if any(group != groups[0] for group in groups[1:]):
        shared["groups"] = len(groups)
    return shared
