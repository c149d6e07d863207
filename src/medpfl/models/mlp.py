"""A multilayer perceptron, which by construction leaks most of all models."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import nn

from medpfl.core.errors import InputError
from medpfl.core.roles import Model
from medpfl.core.spec import shown
from medpfl.models.parts import ACTIVATIONS, check_choice, check_counts, check_rate

__all__ = ["MLP"]


@dataclass(frozen=True, repr=False)
class MLP(Model):
    """Linear layers over the flattened image or volume, with PyTorch's default initialization.

    For a batch of one image, the first layer's gradient contains the image itself (Geiping et al. 2020,
    arXiv:2003.14053, Proposition 3.1).

    Attributes:
        hidden: widths of the hidden layers; ``()`` is a linear model.
        activation: as in `ConvNet`.
        dropout: dropout rate after each hidden layer.
        classes, channels: number of classes and of channels; ``None`` takes the data's.
    """

    hidden: tuple[int, ...] = shown((256,))
    activation: str = "relu"
    dropout: float = 0.0
    classes: int | None = None
    channels: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.hidden, tuple | list):
            raise InputError(f"hidden is {self.hidden!r}: it must be a list of widths, such as (256, 64)")
        object.__setattr__(self, "hidden", tuple(self.hidden))
        if self.hidden:
            check_counts(depth=len(self.hidden))
        for width in self.hidden:
            check_counts(hidden=width)
        check_choice("activation", self.activation, ACTIVATIONS)
        check_rate(self.dropout)

    def build(self, image_shape: tuple[int, ...], num_classes: int, seed: int) -> nn.Module:
        """Build the network for images (C, H, W) or volumes (C, D, H, W)."""
        pixels = (self.channels or image_shape[0]) * math.prod(image_shape[1:])
        widths = [pixels, *self.hidden, self.classes or num_classes]
        layers: list[nn.Module] = [nn.Flatten()]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for inputs, outputs in itertools.pairwise(widths):
                layers += [nn.Linear(inputs, outputs), ACTIVATIONS[self.activation]()]
                layers += [nn.Dropout(self.dropout)] if self.dropout else []
        # The last layer gives logits.
        return nn.Sequential(*layers[: -2 if self.dropout else -1])
