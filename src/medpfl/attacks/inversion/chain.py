"""The chain of layers from the image to a linear layer, found by running the model and checked against it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from medpfl.attacks.inversion.convolution import Convolution
from medpfl.attacks.inversion.gaussian_prior import expected_images, expected_values
from medpfl.attacks.inversion.layers import Activation, Dense, Layer, Scaled
from medpfl.core.drawn_layers import draws
from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.types import Batch, Weights
from medpfl.federated.local import local_update
from medpfl.federated.ready import state_of

__all__ = ["Chain", "activation", "chain_of"]

_SAMPLES = 32
_AGREEMENT = 1e-6
_POOLING = tuple(
    getattr(nn, f"{kind}Pool{d}d") for kind in ("Max", "Avg", "AdaptiveMax", "AdaptiveAvg") for d in (1, 2, 3)
)
_FUNCTIONS = (nn.Sigmoid(), nn.Tanh(), nn.ReLU())
"""Functions that may stand between two layers without being layers themselves."""


@dataclass(frozen=True, eq=False)
class Chain:
    """The layers from the image onward, and the linear layer at their end."""

    layers: tuple[Layer, ...]
    entry: Dense


def chain_of(model: nn.Module, weights: Weights, image_shape: tuple[int, ...], generator: torch.Generator) -> Chain:
    """Return the chain up to a model's first linear layer with a bias.

    Args:
        model: prepared model; its own weights are not used.
        weights: the global model.
        image_shape: (C, H, W).
        generator: generator for made-up images, which are run through the model to see the effect of each layer.

    Raises:
        InputError: There is no such chain, or a layer cannot be inverted. The message names the layer and the reason.
    """
    exact = Weights(_exact(weights.parameters), _exact(state_of(model, weights.buffers)))
    device = next(iter(exact.parameters.values())).device
    samples = expected_images(image_shape, device).draw(_SAMPLES, generator).clamp(0, 1).view(-1, *image_shape)
    tracer = _Tracer(exact, samples)
    tracer.run(model)
    chain = tracer.chain()
    _check_gradient(chain, tracer.outputs, model, exact, samples[:1])
    return chain


def _exact(tensors: Any) -> dict[str, Tensor]:
    return {k: t.double() if t.is_floating_point() else t for k, t in tensors.items()}


class _Tracer:
    """Builder of the chain, layer by layer, while made-up images (M, C, H, W) pass through the model."""

    def __init__(self, weights: Weights, samples: Tensor) -> None:
        self.weights, self.samples = weights, samples
        self.value, self.last = samples.flatten(1), "the image"
        self.layers: list[Layer] = []
        self.outputs: list[Tensor] = []
        self.entry: Dense | None = None
        self.calls: Counter[str] = Counter()

    def run(self, model: nn.Module) -> Tensor:
        """Return the logits. Raise `InputError` at the first layer that does not fit."""
        leaves = {name: m for name, m in model.named_modules() if not list(m.children())}
        handles = [
            m.register_forward_hook(lambda layer, args, out, name=name: self._pass(name, layer, args, out))
            for name, m in leaves.items()
        ]
        try:
            with torch.no_grad():
                state = {**self.weights.parameters, **self.weights.buffers}
                return functional_call(model, state, (self.samples,))
        finally:
            for handle in handles:
                handle.remove()

    def chain(self) -> Chain:
        """Return the layers found."""
        if self.entry is None:
            raise InputError("the model has no linear layer with a bias, where RGAP begins: attack with iDLG")
        for layer in (*self.layers, self.entry):
            if self.calls[layer.name] > 1:
                raise InputError(
                    f"layer '{layer.name}' is used {self.calls[layer.name]} times: its gradient is a sum over the uses"
                )
        return Chain(tuple(self.layers), self.entry)

    def _pass(self, name: str, layer: nn.Module, args: Any, out: Any) -> None:
        """Handle the call of one layer."""
        self.calls[name] += 1
        if self.entry is not None:
            return
        if not args or not isinstance(args[0], Tensor) or not isinstance(out, Tensor):
            raise InputError(_refusal(name, layer))
        self._join(name, args[0].flatten(1))
        self._add(name, layer, args[0], out.flatten(1))
        self.last = f"layer '{name}'"

    def _join(self, name: str, inputs: Tensor) -> None:
        """Account for the model's operations between the last layer and this one."""
        if _same(inputs, self.value):
            return
        for function in _FUNCTIONS:
            if _same(inputs, function(self.value)):
                self._add(f"{type(function).__name__} before {name}", function, self.value, inputs)
                return
        raise InputError(
            f"layer '{name}' does not take its input directly from {self.last}: sums, branches and functions between "
            "layers cannot be inverted; write functions as layers (torch.nn.Sigmoid), or attack with iDLG"
        )

    def _add(self, name: str, layer: nn.Module, inputs: Tensor, out: Tensor) -> None:
        found = self._layer(name, layer, inputs, out)
        self.value = out
        if found is None:
            return
        if isinstance(found, Dense) and f"{name}.bias" in self.weights.parameters:
            self.entry = found
            return
        if isinstance(found, Convolution) and found.first:
            self.layers, self.outputs = [], []
        self.layers.append(found)
        self.outputs.append(out[:1])

    def _layer(self, name: str, layer: nn.Module, inputs: Tensor, out: Tensor) -> Layer | None:
        """Return the layer in its invertible form; ``None`` if it changes nothing."""
        if draws(layer):
            raise InputError(
                f"layer '{name}' ({type(layer).__name__}) draws at random; use mode eval, or another attack"
            )
        if _same(inputs.flatten(1), out):
            return None
        if isinstance(layer, nn.Linear | nn.Conv2d) and f"{name}.weight" not in self.weights.parameters:
            raise InputError(f"layer '{name}' is frozen, so its gradient is not sent: attack with iDLG")
        if isinstance(layer, nn.Linear) and inputs.ndim == 2:
            return Dense(name, self.weights.parameters[f"{name}.weight"], *_statistics(inputs))
        if isinstance(layer, nn.Conv2d):
            return self._convolution(name, layer, inputs, out)
        return activation(name, layer) or _scaled(name, layer, inputs.flatten(1), out)

    def _convolution(self, name: str, layer: nn.Conv2d, inputs: Tensor, out: Tensor) -> Convolution:
        geometry, kernel = _geometry(name, layer), self.weights.parameters[f"{name}.weight"].flatten(1)
        bias = self.weights.parameters.get(f"{name}.bias", self.weights.buffers.get(f"{name}.bias"))
        unknown, known = inputs[0].numel(), out[0].numel() + kernel.numel()
        if known < unknown:
            raise InputError(
                f"layer '{name}' loses information: it has {unknown} inputs and only {known} equations "
                "(outputs and weights); use smaller strides or more channels, or attack with iDLG"
            )
        leading = [done for done in self.layers if isinstance(done, Scaled)]
        first = len(leading) == len(self.layers)
        factor, shift = torch.ones_like(inputs[0]).flatten(), torch.zeros_like(inputs[0]).flatten()
        for done in leading if first else []:
            factor, shift = factor * done.factor, shift * done.factor + done.shift
        shape = tuple(inputs.shape[1:])
        expected = expected_images(shape, inputs.device) if first else expected_values(*_statistics(inputs.flatten(1)))
        bias = kernel.new_zeros(len(kernel), 1) if bias is None else bias[:, None]
        return Convolution(name, kernel, bias, shape, geometry, factor, shift, expected, first)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-9, atol=1e-12)


