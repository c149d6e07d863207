"""The client's own random draws: batch order or Poisson batches, and dropout masks. They are not on the wire."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.types import Batch, Tensors

__all__ = ["Draws", "Dropout", "draw"]

_MASK = "medpfl_mask"


@dataclass(frozen=True, eq=False)
class Draws:
    """What a client drew.

    Attributes:
        order: (epochs, N) indices of the images; ``None``: as they are.
        chosen: (steps, N) whether an image is in a step's batch, under Poisson sampling; ``None``: all are.
        masks: by dropout layer (steps, images of a step, ...) scaled masks, under Poisson sampling of all N
            images; a layer without one passes its input on.
    """

    order: Tensor | None = None
    masks: Tensors = field(default_factory=dict)
    chosen: Tensor | None = None

    def at(self, step: int) -> dict[str, Tensor]:
        """The masks of a step as the model's state."""
        return {f"{name}.{_MASK}": mask[step] for name, mask in self.masks.items()}


class Dropout(nn.Module):
    """Dropout that multiplies by a given mask instead of drawing one, so that it can be repeated."""

    def __init__(self, layer: nn.modules.dropout._DropoutNd) -> None:
        super().__init__()
        self.rate = layer.p
        whole = isinstance(layer, nn.Dropout1d | nn.Dropout2d | nn.Dropout3d)
        self.kept_dims = 2 if whole else None  # whole channels are dropped: the mask has no further axes
        self.register_buffer(_MASK, torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """The input times the mask."""
        return x * getattr(self, _MASK).to(x)

    def draw(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """A mask for an input like `x`."""
        shape = x.shape[: self.kept_dims] + (1,) * len(x.shape[self.kept_dims :]) if self.kept_dims else x.shape
        keep = torch.rand(shape, generator=generator) >= self.rate
        return keep.to(x) / (1 - self.rate) if self.rate < 1 else keep.to(x)


def draw(model: nn.Module, batch: Batch, plan: Plan, generator: torch.Generator) -> Draws:
    """A client's draws for one round of `plan` on a batch (N, C, H, W), with a model made ready for it.

    Raises:
        InputError: a dropout layer that the model passes more than once.
    """
    order, chosen, dealt = None, None, batch.images[: plan.batch_size]
    if plan.sampling == "poisson":
        chosen, dealt = torch.rand((plan.steps, len(batch)), generator=generator) < plan.rate, batch.images
    elif plan.images > plan.batch_size:
        order = torch.stack([torch.randperm(len(batch), generator=generator) for _ in range(plan.epochs)])
    layers = {name: m for name, m in model.named_modules() if isinstance(m, Dropout)}
    if not layers:
        return Draws(order, chosen=chosen)
    masks: dict[str, list[Tensor]] = {name: [] for name in layers}
    handles = [m.register_forward_pre_hook(_recorder(m, masks[name], generator)) for name, m in layers.items()]
    try:
        with torch.no_grad():
            for _ in range(plan.steps):
                model(dealt)
    finally:
        for handle in handles:
            handle.remove()
    for name, drawn in masks.items():
        if len(drawn) not in (0, plan.steps):
            raise InputError(f"dropout layer '{name}' is used more than once: give each use a layer of its own")
    return Draws(order, {name: torch.stack(drawn) for name, drawn in masks.items() if drawn}, chosen)


def _recorder(layer: Dropout, into: list[Tensor], generator: torch.Generator) -> Callable[..., None]:
    """A hook that draws a mask for every input of a layer."""

    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        into.append(layer.draw(inputs[0], generator))

    return hook
