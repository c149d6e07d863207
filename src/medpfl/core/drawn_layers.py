"""Layers that take what they draw at random as an input, so that a client's round can be repeated."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medpfl.core.errors import InputError
from medpfl.core.user_code.copies import copied

__all__ = ["DRAWN", "Drawn", "draws", "last_linear", "set_layer", "with_layer"]

DRAWN = "medpfl_mask"
"""Name of the buffer that holds what was drawn."""


class Drawn(nn.Module):
    """A layer with a buffer for what it draws; as long as nothing is given, the buffer is neutral.

    Clients fill it for each step (`medpfl.federated.draws.draw`); an attacker only under the grant ``masks``.

    Attributes:
        needs_slope: whether `draw` differentiates its input with respect to the images. If not, it takes nothing but
            the shape of the input.
    """

    needs_slope = False

    def __init__(self, neutral: float) -> None:
        super().__init__()
        self.register_buffer(DRAWN, torch.tensor(neutral))

    @property
    def drawn(self) -> Tensor:
        """What was given: neutral (), or (images, ...)."""
        return getattr(self, DRAWN)

    def draw(self, x: Tensor, generator: torch.Generator, images: Tensor) -> Tensor:
        """A draw (images, ...) for an input `x` (images, ...) that the model made of `images`."""
        raise NotImplementedError


def draws(layer: nn.Module) -> bool:
    """Whether a layer takes what a client drew: one whose rate is 0 drops nothing."""
    return isinstance(layer, Drawn) and getattr(layer, "rate", 1) > 0


def last_linear(model: nn.Module, for_what: str) -> tuple[str, nn.Linear]:
    """Name and layer of a model's last linear layer.

    Raises:
        InputError: it has none.
    """
    found = [(name, layer) for name, layer in model.named_modules() if type(layer) is nn.Linear]
    if not found:
        raise InputError(f"{for_what} needs a linear layer in the model: this one has none")
    return found[-1]


def with_layer(model: nn.Module, name: str, layer: nn.Module) -> nn.Module:
    """A copy of the model with another layer at a name; ``""`` is the whole."""
    if not name:
        return layer
    changed = copied(model, forget=True)
    set_layer(changed, name, layer)
    return changed


def set_layer(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Puts another layer at a name, in place."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)
