"""A check that a model's update can be differentiated by the images, as attacks do; it names the layer that fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.types import Batch, Tensors, Weights
from medpfl.core.user_code.strangers import explained
from medpfl.federated.kernels import differentiable_kernels
from medpfl.federated.local import local_update
from medpfl.federated.ready import prepare
from medpfl.runs.environment import generator_of

__all__ = ["ONCE", "check_derivatives", "check_update"]

ONCE = "the update of this model cannot be computed"

Part = Callable[[Tensor], Tensors]
"""The update as a function of the images, or a layer's share of the update as a function of the layer's input."""

_STEPS = (1e-7, 1e-2)  # in float64: the first so small that hardly any ReLU or maximum changes its branch; the second
# for models that round to float32 inside, where the first shows rounding alone
_TRIES = 3


def check_update(network: nn.Module, images: Tensor, outputs: int, plan: Plan) -> None:
    """Raise `InputError`, naming the layer, if a model's update cannot be computed.

    Args:
        network, images, outputs, plan: as in `check_derivatives`, which checks more.
    """
    ready = prepare(network, plan)
    with differentiable_kernels(), torch.no_grad():
        _check_stages({ONCE: _update}, ready, images, outputs)


def check_derivatives(
    network: nn.Module, images: Tensor, outputs: int, plan: Plan, together: bool = False
) -> str | None:
    """Check that a model's update can be differentiated by its images.

    Args:
        network: the model.
        images: images (N, C, H, W) that it takes.
        outputs: number of logits K.
        plan: the client's plan; its mode matters.
        together: also check several victims at once with ``vmap``. Attacks fall back on one at a time.

    Returns:
        The layer whose second derivative does not match what it computes (it loses a path, for example through
        ``detach``, or ``once_differentiable`` under `torch.func`); ``None`` if there is none.

    Raises:
        InputError: the update cannot be differentiated; the message names the layer.
    """
    ready = prepare(network, plan)
    twice = "the update of this model cannot be differentiated by the images, as attacks do"
    stages: dict[str, Callable[[Part, Tensor], Any]] = {ONCE: _update, twice: _slope}
    if together:
        stages[f"{twice}, for several victims together (torch.func.vmap)"] = _slopes
    with differentiable_kernels(), torch.no_grad():  # as in attacks
        _check_stages(stages, ready, images, outputs)
        # Prepared again: a network may store earlier activations.
        return _wrong(prepare(network, plan).double(), images.double(), outputs)


def _check_stages(stages: dict[str, Callable[[Part, Tensor], Any]], ready: nn.Module, x: Tensor, outputs: int) -> None:
    for what, stage in stages.items():
        if said := _error(stage, _whole(ready, x, outputs), x):
            where = _culprit(ready, x, lambda part, x, stage=stage: _error(stage, part, x) != "")
            raise InputError(f"{what}, because of {where}: {said}")


def _wrong(exact: nn.Module, doubles: Tensor, outputs: int) -> str | None:
    part = _whole(exact, doubles, outputs)
    if not _is_wrong(part, doubles):
        return None
    return _culprit(exact, doubles, _is_wrong)


def _is_wrong(part: Part, x: Tensor) -> bool:
    """Return True if a second derivative is wrong; False for models that cannot run in float64."""
    with suppress(InputError), explained("it cannot be computed in float64"):
        return not _is_right(part, x)
    return False


def _error(stage: Callable[[Part, Tensor], Any], part: Part, x: Tensor) -> str:
    """Return a stage's error message with advice, or ``""`` if the stage works."""
    try:
        with explained("error"):
            stage(part, x)
    except InputError as error:
        return str(error).removeprefix("error: ")
    return ""


def _update(part: Part, x: Tensor) -> Tensors:
    return part(x)


def _slope(part: Part, x: Tensor) -> Tensor:
    return grad(_along(part, part(x)))(x)


def _slopes(part: Part, x: Tensor) -> Tensor:
    return vmap(grad(_along(part, part(x))), randomness="different")(torch.stack([x, x]))


