"""The client's own random draws: batch order or Poisson batches, and dropout masks. They are not sent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from medpfl.core.drawn_layers import DRAWN, Drawn
from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.types import Batch, Tensors

__all__ = ["Draws", "Dropout", "draw", "index_of"]


@dataclass(frozen=True, eq=False)
class Draws:
    """A client's random draws for one round.

    Attributes:
        order: image indices (epochs, N) in each epoch's order; ``None``: the given order.
        chosen: booleans (steps, N), true for images in a step's batch under Poisson sampling; ``None``: all images.
        masks: for each drawn layer, (steps, images per step, ...); under Poisson sampling for all N images. A smaller
            batch uses the first rows. A layer without a mask is neutral: dropout passes its input on.
    """

    order: Tensor | None = None
    masks: Tensors = field(default_factory=dict)
    chosen: Tensor | None = None

    def at(self, step: int) -> dict[str, Tensor]:
        """Return one step's masks as entries for the model's state."""
        return {f"{name}.{DRAWN}": mask[step] for name, mask in self.masks.items()}


class Dropout(Drawn):
    """Dropout that multiplies by a given mask instead of drawing one."""

    def __init__(self, layer: nn.modules.dropout._DropoutNd) -> None:
        super().__init__(1.0)
        self.rate = layer.p
        whole = isinstance(layer, nn.Dropout1d | nn.Dropout2d | nn.Dropout3d)
        self.kept_dims = 2 if whole else None  # whole channels are dropped: the mask needs no more axes

    def forward(self, x: Tensor) -> Tensor:
        """Return the input times the mask."""
        return x * self.drawn.to(x)

    def draw(self, x: Tensor, generator: torch.Generator, images: Tensor | None = None) -> Tensor:
        """Draw a scaled mask for an input like `x`."""
        shape = x.shape[: self.kept_dims] + (1,) * len(x.shape[self.kept_dims :]) if self.kept_dims else x.shape
        keep = torch.rand(shape, generator=generator) >= self.rate
        return keep.to(x) / (1 - self.rate) if self.rate < 1 else keep.to(x)


def draw(model: nn.Module, batch: Batch, plan: Plan, generator: torch.Generator) -> Draws:
    """Draw a client's order and masks for one round, for a batch (N, C, H, W) and a prepared model.

    If a layer's draw depends on the step's images, it is computed with the model's own weights.

    Raises:
        InputError: if the model uses a drawing layer more than once per pass.
    """
    order = chosen = None
    if plan.sampling == "poisson":
        chosen = torch.rand((plan.steps, len(batch)), generator=generator) < plan.rate
    elif plan.images > plan.batch_size:
        order = torch.stack([torch.randperm(len(batch), generator=generator) for _ in range(plan.epochs)])
    layers = {name: m for name, m in model.named_modules() if isinstance(m, Drawn)}
    if not layers:
        return Draws(order, chosen=chosen)
    steps = [batch.images if chosen is not None else batch.images[index_of(plan, order, s)] for s in range(plan.steps)]
    return Draws(order, _masks(model, layers, steps, generator), chosen)


def index_of(plan: Plan, order: Tensor | None, step: int) -> Any:
    """Return the indices of a step's images; if there is only one batch, all images."""
    per_epoch = plan.batches
    if per_epoch == 1:
        return slice(None)  # a mean over the same images: their order does not matter
    epoch, place = divmod(step, per_epoch)
    dealt = slice(place * plan.batch_size, (place + 1) * plan.batch_size)
    return dealt if order is None else order[epoch][dealt]


def _masks(
    model: nn.Module, layers: dict[str, Drawn], steps: Sequence[Tensor], generator: torch.Generator
) -> dict[str, Tensor]:
    """Draw every layer's mask for every step."""
    if not any(layer.needs_slope for layer in layers.values()):
        return _blind(model, layers, steps, generator)
    masks: dict[str, list[Tensor]] = {name: [] for name in layers}
    handles, current = [], [steps[0]]
    for name, layer in layers.items():
        handles.append(layer.register_forward_pre_hook(_recorder(layer, masks[name], generator, current)))
    try:
        with torch.enable_grad():
            for images in steps:
                current[0] = images.detach().requires_grad_()
                model(current[0])
    finally:
        for handle in handles:
            handle.remove()
    for name, drawn in masks.items():
        _check_once(name, len(drawn) / len(steps))
    return {name: _stacked(drawn) for name, drawn in masks.items() if drawn}


def _check_once(name: str, uses: float) -> None:
    if uses > 1:
        raise InputError(f"dropout layer '{name}' is used more than once: give each use a layer of its own")


def _blind(
    model: nn.Module, layers: dict[str, Drawn], steps: Sequence[Tensor], generator: torch.Generator
) -> dict[str, Tensor]:
    """Draw what `_masks` would draw, from one pass that shows the shapes; valid only if no layer `needs_slope`."""
    inputs: dict[str, list[Tensor]] = {}
    handles = [layer.register_forward_pre_hook(_keeper(inputs, name)) for name, layer in layers.items()]
    try:
        with torch.no_grad():
            model(steps[0])
    finally:
        for handle in handles:
            handle.remove()
    for name, given in inputs.items():
        _check_once(name, len(given))
    drawn = [
        {
            name: layers[name].draw(_rows(x, len(steps[0]), len(images)), generator, images)
            for name, (x,) in inputs.items()
        }
        for images in steps
    ]
    return {name: _stacked([one[name] for one in drawn]) for name in inputs}


def _rows(x: Tensor, images: int, wanted: int) -> Tensor:
    """Return a layer's input for a smaller batch of `wanted` images; a layer may hold several rows of an image."""
    return x if wanted == images else x[: len(x) * wanted // images]


def _stacked(masks: list[Tensor]) -> Tensor:
    """Stack the masks of all steps; those of a smaller last batch are filled up with ones, which nothing uses."""
    most = max(len(mask) for mask in masks)
    return torch.stack([torch.cat([m, m.new_ones(most - len(m), *m.shape[1:])]) if len(m) < most else m for m in masks])


def _keeper(inputs: dict[str, list[Tensor]], name: str) -> Callable[..., None]:
    """Return a hook that stores every input of a layer."""

    def hook(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        inputs.setdefault(name, []).append(given[0])

    return hook


def _recorder(
    layer: Drawn, into: list[Tensor], generator: torch.Generator, current: list[Tensor]
) -> Callable[..., None]:
    """Return a hook that draws a mask for every input of a layer."""

    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        into.append(layer.draw(inputs[0], generator, current[0]).detach())

    return hook
