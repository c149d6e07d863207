"""The layer that cuts an image into patches and projects each, found by running the model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from medpfl.core.errors import InputError
from medpfl.core.types import Weights
from medpfl.federated.ready import state_of

__all__ = ["PatchEmbedding", "embedding_of"]

_AGREEMENT = 1e-3
"""Largest relative difference between two float32 gradients that are the same. A transformer's other gradients
differ by their whole size."""


@dataclass(frozen=True, eq=False)
class PatchEmbedding:
    """A convolution whose kernels do not overlap, and the learned positions added to its outputs.

    Attributes:
        weight, positions: parameter names.
        first: index of the first patch's token: 1 after a class token.
        kernel: sides of a patch.
        shape: (C, H, W) or (C, D, H, W) of the convolution's input.
        factor, shift: with this shape; the convolution's input is the image times `factor` plus `shift`.
    """

    weight: str
    positions: str
    first: int
    kernel: tuple[int, ...]
    shape: tuple[int, ...]
    factor: Tensor
    shift: Tensor

    @property
    def grid(self) -> tuple[int, ...]:
        """Patches along each axis."""
        return tuple(side // edge for side, edge in zip(self.shape[1:], self.kernel, strict=True))

    def cut(self, values: Tensor) -> Tensor:
        """Cut images (V, C, H, W) or volumes into patches (V, T, K), flattened in the order of the kernel's weights."""
        axes = len(self.kernel)
        pairs = [side for both in zip(self.grid, self.kernel, strict=True) for side in both]
        split = values.reshape(len(values), self.shape[0], *pairs)
        order = [0, *range(2, 2 + 2 * axes, 2), 1, *range(3, 3 + 2 * axes, 2)]
        return split.permute(order).flatten(1 + axes).flatten(1, axes)

    def joined(self, patches: Tensor) -> Tensor:
        """Join patches (V, T, K) to (V, C, H, W): the inverse of `cut`."""
        axes = len(self.kernel)
        split = patches.reshape(len(patches), *self.grid, self.shape[0], *self.kernel)
        order = [0, 1 + axes, *(place for i in range(axes) for place in (1 + i, 2 + axes + i))]
        return split.permute(order).reshape(len(patches), *self.shape)


def embedding_of(
    model: nn.Module, weights: Weights, image_shape: tuple[int, ...], generator: torch.Generator
) -> PatchEmbedding:
    """Return a model's patch embedding, checked against the model's own gradients.

    Args:
        model: prepared model; its own weights are not used.
        weights: the global model.
        image_shape: (C, H, W) or (C, D, H, W).
        generator: generator for made-up images.

    Raises:
        InputError: No patch embedding has positions that receive the projected patches' gradient. The message gives the
            reason.
    """
    device = next(iter(weights.parameters.values())).device
    made = torch.rand(1, *image_shape, generator=generator).to(device)
    calls = _Calls(model, weights)
    inputs = {name: scale for name, scale in calls.scales(made).items() if f"{name}.weight" in weights.parameters}
    if not inputs:
        raise InputError(_NONE)
    for name, (factor, shift) in inputs.items():
        layer: Any = model.get_submodule(name)
        kernel, shape = tuple(layer.kernel_size), tuple(factor.shape)
        outputs, gradients = calls.gradients(made, name)
        for positions, first in _added(outputs, gradients):
            found = PatchEmbedding(f"{name}.weight", positions, first, kernel, shape, factor, shift)
            patches = outputs.shape[0]
            if patches > (width := outputs.shape[1]):
                raise InputError(
                    f"layer '{name}' has {width} channels for {patches} patches: its weight gradient gives fewer "
                    "equations than unknowns; attack with iDLG"
                )
            return found
    raise InputError(_NO_POSITIONS.format(name=next(iter(inputs))))


_NONE = (
    "the model has no patch embedding: APRIL needs a Conv2d or Conv3d on the image itself, with stride equal to kernel "
    "size, and learned positions; attack with iDLG"
)
_NO_POSITIONS = (
    "the patches of layer '{name}' have no learned positions of their own, whose gradients would reveal them: attack "
    "with iDLG"
)


def _added(outputs: Tensor, gradients: dict[str, Tensor]) -> Iterator[tuple[str, int]]:
    """Yield the parameters that receive the gradient (T, D) of the projected patches, and the first patch's token."""
    patches, width = outputs.shape
    for name, gradient in gradients.items():
        if gradient.ndim < 2 or gradient.shape[-1] != width or gradient.numel() < outputs.numel():
            continue
        tokens = gradient.reshape(-1, width)
        for first in {0, len(tokens) - patches}:
            own = tokens[first : first + patches]
            if (own - outputs).norm() <= _AGREEMENT * outputs.norm():
                yield name, first


class _Calls:
    """Runs of a model on made-up images."""

    def __init__(self, model: nn.Module, weights: Weights) -> None:
        self.model, self.weights = model, weights
        self.state = {**weights.parameters, **state_of(model, weights.buffers)}

    def scales(self, made: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Return, for each layer that cuts the image into patches, its input as factor and shift of the image."""
        trials = torch.cat([torch.zeros_like(made), torch.ones_like(made), made])
        caught: dict[str, Tensor] = {}

        def catch(name: str) -> Any:
            return lambda _, inputs: caught.setdefault(name, inputs[0].detach())

        layers = {name: layer for name, layer in self.model.named_modules() if _cuts(layer)}
        handles = [layer.register_forward_pre_hook(catch(name)) for name, layer in layers.items()]
        try:
            with torch.no_grad():
                functional_call(self.model, self.state, (trials,))
        finally:
            for handle in handles:
                handle.remove()
        found = {}
        for name, got in caught.items():
            if got.shape[2:] != made.shape[2:] or made.shape[1] not in (1, got.shape[1]) or len(got) != 3:
                continue
            factor, shift = got[1] - got[0], got[0]
            if (factor != 0).all() and torch.allclose(factor * made[0] + shift, got[2], rtol=1e-4, atol=1e-5):
                found[name] = factor, shift
        return found

    def gradients(self, made: Tensor, name: str) -> tuple[Tensor, dict[str, Tensor]]:
        """Return derivatives of a scalar made from the model's outputs.

        They are taken with respect to the layer's outputs (T, D), and to all parameters.
        """
        parameters = {k: t.detach().requires_grad_() for k, t in self.weights.parameters.items()}
        caught: list[Any] = []
        handle = self.model.get_submodule(name).register_forward_hook(lambda _, __, out: caught.append(out))
        try:
            out = functional_call(self.model, {**self.state, **parameters}, (made,))
        finally:
            handle.remove()
        ramp = torch.linspace(0.5, 1.5, out.numel(), device=out.device, dtype=out.dtype)
        found = torch.autograd.grad((out.flatten() * ramp).sum(), [caught[0], *parameters.values()], allow_unused=True)
        outputs, *rest = found
        if outputs is None:
            return caught[0].new_zeros(1, 1), {}
        own = {k: g for k, g in zip(parameters, rest, strict=True) if g is not None}
        return outputs[0].flatten(1).T, own


def _cuts(layer: nn.Module) -> bool:
    """Return True if the layer is a convolution whose patches do not overlap."""
    if not isinstance(layer, nn.Conv2d | nn.Conv3d) or layer.groups > 1 or isinstance(layer.padding, str):
        return False
    flush = tuple(layer.stride) == tuple(layer.kernel_size) and not any(layer.padding)
    return flush and all(step == 1 for step in layer.dilation) and min(layer.kernel_size) > 1
