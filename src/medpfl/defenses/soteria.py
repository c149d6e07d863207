"""Soteria: representation perturbation, which removes from one layer's gradient what carries most of the image."""

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
"""Number of representation coordinates that are differentiated together."""


@dataclass(frozen=True, repr=False)
class Soteria(Defense):
    """Gradient pruning in the last linear layer: inputs that carry most of the image get no weight gradient.

    Soteria (Sun et al. 2021, arXiv:2012.06043) ranks the coordinates of the representation r of images X by
    ``|r_i| / |d r_i / d X|``, summed over the batch; this is how their code approximates ``|r_i (d r_i / d X)^-1|``.
    The share `prune` with the largest values is set to zero in the gradient of the layer's weights. The model's output
    and all other gradients do not change.

    Promises a larger minimum distance between image and reconstruction, for reconstruction from that layer alone. All
    other layers stay exact. Breaks: ignoring the defended layer in the match (Balunovic et al. 2022,
    arXiv:2111.04706); ROG; GIFD. Deviates: it defends the last linear layer of any model; in a round with several
    steps, the weights at its start determine which coordinates are pruned.

    Attributes:
        prune: share of coordinates to prune, above 0 and below 1; at least one is pruned.

    Raises:
        InputError: if `prune` is out of range. In a round: if the model has no linear layer.
    """

    prune: float = shown(0.1)

    def __post_init__(self) -> None:
        if not 0 < self.prune < 1:
            raise InputError(f"prune is {self.prune}: it must lie between 0 and 1")

    def model(self, value: nn.Module, state: State, generator: torch.Generator) -> tuple[nn.Module, State]:
        """Replace the last linear layer by a pruned one with the same weights; a model that has one is unchanged."""
        if any(isinstance(layer, PrunedLinear) for layer in value.modules()):
            return value, state
        name, layer = last_linear(value, "Soteria")
        return with_layer(value, name, PrunedLinear(layer, self.prune)), state

    def settled(self, first: bool) -> bool:
        """Return False: the pruned columns are inferred from the sent update."""
        return False

    def disclose(self, sent: Update, plan: Plan | None = None, before: Channel | None = None) -> Channel:
        """Return precision 0 for the zero columns of the last weight matrix.

        After several batches, whose masks may differ, the whole matrix gets precision 0.
        """
        matrices = [name for name, t in sent.tensors.items() if t.ndim == 2]
        precision = {name: torch.full_like(t, certain(t)) for name, t in sent.tensors.items()}
        if matrices:
            weight = sent.tensors[matrices[-1]]
            one_mask = plan is None or plan.images == plan.batch_size
            kept = weight.any(0) if one_mask else torch.zeros_like(weight[0], dtype=torch.bool)
            precision[matrices[-1]] = precision[matrices[-1]] * kept
        return (before or Channel()).then(precision=precision)


class PrunedLinear(Drawn):
    """A linear layer whose weights get no gradient from the chosen inputs.

    Args:
        layer: the layer whose weights it shares.
        prune: share of its inputs to choose.
    """

    needs_slope = True

    def __init__(self, layer: nn.Linear, prune: float) -> None:
        super().__init__(1.0)
        self.weight, self.bias, self.prune = layer.weight, layer.bias, prune

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's usual outputs (images, outputs)."""
        kept = x * self.drawn.to(x)
        return functional.linear(kept, self.weight, self.bias) + functional.linear(x - kept, self.weight.detach())

    def draw(self, x: Tensor, generator: torch.Generator, images: Tensor) -> Tensor:
        """Return 0 at the chosen inputs and 1 elsewhere, the same for all images in the batch."""
        size = torch.cat([_slopes(x, images, part) for part in torch.arange(x.shape[1]).split(_CHUNK)], 1)
        ratio = (x.detach().abs() / size.clamp(min=torch.finfo(x.dtype).tiny)).nan_to_num(0).sum(0)
        chosen = ratio.topk(max(1, round(self.prune * len(ratio)))).indices
        return torch.ones_like(ratio).index_fill(0, chosen, 0).expand(len(x), -1)


def _slopes(x: Tensor, images: Tensor, part: Tensor) -> Tensor:
    """Return the norm (images, coordinates) of each coordinate's derivative with respect to its own image."""
    directions = functional.one_hot(part, x.shape[1]).to(x)[:, None].expand(-1, len(x), -1)
    (slopes,) = torch.autograd.grad(x, images, directions, retain_graph=True, is_grads_batched=True)
    return slopes.flatten(2).norm(dim=2).T
