"""Made-up clients: what the last layer of the attacked model gets from their images, and predicts.

The images are phantoms, or auxiliary images where the attacker has them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod

import torch
from torch import Tensor, nn
from torch.func import functional_call

from medpfl.attacks.label_counts.phantoms import phantoms
from medpfl.core.types import Observation, Tensors
from medpfl.federated.ready import batch_norms, state_of

__all__ = ["Clients", "Head", "contrasts", "made_up"]

_FAMILIES, _EACH = 64, 4
"""Families, and images in each. How families differ matters more than how images in them do."""

_FAMILIES_MIXED, _MOST_MIXED = 32, 32
"""Families where batch norm mixes a batch's images, and most images in each: a family is then a whole batch."""

_ENOUGH = 32
"""Number of auxiliary images from which on they take the place of phantoms."""

_KEPT = 2**22
"""Most numbers in phantoms that are kept for the next attack, 16 MiB."""

_COMPONENTS = 6
"""Principal components of the inputs, besides the mean and the last layer's own directions."""

_TINY = 1e-30


@dataclass(frozen=True)
class Head:
    """The names of the last layer's weight and bias; ``None`` without a bias."""

    weight: str
    bias: str | None


@dataclass(frozen=True, eq=False)
class Clients:
    """F families of E phantoms by the last layer's inputs, in q coordinates. All is float64 on the CPU.

    Attributes:
        basis: (D, q), orthonormal: the last layer's inputs are described by their coordinates in it.
        unit: typical norm of an input; the bias's gradient times it is weighed like the weight's.
        inputs: (F, E, q) coordinates.
        logits: (F, E, K).
        rows: (K, q) the last layer's weight in the basis, the derivative of the logits by the coordinates.
        within: (q, q) covariance within a family.
    """

    basis: Tensor
    unit: float
    inputs: Tensor
    logits: Tensor
    rows: Tensor
    within: Tensor


def made_up(seen: Observation, head: Head, parameters: Tensors) -> Clients | None:
    """Return made-up clients; ``None`` unless the model's logits are the last layer's outputs.

    Args:
        seen: observation.
        head: last layer.
        parameters: the model's parameters.
    """
    mixes = bool(batch_norms(seen.model))
    count, each = _FAMILIES, _EACH
    if mixes:
        count, each = _FAMILIES_MIXED, max(2, min(seen.views[0].plans[0].batch_size, _MOST_MIXED))
    images = _images(seen, count, each)
    inputs, logits = _run(seen, head, parameters, images.to(parameters[head.weight]), mixes)
    rows = parameters[head.weight].flatten(1).double().cpu()
    if not _is_head(inputs, logits, rows, 0 if head.bias is None else parameters[head.bias].double().cpu()):
        return None
    families = inputs.mean(1)
    apart = (inputs - families[:, None]).flatten(0, 1)
    basis = _basis(families.mean(0), rows, apart, families - families.mean(0))
    near = apart @ basis
    return Clients(
        basis=basis,
        unit=max(float(inputs.norm(dim=2).mean()), _TINY),
        inputs=inputs @ basis,
        logits=logits,
        rows=rows @ basis,
        within=near.T @ near / (len(near) - count),
    )


def _images(seen: Observation, families: int, each: int) -> Tensor:
    """Return phantoms (families, each, C, H, W), or draws from the attacker's own images if there are enough.

    They are the same for each attack on such images.
    """
    own, (channels, *sides) = seen.auxiliary, seen.image_shape
    if own is not None and len(own) >= _ENOUGH:
        return own.cpu()[torch.randint(len(own), (families, each), generator=torch.Generator().manual_seed(0))]
    shape = (1 if seen.gray else channels, *sides)
    drawn = _drawn if families * each * prod(shape) <= _KEPT else _drawn.__wrapped__
    return drawn(shape, families, each).repeat_interleave(channels // shape[0], 2)  # a copy, which a model may change


@lru_cache(maxsize=4)
def _drawn(shape: tuple[int, ...], families: int, each: int) -> Tensor:
    return phantoms(shape, families, each, torch.Generator().manual_seed(0))


def contrasts(classes: int) -> Tensor:
    """Return K - 1 orthonormal rows (K - 1, K) that sum to zero each, as the loss's gradient by the logits does."""
    whole = torch.cat([torch.ones(classes, 1), torch.eye(classes)[:, : classes - 1]], 1).double()
    return torch.linalg.qr(whole)[0][:, 1:].T


def _run(seen: Observation, head: Head, parameters: Tensors, images: Tensor, mixes: bool) -> tuple[Tensor, Tensor]:
    """Return the last layer's inputs (F, E, D) and the logits (F, E, K), each family a batch where batches mix."""
    caught: list[Tensor] = []

    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        caught.append(inputs[0].flatten(1))

    state = {**parameters, **state_of(seen.model, seen.views[0].weights.buffers)}
    handle = seen.model.get_submodule(head.weight.rpartition(".")[0]).register_forward_pre_hook(hook)
    try:
        with torch.no_grad():
            parts = images if mixes else [images.flatten(0, 1)]
            logits = [functional_call(seen.model, state, (part,)) for part in parts]
    finally:
        handle.remove()
    inputs, made = (torch.cat(part).unflatten(0, images.shape[:2]).double().cpu() for part in (caught, logits))
    return inputs, made


def _is_head(inputs: Tensor, logits: Tensor, rows: Tensor, bias: Tensor | int) -> bool:
    """Return True if the logits (F, E, K) are the rows' products with the inputs (F, E, D), plus the bias."""
    if inputs.shape[-1] != rows.shape[1] or logits.shape[-1] != len(rows) or not bool(inputs.isfinite().all()):
        return False
    return torch.allclose(inputs @ rows.T + bias, logits, rtol=1e-3, atol=1e-3 * float(logits.abs().max()))


def _basis(mean: Tensor, rows: Tensor, apart: Tensor, families: Tensor) -> Tensor:
    """Return an orthonormal basis (D, q): mean input, the directions that change predictions, principal components."""
    spread = torch.cat([apart / len(apart) ** 0.5, families / len(families) ** 0.5])
    parts = torch.linalg.svd(spread, full_matrices=False)[2][:_COMPONENTS]
    columns = torch.cat([mean[None], contrasts(len(rows)) @ rows, parts])
    columns = columns / columns.norm(dim=1, keepdim=True).clamp(min=_TINY)
    left, sizes, _ = torch.linalg.svd(columns.T, full_matrices=False)
    return left[:, sizes > 1e-6 * sizes[0]]
