"""Network building: lazy layers get their shapes, and a network that is too large is refused before it takes memory."""

from __future__ import annotations

import math
import warnings
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode

from medpfl.core.errors import InputError
from medpfl.core.experiments.limits import check_classes, check_image_shape, check_parameters
from medpfl.core.roles import Model
from medpfl.core.user_code.global_draws import seeded
from medpfl.core.user_code.strangers import explained
from medpfl.models.user import UserModel
from medpfl.models.wrapped import unwrapped

__all__ = ["built"]


def built(model: Model, image_shape: tuple[int, ...], classes: int, seed: int) -> nn.Module:
    """Return a model's network, see `Model.build`.

    Models from this package are built on torch's meta device first, which takes no memory, and counted. A user's code
    runs only once, and may not make a tensor larger than a whole model may be. Lazy layers get their shapes from one
    black image in eval mode; their weights are drawn under a seed that follows from `seed`.

    Raises:
        InputError: if images, classes or network exceed the limits in `medpfl.core.experiments.limits`, or as in
            `Model.build`.
    """
    check_image_shape(image_shape)
    check_classes(classes)
    own = getattr(model, "model", model)  # inside of a mapping of pixels
    if type(model).__module__.startswith("medpfl.models.") and not isinstance(own, UserModel):
        _count(model, image_shape, classes, seed)
        return model.build(image_shape, classes, seed)
    with _Counting():
        return _shaped(model.build(image_shape, classes, seed), image_shape, seed)


def _shaped(network: nn.Module, image_shape: tuple[int, ...], seed: int) -> nn.Module:
    """Return a network without lazy layers that have no shape; any other one is returned as it is."""
    if not _waiting(network):
        return network
    network = unwrapped(network)
    modes = {layer: layer.training for layer in network.modules()}
    image = torch.zeros(1, *image_shape, device=next(network.parameters()).device)
    what = f"the model's lazy layers get no shape from an image of shape {tuple(image.shape)}"
    with seeded(torch.Generator().manual_seed(seed)), torch.no_grad(), explained(what):  # other draws than `build`'s
        network.eval()(image)
    for layer, training in modes.items():
        layer.training = training
    if idle := _waiting(network):
        raise InputError(f"the model's forward pass does not use its lazy layers {', '.join(idle)}: remove them")
    return network


def _waiting(network: nn.Module) -> list[str]:
    """Return the names of layers that wait for a first image."""
    return [
        name
        for name, layer in network.named_modules()
        if any(is_lazy(one) for one in (*layer.parameters(False), *layer.buffers(False)))
    ]


def _count(model: Model, image_shape: tuple[int, ...], classes: int, seed: int) -> None:
    """Raise `InputError` if the network would have too many parameters and buffers, see `check_parameters`.

    It is built without memory and without pretrained weights. Other input and runtime errors are ignored here, since
    the real build reports them.
    """
    if is_dataclass(model) and any(field.name == "weights" for field in fields(model)):
        model = replace(model, weights=None)  # type: ignore[type-var]  (a dataclass)
    try:
        with torch.device("meta"), warnings.catch_warnings(action="ignore"):
            network = model.build(image_shape, classes, seed)
    except InputError:
        return
    except (RuntimeError, OverflowError) as error:
        if isinstance(error, OverflowError) or "overflow" in str(error):
            raise InputError("the model is too large: it has more elements than any memory can hold") from None
        return
    check_parameters(sum(t.numel() for t in (*network.parameters(), *network.buffers())))


class _Counting(TorchDispatchMode):
    """A dispatch mode that refuses any tensor larger than a whole model may be, before it takes memory."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if args and isinstance(args[0], list | tuple) and _makes(func):
            with suppress(TypeError):  # a list of something else
                check_parameters(math.prod(args[0]))
        return func(*args, **(kwargs or {}))


def _makes(func: Any) -> bool:
    """Return True if an operation makes a tensor with a size that it is given."""
    first = func._schema.arguments[:1]
    return bool(first) and first[0].name == "size"
