"""Watching a training loop from outside: steps, labels and pixels, without a change to the loop."""

from __future__ import annotations

import hashlib
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.overrides import TorchFunctionMode

from medpfl.core.errors import InputError
from medpfl.core.records.origin import Pixels
from medpfl.core.records.steps import Setting, Step, Steps
from medpfl.core.records.truth import RETENTION, Truth
from medpfl.models.wrapped import innermost

__all__ = ["LOSSES", "Watch", "watch"]

LOSSES = (
    "cross_entropy", "nll_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits", "mse_loss", "l1_loss",
    "smooth_l1_loss", "huber_loss", "kl_div", "multi_margin_loss", "multilabel_margin_loss", "hinge_embedding_loss",
    "multilabel_soft_margin_loss", "soft_margin_loss", "poisson_nll_loss", "gaussian_nll_loss",
)  # fmt: skip
"""Losses in ``torch.nn.functional`` that are seen; a loss of one's own is seen if it calls one of them."""

_RANGES = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))
"""Usual ranges of pixels, the narrowest first."""


@dataclass
class _Pass:
    """One forward pass with gradients."""

    inputs: Tensor | None
    training: bool
    modes: dict[str, bool]
    generator: Tensor | None
    precision: str = ""
    targets: list[Tensor] = field(default_factory=list)
    losses: list[tuple[str, dict[str, Setting]]] = field(default_factory=list)
    used: bool = False


