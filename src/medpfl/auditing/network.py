"""The global model as a run begins with it."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from medpfl.auditing.engine import check_trainable
from medpfl.core.copies import copied
from medpfl.core.errors import InputError, listed
from medpfl.core.roles import Model
from medpfl.core.strangers import explained
from medpfl.core.types import Weights
from medpfl.models.sized import built
from medpfl.models.weights import check_finite, check_plain, load_weights
from medpfl.models.wrapped import unwrapped

__all__ = ["network_of"]


def network_of(
    model: Model, image_shape: tuple[int, ...], classes: int, seed: int, weights: Path | Weights | None = None
) -> nn.Module:
    """A model's network, with its weights.

    Args:
        model: its recipe.
        image_shape: (C, H, W) or (C, D, H, W).
        classes: of the data.
        seed: of untrained weights.
        weights: a file, or a record's state, in place of them.

    Raises:
        InputError: it cannot be built, weights do not fit or are not finite, or nothing of it is trained.
    """
    with explained(f"the model {type(model).__name__} cannot be built"):
        network = unwrapped(built(model, image_shape, classes, seed))
        check_trainable(network)
        check_plain(network)
        copied(network)
        if isinstance(weights, Path):
            load_weights(network, weights)
        elif weights is not None:
            _set_weights(network, weights)
        check_finite(network)
        str(network)  # which tells one model from another in a run's identity
    return network


def _set_weights(network: nn.Module, weights: Weights) -> None:
    """Puts a record's weights into a network, or says which of them do not fit."""
    state, given = network.state_dict(), {**weights.buffers, **weights.parameters}
    own = dict(network.named_parameters()) | dict(network.named_buffers())
    problems = [f"{k}: in the model, not in the record" for k in state if k not in given]
    for name, value in given.items():
        if name not in own:
            problems.append(f"{name}: in the record, not in the model")
        elif own[name].requires_grad != (name in weights.parameters):
            problems.append(f"{name}: trained in {'the record' if name in weights.parameters else 'the model'} only")
        elif own[name].shape != value.shape:
            problems.append(f"{name}: {tuple(value.shape)} in the record, {tuple(own[name].shape)} in the model")
        elif own[name].dtype != value.dtype:
            problems.append(f"{name}: {value.dtype} in the record, {own[name].dtype} in the model")
    if problems:
        raise InputError(f"the record does not fit the model:{listed(sorted(problems))}")
    network.load_state_dict({k: given[k] for k in state})
