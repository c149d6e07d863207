"""The global model as a run begins with it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from medpfl.core.errors import InputError, listed
from medpfl.core.plan import Plan
from medpfl.core.roles import Model
from medpfl.core.types import Weights
from medpfl.core.user_code.copies import copied
from medpfl.core.user_code.strangers import explained
from medpfl.federated.ready import prepare
from medpfl.inputs.writes import check_writes
from medpfl.models.sized import built
from medpfl.models.weights import check_finite, check_plain, load_weights
from medpfl.models.wrapped import unwrapped

__all__ = ["check_network", "check_trainable", "label_shape_of", "network_of"]


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


def check_trainable(network: nn.Module) -> None:
    """Raises `InputError` if a model would send no update."""
    parameters = list(network.parameters())
    if any(isinstance(p, UninitializedParameter) for p in parameters):
        raise InputError("the model has lazy layers without a shape yet: run it once on an image before it is audited")
    if not any(p.requires_grad for p in parameters):
        raise InputError("the model has no parameter that is trained (requires_grad), so no update would be sent")


def check_network(network: nn.Module, images: Tensor, classes: int, plan: Plan, masks: bool = False) -> int:
    """Runs a model once on a batch; the number of its outputs K.

    Args:
        network: the model.
        images: (N, C, H, W).
        classes: of the data.
        plan: of the client.
        masks: whether the data has masks, so that logits may be (N, K, H, W).

    Raises:
        InputError: it does not take the images, does not return finite logits (N, K) with K >= `classes`, writes into
            what it must not (`medpfl.inputs.writes`), or draws random numbers of its own.
    """
    shape = tuple(images.shape)
    with explained(f"the model does not take images of shape {shape}"), torch.no_grad():
        network.train(plan.mode == "train")
        logits = network(images.clone())  # which the model may write into
    if isinstance(logits, Tensor) and len(logits) == len(images) and logits.shape[2:] == images.shape[2:]:
        if not masks:
            raise InputError(
                "the model gives a class for every pixel, and the images have no masks: give images with masks, "
                "such as a folder that holds 'images' and 'masks' (see Segmented)"
            )
    elif not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        several = "; name the output that counts, make_model()['logits']" if isinstance(logits, dict) else ""
        raise InputError(
            f"the model must return logits of shape ({len(images)}, classes), it returned {found}{several}"
        )
    outputs = logits.shape[1]
    if outputs < max(classes, 2):
        raise InputError(
            f"the model has {outputs} outputs for {classes} classes: it needs at least {max(classes, 2)} "
            "(with one output the loss, and so every update, is zero)"
        )
    check_writes(network, images, plan)
    _check_repeatable(network, images, plan)
    if not logits.isfinite().all():
        raise InputError("the model's outputs are not finite on these images")
    return outputs


def label_shape_of(network: nn.Module, images: Tensor, plan: Plan) -> tuple[int, ...]:
    """Of what the model tells of an image: () a class, (H, W) or (D, H, W) a class for every pixel."""
    with explained("the model cannot be run once more"), torch.no_grad():
        return tuple(network.train(plan.mode == "train")(images).shape[2:])


def _check_repeatable(network: nn.Module, images: Tensor, plan: Plan) -> None:
    """Raises `InputError` if a model draws random numbers that no generator of ours gives it."""
    ready = prepare(network, plan)
    with torch.random.fork_rng(devices=[]), torch.no_grad(), explained("the model cannot be run once more"):
        before = torch.get_rng_state()
        ready(images)
        if not torch.equal(torch.get_rng_state(), before):
            raise InputError(
                f"the model draws random numbers of its own in {plan.mode} mode, so its update cannot be repeated: "
                "make its dropout a torch.nn.Dropout layer (that inside attention is none), or take --mode eval"
            )
