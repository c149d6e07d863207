"""Perturbation of the representation: what carries most of the image is left out of one layer's gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from medpfl.core.drawn_layers import Drawn, last_linear, with_layer
from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.roles import Defense, State
from medpfl.core.spec import shown
from medpfl.core.types import Channel, Update
from medpfl.defenses.compression import certain

__all__ = ["Soteria"]

_CHUNK = 64
"""Coordinates of the representation that are differentiated together."""


@dataclass(frozen=True, repr=False)
class Soteria(Defense):
    """Leaves those inputs of the last linear layer out of its gradient that carry most of the image.

    Soteria (Sun et al. 2021, arXiv:2012.06043): of the representation r of the images X, the share `prune` of
    coordinates with the largest ``|r_i| / |d r_i / d X|``, summed over the batch (the approximation in their
    code of ``|r_i (d r_i / d X)^-1|``), is set to zero where the gradient of the layer's weights is computed;
    the model's output and all other gradients stay.

    Promises a larger least distance between image and reconstruction from that layer alone. It leaves all
    other layers exact. Breaks: leaving the defended layer out of the match (Balunovic et al. 2022,
    arXiv:2111.04706); ROG; GIFD.
    Deviates: the last linear layer is defended, whatever the model; in a round of several steps the
    coordinates are chosen by the weights that the round began with.

    Attributes:
        prune: share of coordinates, above 0 and below 1; at least one.

    Raises:
        InputError: `prune` out of its range. In a round: a model without a linear layer.
    """

    prune: float = shown(0.1)

    def __post_init__(self) -> None:
        if not 0 < self.prune < 1:
            raise InputError(f"prune is {self.prune}: it must lie between 0 and 1")

    def model(self, value: nn.Module, state: State, generator: torch.Generator) -> tuple[nn.Module, State]:
        """The model with another last linear layer of the same weights; a model that has one stays as it is."""
        if any(isinstance(layer, PrunedLinear) for layer in value.modules()):
            return value, state
        name, layer = last_linear(value, "Soteria")
        return with_layer(value, name, PrunedLinear(layer, self.prune)), state

    def settled(self, first: bool) -> bool:
        """No: the pruned columns are read off the update."""
        return False

    def disclose(self, sent: Update, plan: Plan | None = None, before: Channel | None = None) -> Channel:
        """The columns of the last weight matrix that are zero say nothing, and it none at all after several batches."""
        matrices = [name for name, t in sent.tensors.items() if t.ndim == 2]
        precision = {name: torch.full_like(t, certain(t)) for name, t in sent.tensors.items()}
        if matrices:
            weight = sent.tensors[matrices[-1]]
            one_mask = plan is None or plan.images == plan.batch_size
            kept = weight.any(0) if one_mask else torch.zeros_like(weight[0], dtype=torch.bool)
            precision[matrices[-1]] = precision[matrices[-1]] * kept
        return (before or Channel()).then(precision=precision)


class PrunedLinear(Drawn):
    """A linear layer whose weights get no gradient from the inputs that were chosen.

    Args:
        layer: whose weights it has.
        prune: share of its inputs.
    """

    needs_slope = True

    def __init__(self, layer: nn.Linear, prune: float) -> None:
        super().__init__(1.0)
        self.weight, self.bias, self.prune = layer.weight, layer.bias, prune

    def forward(self, x: Tensor) -> Tensor:
        """As of the layer (images, outputs)."""
        kept = x * self.drawn.to(x)
        return functional.linear(kept, self.weight, self.bias) + functional.linear(x - kept, self.weight.detach())

    def draw(self, x: Tensor, generator: torch.Generator, images: Tensor) -> Tensor:
        """0 at the chosen inputs and 1 at the others, the same for all images of the batch."""
        size = torch.cat([_slopes(x, images, part) for part in torch.arange(x.shape[1]).split(_CHUNK)], 1)
        ratio = (x.detach().abs() / size.clamp(min=torch.finfo(x.dtype).tiny)).nan_to_num(0).sum(0)
        chosen = ratio.topk(max(1, round(self.prune * len(ratio)))).indices
        return torch.ones_like(ratio).index_fill(0, chosen, 0).expand(len(x), -1)


def _slopes(x: Tensor, images: Tensor, part: Tensor) -> Tensor:
    """The norms (images, coordinates) of derivatives of some coordinates with respect to their own image."""
    directions = functional.one_hot(part, x.shape[1]).to(x)[:, None].expand(-1, len(x), -1)
    (slopes,) = torch.autograd.grad(x, images, directions, retain_graph=True, is_grads_batched=True)
    return slopes.flatten(2).norm(dim=2).T
