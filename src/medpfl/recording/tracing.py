"""One forward pass of a network, traced: bounds on what enters its batch norms, and the bias that is added last."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from medpfl.core.errors import InputError
from medpfl.core.records.origin import Pixels
from medpfl.core.records.steps import Step
from medpfl.core.types import Weights
from medpfl.core.user_code.copies import copied
from medpfl.core.user_code.strangers import explained
from medpfl.models.entering import entering
from medpfl.recording.replay import loaded, set_modes

__all__ = ["Entry", "Range", "Trace", "traced"]

_IMAGES = 2


class Range(NamedTuple):
    """The least and the largest value of each channel (C,), in float64; infinite where nothing is known."""

    low: Tensor
    high: Tensor

    @classmethod
    def unknown(cls, channels: int) -> Range:
        """Return the range of channels about which nothing is known."""
        return cls(torch.full((channels,), -math.inf).double(), torch.full((channels,), math.inf).double())

    def with_zero(self) -> Range:
        """Return the range that also contains 0, as zero padding and dropout need it."""
        return Range(self.low.clamp(max=0), self.high.clamp(min=0))


@dataclass(frozen=True)
class Entry:
    """The input of a batch norm: its range, and the number of elements of an image in each channel."""

    range: Range
    elements: int


@dataclass
class Trace:
    """The result of a traced pass.

    Attributes:
        entries: what enters each batch norm, by the layer's name; only layers that are called once.
        calls: number of calls of each batch norm in a pass, by name.
        bias: name of the bias whose layer's output is the network's own; empty if there is none or it is called twice.
        outputs: shape of the network's output for one image, (K,) or (K, H, W).
    """

    entries: dict[str, Entry] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    bias: str = ""
    outputs: tuple[int, ...] = ()


def traced(
    network: nn.Module,
    weights: Weights,
    step: Step,
    images: int,
    image_shape: tuple[int, ...],
    pixels: Pixels | None,
    fixed: bool,
) -> Trace | None:
    """Return the trace of a pass in training, or ``None`` if the network does not run on such images.

    A range follows the tensors from layer to layer. It is known only behind layers of torch's own, and it is lost where
    the network computes something else between two layers.

    Args:
        network: the client's model; it is copied.
        weights: the weights before the training.
        step: the step whose modes of layers are used.
        images: largest number of images in a batch.
        image_shape: shape (C, H, W) or (C, D, H, W) of an image.
        pixels: the mapping from [0, 1] to the pixels that enter; ``None`` if it is not known.
        fixed: True if all passes run with `weights`; otherwise the trained parameters may have any value.
    """
    with suppress(InputError), explained("the model cannot be traced"), torch.random.fork_rng(devices=[]):
        model = loaded(copied(network, forget=True), weights)
        set_modes(model, step)
        return _Tracer(model, set() if fixed else set(weights.parameters), images).run(image_shape, pixels)
    return None


class _Tracer:
    """A tracer of one network, which follows tensors by their identity and version."""

    def __init__(self, model: nn.Module, free: set[str], images: int) -> None:
        self.model, self.images = model, images
        self.free = {id(p) for name, p in model.named_parameters() if name in free}
        self.names = {id(p): name for name, p in model.named_parameters()}
        self.trace = Trace()
        self._known: dict[int, tuple[Tensor, int, Range]] = {}
        self._made: dict[int, tuple[Tensor, int, nn.Module]] = {}
        self._calls: dict[int, int] = {}
        self._entered: dict[int, Range] = {}

    def run(self, image_shape: tuple[int, ...], pixels: Pixels | None) -> Trace:
        """Return the trace of a pass with images of this shape."""
        own = {name: m for name, m in self.model.named_modules() if type(m) in _RULES and _plain(m)}
        self.trace.calls = {name: 0 for name, m in own.items() if isinstance(m, _BatchNorm)}
        handles = [m.register_forward_pre_hook(self._before) for m in own.values()]
        handles += [m.register_forward_hook(self._after(name)) for name, m in own.items()]
        images = torch.rand((_IMAGES, *image_shape), dtype=next(self.model.parameters()).dtype)
        start = images if pixels is None else entering(images, pixels)
        if pixels is not None:
            ends = torch.stack([torch.zeros(image_shape), torch.ones(image_shape)])
            low, high = entering(ends, pixels).flatten(2)[:, :, 0].double()
            self._keep(start, Range(low, high))
        try:
            with torch.no_grad():
                made = self.model(start)
        finally:
            for handle in handles:
                handle.remove()
        if isinstance(made, Tensor):
            self.trace.outputs = tuple(made.shape[1:])
            self.trace.bias = self._last(made)
        return self.trace

    def _last(self, made: Tensor) -> str:
        """Return the name of the bias of the layer that made a tensor, if no other layer has it; else an empty text."""
        _, version, layer = self._made.get(id(made), (made, -1, self.model))
        bias = getattr(layer, "bias", None)
        if version != made._version or not isinstance(bias, Tensor) or self._calls[id(layer)] > 1:
            return ""
        users = sum(p is bias for m in self.model.modules() for p in m.parameters(recurse=False))
        return self.names[id(bias)] if users == 1 and len(bias) == made.shape[1] else ""

    def _before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._calls[id(module)] = self._calls.get(id(module), 0) + 1
        if len(args) == 1 and isinstance(args[0], Tensor):  # a layer may work in place
            self._entered[id(module)] = self._range(args[0])

    def _after(self, name: str) -> Callable[..., None]:
        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            entered = self._entered.pop(id(module), None)
            if entered is None or not isinstance(output, Tensor):
                return
            if isinstance(module, _BatchNorm):
                self.trace.calls[name] = self._calls[id(module)]
                self.trace.entries[name] = Entry(entered, args[0][0, 0].numel())
                if self._calls[id(module)] > 1:
                    self.trace.entries.pop(name)
            if isinstance(module, nn.Conv2d | nn.Conv3d) or (isinstance(module, nn.Linear) and output.ndim == 2):
                self._made[id(output)] = output, output._version, module
            left = _RULES[type(module)](module, entered, args[0], self)
            self._keep(output, left if left is not None else Range.unknown(output.shape[1]))

        return after

    def _keep(self, tensor: Tensor, known: Range) -> None:
        if len(known.low) == tensor.shape[1] and not known.low.isnan().any() and not known.high.isnan().any():
            self._known[id(tensor)] = tensor, tensor._version, known
        else:
            self._known.pop(id(tensor), None)

    def _range(self, tensor: Tensor) -> Range:
        kept, version, known = self._known.get(id(tensor), (tensor, -1, Range.unknown(tensor.shape[1])))
        return known if kept is tensor and version == tensor._version else Range.unknown(tensor.shape[1])

    def fixed(self, module: nn.Module) -> bool:
        """Return True if the layer has the same parameters in every pass."""
        return not any(id(p) in self.free for p in module.parameters(recurse=False))


def _plain(module: nn.Module) -> bool:
    """Return True if a layer computes what its class does: without hooks of its own, or another ``forward``."""
    return not (module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


# --- the rules: a layer, what enters it, the tensor itself, the tracer -> what leaves it, or None if unknown


def _linear(module: Any, entered: Range, x: Tensor, tracer: _Tracer) -> Range | None:
    """Return the range behind a convolution or a linear layer of known weights."""
    weight = module.weight.double()
    if not tracer.fixed(module) or (weight.ndim == 2 and x.ndim != 2):
        return None
    groups = getattr(module, "groups", 1)
    if any(getattr(module, "padding", ())) and getattr(module, "padding_mode", "zeros") == "zeros":
        entered = entered.with_zero()
    if not (entered.low.isfinite().all() and entered.high.isfinite().all()):
        return None
    positive, negative = (w.flatten(2).sum(2) if w.ndim > 2 else w for w in (weight.clamp(min=0), weight.clamp(max=0)))
    bias = 0.0 if module.bias is None else module.bias.double()

    def summed(one: Tensor, other: Tensor) -> Tensor:
        parts = zip(positive.chunk(groups), negative.chunk(groups), one.chunk(groups), other.chunk(groups), strict=True)
        return torch.cat([plus @ a + minus @ b for plus, minus, a, b in parts]) + bias

    return Range(summed(entered.low, entered.high), summed(entered.high, entered.low))


def _norm(module: Any, entered: Range, x: Tensor, tracer: _Tracer) -> Range | None:
    """Return the range behind a batch norm: none of n values is more than ``sqrt(n - 1)`` deviations from the mean."""
    if not tracer.fixed(module) or not (module.training or module.running_mean is None):
        return None
    count = max(tracer.images, 2) * x[0, 0].numel()
    factor = torch.ones(x.shape[1]).double() if module.weight is None else module.weight.double().abs()
    center = torch.zeros(x.shape[1]).double() if module.bias is None else module.bias.double()
    return Range(center - factor * math.sqrt(count), center + factor * math.sqrt(count))


def _monotone(module: Any, entered: Range, x: Tensor, tracer: _Tracer) -> Range | None:
    if min(getattr(module, "negative_slope", 0.0), getattr(module, "alpha", 0.0)) < 0:
        return None
    low, high = entered.low.clone(), entered.high.clone()  # the layer may work in place
    return Range(module.forward(low), module.forward(high))


def _dipping(least: float) -> Callable[..., Range]:
    """Return the rule of an activation that falls to `least` below 0, and rises above it, never above its input."""

    def rule(module: Any, entered: Range, x: Tensor, tracer: _Tracer) -> Range:
        return Range(torch.full_like(entered.low, least), entered.high.clamp(min=0))

    return rule


def _same(module: Any, entered: Range, x: Tensor, tracer: _Tracer) -> Range:
    return entered


def _averaged(module: Any, entered: Range, x: Tensor, tracer: _Tracer) -> Range | None:
    return entered.with_zero() if module.divisor_override is None else None


def _dropped(module: Any, entered: Range, x: Tensor, tracer: _Tracer) -> Range:
    if not module.training or not module.p:
        return entered
    wide, kept = entered.with_zero(), 1 - module.p
    return Range(wide.low / kept, wide.high / kept) if kept else Range(wide.low * 0, wide.high * 0)


def _flattened(module: Any, entered: Range, x: Tensor, tracer: _Tracer) -> Range | None:
    if (module.start_dim, module.end_dim) not in ((1, -1), (1, x.ndim - 1)):
        return None
    each = x[0, 0].numel()
    return Range(entered.low.repeat_interleave(each), entered.high.repeat_interleave(each))


_RULES: dict[type[nn.Module], Callable[[Any, Range, Tensor, _Tracer], Range | None]] = {
    **dict.fromkeys((nn.Linear, nn.Conv2d, nn.Conv3d), _linear),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _norm),
    **dict.fromkeys((nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Hardtanh, nn.ELU, nn.Sigmoid, nn.Tanh), _monotone),
    nn.GELU: _dipping(-0.18),
    nn.SiLU: _dipping(-0.28),
    **dict.fromkeys((nn.Identity, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d), _same),
    **dict.fromkeys((nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d), _same),
    **dict.fromkeys((nn.AvgPool2d, nn.AvgPool3d), _averaged),
    **dict.fromkeys((nn.Dropout, nn.Dropout2d, nn.Dropout3d), _dropped),
    nn.Flatten: _flattened,
}