def _statistics(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return means (D,) and twice the standard deviations, because real images vary more than made-up ones."""
    return values.mean(0), 2 * values.std(0).clamp(min=1e-3 * float(values.std()))


def _geometry(name: str, layer: nn.Conv2d) -> dict[str, Any]:
    both: Any = layer.padding  # becomes the total padding on both sides of each axis
    if isinstance(both, str):
        both = [d * (k - 1) * (both == "same") for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    else:
        both = [2 * side for side in both]
    if layer.groups > 1 or layer.padding_mode != "zeros" or any(sides % 2 for sides in both):
        raise InputError(
            f"layer '{name}': a convolution with groups, or without even zero padding, cannot be inverted; "
            "attack with iDLG"
        )
    padding = tuple(sides // 2 for sides in both)
    return {"kernel_size": layer.kernel_size, "dilation": layer.dilation, "padding": padding, "stride": layer.stride}


def _scaled(name: str, layer: nn.Module, inputs: Tensor, out: Tensor) -> Scaled:
    """Return a layer that scales and shifts each value, as its outputs show. Raise `InputError` for any other."""
    if isinstance(layer, _POOLING):
        raise InputError(f"layer '{name}' ({type(layer).__name__}) loses information: attack with iDLG")
    if isinstance(layer, _BatchNorm) and (layer.training or layer.running_mean is None):
        raise InputError(f"layer '{name}' normalizes by its own batch, which cannot be inverted: use mode eval")
    if inputs.shape == out.shape:
        centered = inputs - inputs.mean(0)
        factor = (centered * (out - out.mean(0))).sum(0) / centered.square().sum(0)
        shift = out.mean(0) - factor * inputs.mean(0)
        if factor.isfinite().all() and (factor != 0).all() and _same(factor * inputs + shift, out):
            return Scaled(name, factor, shift)
    raise InputError(_refusal(name, layer))


def _refusal(name: str, layer: nn.Module) -> str:
    return (
        f"layer '{name}' ({type(layer).__name__}) cannot be inverted: RGAP inverts only Linear, Conv2d, Sigmoid, "
        "Tanh, ReLU, LeakyReLU, ELU, Flatten and layers that scale each value; attack with iDLG"
    )


def _check_gradient(chain: Chain, outputs: list[Tensor], model: nn.Module, weights: Weights, image: Tensor) -> None:
    """Raise `InputError` unless the chain reproduces an image's gradient, since the model may bypass the chain."""
    with torch.no_grad():
        label = functional_call(model, {**weights.parameters, **weights.buffers}, (image,)).argmin(1)
    sent = local_update(model, Batch(image, label), Plan(), weights).tensors
    inputs = [image.flatten(1), *outputs]
    pull = sent[f"{chain.entry.name}.bias"][None]
    for place, layer in reversed(list(enumerate((*chain.layers, chain.entry)))):
        told = layer.told(pull, inputs[place])
        if told is not None:
            true = sent[f"{layer.name}.weight"].view_as(told[0])
            if not (told[0] - true).norm() <= _AGREEMENT * true.norm():
                raise InputError(
                    f"layer '{layer.name}' does not get its whole gradient through layer '{chain.entry.name}': "
                    "attack with iDLG"
                )
        pull = layer.through(pull, outputs[place] if place < len(outputs) else pull)


def activation(name: str, layer: nn.Module) -> Activation | None:
    """Return a layer's inverse and slope as `Activation`; ``None`` for an unknown layer."""
    if isinstance(layer, nn.Sigmoid):
        return Activation(name, torch.logit, lambda h: h * (1 - h), 0.0, 1.0)
    if isinstance(layer, nn.Tanh):
        return Activation(name, torch.atanh, lambda h: 1 - h.square(), -1.0, 1.0)
    if isinstance(layer, nn.ReLU):
        return Activation(name, lambda h: h, lambda h: (h > 0).to(h), 0.0, dead=True)
    if isinstance(layer, nn.LeakyReLU) and layer.negative_slope > 0:
        rate = layer.negative_slope
        return Activation(
            name, lambda h: torch.where(h > 0, h, h / rate), lambda h: torch.where(h > 0, 1.0, rate).to(h)
        )
    if isinstance(layer, nn.ELU) and layer.alpha > 0:
        alpha = layer.alpha
        return Activation(
            name,
            lambda h: torch.where(h > 0, h, torch.log1p(h.clamp(max=0) / alpha)),
            lambda h: torch.where(h > 0, 1.0, h + alpha),
            -alpha,
        )
    return None
