"""Random layers that take their draws as an input, so that a client's round can be repeated."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medpfl.core.errors import InputError
from medpfl.core.user_code.copies import copied

__all__ = ["DRAWN", "Drawn", "draws", "last_linear", "set_layer", "with_layer"]

DRAWN = "medpfl_mask"
"""Name of the buffer that holds the draw."""


class Drawn(nn.Module):
    """A layer with a buffer for its random draw. Until a draw is given, the buffer is neutral.

    Clients fill it at each step (`medpfl.federated.draws.draw`); an attacker does so only under the grant ``masks``.

    Attributes:
        needs_slope: True if `draw` differentiates its input with respect to the images. Otherwise `draw` uses only the
            input's shape.
    """

    needs_slope = False

    def __init__(self, neutral: float) -> None:
        super().__init__()
        self.register_buffer(DRAWN, torch.tensor(neutral))

    @property
    def drawn(self) -> Tensor:
        """The given draw: neutral with shape (), or of shape (images, ...)."""
        return getattr(self, DRAWN)

    def draw(self, x: Tensor, generator: torch.Generator, images: Tensor) -> Tensor:
        """Return a draw (images, ...) for an input `x` (images, ...), computed by the model from `images`."""
        raise NotImplementedError


def draws(layer: nn.Module) -> bool:
    """Return True if a layer takes a client's draw. Dropout with rate 0 does not: it drops nothing."""
    return isinstance(layer, Drawn) and getattr(layer, "rate", 1) > 0


def last_linear(model: nn.Module, for_what: str) -> tuple[str, nn.Linear]:
    """Return the name and the layer of a model's last linear layer.

    Raises:
        InputError: the model has none.
    """
    found = [(name, layer) for name, layer in model.named_modules() if type(layer) is nn.Linear]
    if not found:
        raise InputError(f"{for_what} needs a linear layer in the model: this one has none")
    return found[-1]


def with_layer(model: nn.Module, name: str, layer: nn.Module) -> nn.Module:
    """Return a copy of the model with `layer` at `name`; the name ``""`` stands for the whole model."""
    if not name:
        return layer
    changed = copied(model, forget=True)
    set_layer(changed, name, layer)
    return changed


def set_layer(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Replace the layer at a name, in place."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)
