"""PRECODE: a random bottleneck inside the model."""

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
    """A variational bottleneck before the last linear layer, which makes gradients depend on random draws.

    PRECODE (Scheliga et al. 2022, arXiv:2108.04725, section 3): the representation r becomes ``D(z)`` with
    ``z = mu + sigma eps``. Here (mu, log sigma^2) is linear in r, D is linear, and eps is standard normal, drawn anew
    in every step.

    Promises that a guess has to match random values that only the client knows. Breaks: attacks that ignore the
    gradients from the bottleneck onward (Scheliga et al. 2022, arXiv:2208.04767); ROG. Deviates: the loss is the
    plan's, without the paper's Kullback-Leibler term, so nothing in training keeps sigma from shrinking.

    Attributes:
        width: dimension of z, at least 1.

    Raises:
        InputError: if `width` is not a whole number, at least 1. In a round: if the model has no linear layer.
    """

    width: int = shown(256)

    def __post_init__(self) -> None:
        if type(self.width) is not int or self.width < 1:
            raise InputError(f"width is {self.width}: it must be a whole number, at least 1")

    def model(self, value: nn.Module, state: State, generator: torch.Generator) -> tuple[nn.Module, State]:
        """Insert the bottleneck with randomly drawn weights; a model that already has one is returned unchanged."""
        if any(isinstance(layer, Bottleneck) for layer in value.modules()):
            return value, state
        name, layer = last_linear(value, "PRECODE")
        bottleneck = Bottleneck(layer.in_features, self.width, generator).to(layer.weight)
        return with_layer(value, name, nn.Sequential(bottleneck, layer)), state

    def disclose(self, sent: Update, plan: Plan | None = None, before: Channel | None = None) -> Channel:
        """Return precision 0 for gradients from the bottleneck onward, and full precision for those before.

        Gradients from the bottleneck onward depend on the random draws. Those before it depend on them too, through
        backpropagation, so calling them exact is an approximation.
        """
        precision, passed = {}, False
        for name, tensor in sent.tensors.items():
            passed = passed or _MARK in name
            precision[name] = torch.full_like(tensor, 0.0 if passed else certain(tensor))
        return (before or Channel()).then(precision=precision)


class Bottleneck(Drawn):
    """Encoder, random code and decoder: (images, size) to (images, size)."""

    def __init__(self, size: int, width: int, generator: torch.Generator) -> None:
        super().__init__(0.0)
        self.precode_encoder = _linear(size, 2 * width, generator)
        self.precode_decoder = _linear(width, size, generator)

    def forward(self, x: Tensor) -> Tensor:
        """Decode the random code; if none was drawn, decode its mean."""
        mean, log_variance = self.precode_encoder(x).chunk(2, -1)
        return self.precode_decoder(mean + (log_variance / 2).exp() * self.drawn.to(x))

    def draw(self, x: Tensor, generator: torch.Generator, images: Tensor) -> Tensor:
        """Draw standard normal values (images, width)."""
        return torch.randn((len(x), self.precode_decoder.in_features), generator=generator).to(x)


def _linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """Build a linear layer with PyTorch's uniform distribution of weights, drawn from `generator`."""
    layer = nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_((2 * torch.rand(parameter.shape, generator=generator) - 1) / math.sqrt(inputs))
    return layer
