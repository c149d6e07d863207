"""Construction and checks of a run's initial global model."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medpfl.core.errors import InputError, listed
from medpfl.core.plan import Plan
from medpfl.core.records.origin import Pixels
from medpfl.core.roles import Model
from medpfl.core.types import Weights
from medpfl.core.user_code.copies import copied
from medpfl.core.user_code.strangers import explained
from medpfl.federated.ready import prepare
from medpfl.inputs.writes import check_writes
from medpfl.models.entering import mapped
from medpfl.models.sized import built
from medpfl.models.weights import check_finite, check_plain, load_weights
from medpfl.models.wrapped import unwrapped

__all__ = ["check_network", "check_taken", "check_trainable", "label_shape_of", "mapping_pixels", "network_of"]


def network_of(
    model: Model, image_shape: tuple[int, ...], classes: int, seed: int, weights: Path | Weights | None = None
) -> nn.Module:
    """Build a model's network and load its weights.

    Args:
        model: model to build.
        image_shape: (C, H, W) or (C, D, H, W).
        classes: number of classes in the data.
        seed: seed for untrained weights.
        weights: weights file or a record's weights, instead of untrained ones.

    Raises:
        InputError: the network cannot be built, the weights do not fit or are not finite, or no parameter is trained.
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
        str(network)  # must work, because it is part of a run's identity
    return network


def mapping_pixels(network: nn.Module, told: Any) -> nn.Module:
    """Return the same network, which from now on maps images from [0, 1] as a JSON object of `Pixels` states.

    Raises:
        InputError: the object states no mapping.
    """
    return mapped(network, Pixels.from_dict(told))


def _set_weights(network: nn.Module, weights: Weights) -> None:
    """Load a record's weights into a network.

    Raises:
        InputError: some weights do not fit; the message lists them.
    """
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
    """Check that a model's updates are not empty.

    Raises:
        InputError: no parameter is trained.
    """
    if not any(p.requires_grad for p in network.parameters()):
        raise InputError("the model has no trainable parameter (requires_grad), so clients would send no update")


def check_network(network: nn.Module, images: Tensor, classes: int, plan: Plan, masks: bool = False) -> int:
    """Run a model once on a batch, check it, and return its number of outputs K.

    Args:
        network: the model.
        images: (N, C, H, W).
        classes: number of classes in the data.
        plan: the client's plan.
        masks: True if the data has masks, so that logits may be (N, K, H, W).

    Raises:
        InputError: the model does not accept the images, does not return finite logits (N, K) with K >= `classes`,
            modifies what it must not modify (`medpfl.inputs.writes`), or draws random numbers of its own.
    """
    logits = check_taken(network, images, plan.mode == "train")
    if isinstance(logits, Tensor) and len(logits) == len(images) and logits.shape[2:] == images.shape[2:]:
        if not masks:
            raise InputError(
                "the model segments (one class per pixel), but the images have no masks: give images with masks, "
                "such as a folder with 'images' and 'masks' (see 'medpfl list Segmented')"
            )
    elif not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        several = "; name the output to use, make_model()['logits']" if isinstance(logits, dict) else ""
        raise InputError(
            f"the model must return logits of shape ({len(images)}, classes), but it returned {found}{several}"
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


def check_taken(network: nn.Module, images: Tensor, training: bool) -> Any:
    """Return what a model makes of images.

    Args:
        network: the model; its mode is set, and its buffers may change.
        images: (N, C, H, W).
        training: True runs it in train mode.

    Raises:
        InputError: the model does not take them; the message names the layer that failed, and an option under which
            the model takes images, if there is one.
    """
    try:
        with explained(f"the model does not take images of shape {tuple(images.shape)}"), torch.no_grad():
            network.train(training)
            return network(images.clone())  # which the model may write into
    except InputError as error:
        raise InputError(f"{error}{_failing(network, images)}{_remedy(network, images)}") from error


def _failing(network: nn.Module, images: Tensor) -> str:
    """Return the innermost layer that does not take what it gets, as a part of a message; ``""`` if none is known."""
    inside: list[str] = []

    def begin(name: str, layer: nn.Module) -> None:
        inside.append(f"; it fails in layer '{name}' ({type(layer).__name__})")

    handles = []
    with suppress(InputError), explained("it fails"), torch.no_grad():
        for name, layer in network.named_modules():
            if name:
                handles.append(layer.register_forward_pre_hook(lambda own, _, name=name: begin(name, own)))
                handles.append(layer.register_forward_hook(lambda *_: inside.__delitem__(-1)))
        network(images.clone())
    for handle in handles:
        handle.remove()
    return inside[-1] if inside else ""


_SIDES = (28, 32, 64, 96, 128, 224, 256)
"""Usual side lengths of images."""


def _remedy(network: nn.Module, images: Tensor) -> str:
    """Return the option under which a model takes images, as the end of a message; ``""`` if none was found."""
    if images.ndim != 4:
        return ""
    channels, side = images.shape[1], images.shape[-1]
    sides = [side, *sorted(set(_SIDES) - {side}, key=lambda other: abs(other - side))]
    for other in (channels, 1 if channels == 3 else 3):
        for length in sides:
            with suppress(InputError), explained("it fails too"), torch.no_grad():
                network(images.new_zeros(len(images), other, length, length))
                options = [f"--channels {other}"] * (other != channels) + [f"--size {length}"] * (length != side)
                return f". It takes images with {' '.join(options)}" if options else ""
    return ""


def label_shape_of(network: nn.Module, images: Tensor, plan: Plan) -> tuple[int, ...]:
    """Return the shape of the model's label for one image: () for a class, (H, W) or (D, H, W) for a mask."""
    with explained("the model cannot be run once more"), torch.no_grad():
        return tuple(network.train(plan.mode == "train")(images).shape[2:])


def _check_repeatable(network: nn.Module, images: Tensor, plan: Plan) -> None:
    """Check that all of a model's random draws come from MedPFL's generators.

    Raises:
        InputError: the model draws random numbers of its own.
    """
    ready = prepare(network, plan)
    with torch.random.fork_rng(devices=[]), torch.no_grad(), explained("the model cannot be run once more"):
        before = torch.get_rng_state()
        ready(images)
        if not torch.equal(torch.get_rng_state(), before):
            raise InputError(
                f"the model draws random numbers of its own in {plan.mode} mode, so its update cannot be repeated: "
                "use torch.nn.Dropout layers for dropout (attention's built-in dropout is not one), or use --mode eval"
            )