class Watch:
    """A watched training: its steps, and its private images if they are kept.

    Args:
        model: the trained model; ``None`` takes the outermost module that is called with gradients.
        keep: True keeps pixels and labels for a truth file; otherwise only their number and range.
    """

    def __init__(self, model: nn.Module | None = None, keep: bool = False) -> None:
        self.model, self.keep = model, keep
        self.problems: dict[str, None] = {}
        self._thread, self._depth = threading.get_ident(), 0
        self._passes: list[_Pass] = []
        self._steps: list[Step] = []
        self._known: dict[bytes, int] = {}
        self._images: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._order: list[int] = []
        self._generators: list[Tensor] = []
        self._gradients: dict[int, tuple[Tensor, Tensor]] = {}
        self._change = ""
        self._hooks: list[Any] = []
        self._range: tuple[float, float] | None = None
        self.image_shape: tuple[int, ...] | None = None
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
            InputError: no step was seen.
        """
        if not self._steps:
            seen = "; ".join(self.problems) or "no optimizer of torch.optim took a step in this thread"
            raise InputError(f"no training step was seen: {seen}. Call the training inside the 'with' block")
        return Steps(tuple(self._steps), images=self._different(), sends=sends)

    def truth(self, days: int = RETENTION) -> Truth | None:
        """Return the private images with labels and order; ``None`` if they were not kept or labels were not seen."""
        if not self.keep or not self._images or len(self._labels) != len(self._images):
            return None
        generators = torch.stack(self._generators) if len(self._generators) == len(self._steps) else None
        order = torch.tensor(self._order)
        return Truth(torch.stack(self._images), torch.stack(self._labels), order, generators, days=days)

    @property
    def pixels(self) -> Pixels | None:
        """The range of the pixels that entered the model: a usual range that contains them, or their own."""
        if self._range is None:
            return None
        low, high = self._range
        found = [(a, b) for a, b in _RANGES if a <= low and high <= b]
        if found:
            return Pixels(*found[0])
        return Pixels(low, high) if low < high else None

    def _different(self) -> int | None:
        """Return the number of different images if the steps are whole epochs over them; else ``None``."""
        count = len(self._known)
        if not count or len(self._order) % count:
            return None
        epochs = [self._order[i : i + count] for i in range(0, len(self._order), count)]
        return count if all(len(set(epoch)) == count for epoch in epochs) else None

    # --- hooks

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Note what enters the outermost module."""
        if threading.get_ident() != self._thread or next(module.parameters(), None) is None:
            return
        self._depth += 1
        if not torch.is_grad_enabled() or torch._C._current_graph_task_id() != -1:
            return  # an evaluation, or a pass repeated by activation checkpointing
        if self._depth > 1:
            if self._passes:
                self._passes[-1].precision = self._passes[-1].precision or _autocast(args)
        elif self._is_ours(module):
            self._passes.append(self._pass(args))

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Wait for the gradient of the outermost module's output: a pass without one is no part of a step."""
        if threading.get_ident() != self._thread or next(module.parameters(), None) is None:
            return
        self._depth = max(self._depth - 1, 0)
        if self._depth or not self._passes or not torch.is_grad_enabled():
            return
        passed, found = self._passes[-1], _first(output, lambda t: t.requires_grad)
        if found is not None:

            def used(_: Tensor) -> None:
                passed.used = True

            found.register_hook(used)

    def loss(self, name: str, targets: Tensor | None, settings: dict[str, Setting]) -> None:
        """Note a loss, and the targets that it compares with the last pass."""
        if self._passes:
            self._passes[-1].losses.append((name, settings))
            if targets is not None:
                self._passes[-1].targets.append(targets.detach().clone())

    def before_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Compare the gradients with those of the backward pass, before the optimizer may change them."""
        if not self._steps and self._trains(optimizer) and _has_momentum(optimizer):
            self.carried = True
        if self._trains(optimizer) and any(p.used for p in self._passes):
            self._change = self._changed(optimizer)

    def after_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Note a step; passes inside a closure, as in Lightning, are over only now."""
        if threading.get_ident() != self._thread or not self._trains(optimizer):
            return
        passes = [p for p in self._passes if p.used]
        change = self._change or (self._changed(optimizer) if passes else "")
        self._passes, self._change, self._gradients = [], "", {}
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
        if not self._hooks:
            self._hooks = [
                p.register_post_accumulate_grad_hook(self._keep_gradient)
                for p in self.model.parameters()
                if p.requires_grad and p.is_leaf
            ]
        return True

    def _keep_gradient(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self._gradients[id(parameter)] = (parameter, parameter.grad.detach().clone())

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
        return _Pass(inputs, self.model.training, modes, generator, _autocast(args))

    def _trains(self, optimizer: torch.optim.Optimizer) -> bool:
        if self.model is None:
            return False
        own = {id(p) for p in self.model.parameters()}
        return any(id(p) in own for group in optimizer.param_groups for p in group["params"])

    def _changed(self, optimizer: torch.optim.Optimizer) -> str:
        """Return how the gradients differ from those of the backward pass."""
        factors = []
        for group in optimizer.param_groups:
            for p in group["params"]:
                kept = self._gradients.get(id(p))
                if p.grad is None or (kept is not None and torch.equal(p.grad, kept[1])):
                    continue
                if kept is None or not (size := kept[1].norm()):
                    return "changed"
                factor = p.grad.norm() / size
                if not torch.allclose(p.grad, kept[1] * factor, rtol=1e-3, atol=float(size) * 1e-6):
                    return "changed"
                factors.append(float(factor))
        if not factors:
            return ""
        return "clipped" if max(factors) < 1 and max(factors) - min(factors) < 1e-2 * max(factors) else "changed"

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
        """Give each image of a pass a number by its content and label, and keep it if asked."""
        if passed.inputs is None:
            return
        images = passed.inputs.float() if not passed.inputs.is_floating_point() else passed.inputs
        images = images.cpu()
        self.image_shape = tuple(images.shape[1:])
        if images.numel():
            low, high = (float(v) for v in images.aminmax())
            before = self._range or (low, high)
            self._range = (min(before[0], low), max(before[1], high))
        targets = passed.targets[0].cpu() if passed.targets else None
        if targets is None or not targets.ndim or len(targets) != len(images):
            self.problems["no label was seen: the loss is none of torch.nn.functional's"] = None
            targets = None
        for place, image in enumerate(images):
            label = None if targets is None else targets[place]
            key = hashlib.blake2b(_bytes(image), digest_size=16)
            key.update(b"" if label is None else _bytes(label))
            if (digest := key.digest()) not in self._known:
                self._known[digest] = len(self._known)
                if self.keep and label is not None:
                    self._images.append(image.clone())
                    self._labels.append(label.clone())
            self._order.append(self._known[digest])

    def close(self) -> None:
        """Remove the hooks on the parameters, and forget gradients and unfinished passes."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._gradients, self._passes = [], {}, []


class _LossWatch(TorchFunctionMode):
    """A mode that tells a `Watch` about every loss of ``torch.nn.functional``."""

    def __init__(self, seen: Watch) -> None:
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
            target, settings = _loss_call(func, args, kwargs)
            self.seen.loss(name, target, settings)
        return func(*args, **kwargs)


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
        with _LossWatch(seen):
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


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


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
    groups = [
        {k: _plain(v) for k, v in g.items() if k not in ("params", "param_names")} for g in optimizer.param_groups
    ]
    shared = {k: v for k, v in groups[0].items() if k.isidentifier() and k != "initial_lr"}
    if any(group != groups[0] for group in groups[1:]):
        shared["groups"] = len(groups)
    return shared


def _plain(value: Any) -> Setting:
    if isinstance(value, Tensor) and value.numel() == 1:
        return float(value)
    if isinstance(value, Tensor):
        return tuple(float(v) for v in value.detach().flatten())
    if isinstance(value, tuple | list):
        return tuple(float(v) for v in value)
    return value if value is None or isinstance(value, bool | int | float | str) else type(value).__name__


def _loss_call(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Tensor | None, dict[str, Setting]]:
    """Return a loss's targets, and its settings that differ from their defaults and matter."""
    signature = inspect.signature(func)
    given = signature.bind(*args, **kwargs).arguments
    target = given.get("target")
    names = [n for n, p in signature.parameters.items() if p.default is not p.empty and n in given]
    settings = {n: _plain(given[n]) for n in names if _differs(given[n], signature.parameters[n].default)}
    if isinstance(target, Tensor) and "ignore_index" in settings and not bool((target == given["ignore_index"]).any()):
        settings.pop("ignore_index")  # nothing is ignored
    return (target if isinstance(target, Tensor) else None), settings


def _differs(value: Any, default: Any) -> bool:
    return isinstance(value, Tensor) or value != default
