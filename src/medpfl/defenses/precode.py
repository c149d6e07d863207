"""A random bottleneck inside the model."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medpfl.core.drawn_layers import Drawn, last_linear, with_layer
from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.roles import Defense, State
from medpfl.core.spec import shown
from medpfl.core.types import Channel, Update
from medpfl.defenses.compression import certain

__all__ = ["PRECODE"]

_MARK = "precode"


@dataclass(frozen=True, repr=False)
class PRECODE(Defense):
    """Puts a variational bottleneck before the last linear layer, so that gradients depend on random numbers.

    PRECODE (Scheliga et al. 2022, arXiv:2108.04725, section 3): the representation r becomes ``D(z)``, where
    ``z = mu + sigma eps``, (mu, log sigma^2) is linear in r, eps is standard normal and drawn anew in every
    step, and D is linear.

    Promises that a guess has to match random numbers that only the client knows. Breaks: attacks that leave
    the gradients of the bottleneck and of what follows out (Scheliga et al. 2022, arXiv:2208.04767); ROG.
    Deviates: the loss is the plan's, without the paper's Kullback-Leibler term, so that nothing in training keeps
    sigma from shrinking.

    Attributes:
        width: dimension of z, at least 1.

    Raises:
        InputError: no whole number, at least 1. In a round: a model without a linear layer.
    """

    width: int = shown(256)

    def __post_init__(self) -> None:
        if type(self.width) is not int or self.width < 1:
            raise InputError(f"width is {self.width}: it must be a whole number, at least 1")

    def model(self, value: nn.Module, state: State, generator: torch.Generator) -> tuple[nn.Module, State]:
        """The model with the bottleneck, whose weights are drawn; a model that has one stays as it is."""
        if any(isinstance(layer, Bottleneck) for layer in value.modules()):
            return value, state
        name, layer = last_linear(value, "PRECODE")
        bottleneck = Bottleneck(layer.in_features, self.width, generator).to(layer.weight)
        return with_layer(value, name, nn.Sequential(bottleneck, layer)), state

    def disclose(self, sent: Update, plan: Plan | None = None, before: Channel | None = None) -> Channel:
        """From the bottleneck on, gradients hang on what was drawn and are left out; those before it are exact.

        That they are exact is an approximation: what comes back through the bottleneck hangs on it too.
        """
        precision, passed = {}, False
        for name, tensor in sent.tensors.items():
            passed = passed or _MARK in name
            precision[name] = torch.full_like(tensor, 0.0 if passed else certain(tensor))
        return (before or Channel()).then(precision=precision)


class Bottleneck(Drawn):
    """Encoder, random code, decoder: (images, size) to (images, size)."""

    def __init__(self, size: int, width: int, generator: torch.Generator) -> None:
        super().__init__(0.0)
        self.precode_encoder = _linear(size, 2 * width, generator)
        self.precode_decoder = _linear(width, size, generator)

    def forward(self, x: Tensor) -> Tensor:
        """The decoded code; without a draw, of its mean."""
        mean, log_variance = self.precode_encoder(x).chunk(2, -1)
        return self.precode_decoder(mean + (log_variance / 2).exp() * self.drawn.to(x))

    def draw(self, x: Tensor, generator: torch.Generator, images: Tensor) -> Tensor:
        """Standard normal (images, width)."""
        return torch.randn((len(x), self.precode_decoder.in_features), generator=generator).to(x)


def _linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """A linear layer with PyTorch's uniform distribution of weights, drawn from a generator."""
    layer = nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_((2 * torch.rand(parameter.shape, generator=generator) - 1) / math.sqrt(inputs))
    return layer