def _along(part: Part, like: Tensors, number: int = 0) -> Callable[[Tensor], Tensor]:
    """Return a function for the update's component along a random direction."""
    generator = generator_of(number, "derivatives")
    along = {k: torch.randn(t.shape, generator=generator).to(t) for k, t in like.items()}
    size = _size(along)

    def value(x: Tensor) -> Tensor:
        update = part(x)
        return torch.stack([(update[k] * t).sum() for k, t in along.items()]).sum() / size

    return value


def _size(tensors: Tensors) -> Tensor:
    return torch.stack([t.square().sum() for t in tensors.values()]).sum().sqrt()


def _is_right(part: Part, x: Tensor) -> bool:
    """Return True if the derivative matches finite differences for at least one of a few directions and step sizes."""
    update = part(x)
    for number in range(_TRIES):
        value = _along(part, update, number)
        step = torch.randn(x.shape, generator=generator_of(number, "steps")).to(x)
        step = step / step.norm()
        stated = (grad(value)(x) * step).sum()
        for length in _STEPS:
            shown = (value(x + length * step) - value(x - length * step)) / (2 * length)
            gap = (shown - stated).abs()
            if not gap > 1e-2 * torch.maximum(shown.abs(), stated.abs()) + 1e-6 * _size(update):
                return True
    return False


def _whole(ready: nn.Module, images: Tensor, outputs: int) -> Part:
    """Return the update as a function of the images, with uniform labels so that it never vanishes for a sure model."""
    plan, weights = Plan(batch_size=len(images)), Weights.of(ready)

    @cache
    def labels() -> Tensor:
        with torch.no_grad():
            return images.new_full((len(images), outputs, *ready(images).shape[2:]), 1 / outputs)

    return lambda x: local_update(ready, Batch(x, labels()), plan, weights).tensors


def _layer(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], place: int) -> Part:
    """Return a layer's outputs, and the derivatives of their squares by its parameters and its input at `place`."""
    weights = Weights.of(module)

    def total(parameters: Tensors, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        state = {**parameters, **weights.buffers}
        out = functional_call(module, state, (*args[:place], x, *args[place + 1 :]), kwargs)
        outputs = {f"/output/{i}": t for i, t in enumerate(_floats(out))}
        return torch.stack([t.square().sum() for t in outputs.values()]).sum(), outputs

    def part(x: Tensor) -> Tensors:
        (by_parameter, by_input), outputs = grad(total, argnums=(0, 1), has_aux=True)(dict(weights.parameters), x)
        return {**by_parameter, **outputs, "/input": by_input}

    return part


def _floats(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor) and value.is_floating_point():
        yield value
    elif isinstance(value, tuple | list | dict):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _floats(one)


def _culprit(ready: nn.Module, images: Tensor, fails: Callable[[Part, Tensor], bool]) -> str:
    """Return the smallest module that fails on its own input."""
    for name, (args, kwargs) in _inputs(ready, images).items():
        module = ready.get_submodule(name)
        place = next((i for i, a in enumerate(args) if isinstance(a, Tensor) and a.is_floating_point()), None)
        if name and place is not None and fails(_layer(module, args, kwargs, place), args[place]):
            return f"layer '{name}' ({type(module).__name__})"
    return f"the forward method of {type(ready).__name__}"


def _inputs(ready: nn.Module, images: Tensor) -> dict[str, tuple[tuple[Any, ...], dict[str, Any]]]:
    """Return the inputs to each module that is used, smaller modules first."""
    seen: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
    handles = []
    for name, module in ready.named_modules():

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], name: str = name) -> None:
            # A copy, because this layer or the next may write into it.
            seen.setdefault(name, (tuple(a.clone() if isinstance(a, Tensor) else a for a in args), kwargs))

        handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        with explained("the model cannot be run once more"):
            ready(images)
    finally:
        for handle in handles:
            handle.remove()
    return dict(sorted(seen.items(), key=lambda item: len(list(ready.get_submodule(item[0]).modules()))))
