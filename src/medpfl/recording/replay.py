"""Repeat a client's training from its truth, with the optimizers of torch, to compare it with a record."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from medpfl.core.errors import InputError
from medpfl.core.records.steps import SPEED_ONLY, Step, Steps
from medpfl.core.types import Tensors, Weights
from medpfl.federated.losses import dice
from medpfl.recording.watching.losses import LOSSES

__all__ = ["Replayed", "buffer_gaps", "check_replayable", "counters", "gap", "loaded", "replay", "set_modes"]

_OPTIMIZERS = ("SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "RMSprop", "ASGD", "Rprop")


@dataclass(frozen=True, eq=False)
class Replayed:
    """The result of a replayed training: an update by parameter name, and the buffers after it."""

    tensors: Tensors
    buffers: Tensors


def check_replayable(steps: Steps) -> None:
    """Raise `InputError` if steps cannot be repeated: an unknown loss, a clipped gradient, momentum from before."""
    for step in {id(one): one for one in steps.steps}.values():
        if step.optimizer and step.optimizer not in _OPTIMIZERS:
            raise InputError(f"the optimizer {step.optimizer} cannot be repeated")
        if step.loss not in (*LOSSES, "dice"):
            raise InputError(f"the loss {step.loss or 'of this training, which was not seen,'} cannot be repeated")
        if step.passes > 1:
            raise InputError("accumulated gradients cannot be repeated: the record does not state each pass's images")
        if step.change:
            raise InputError(f"the gradient was {step.change} between backward pass and step, which cannot be repeated")
        if step.settings.get("carried") or "groups" in step.settings:
            why = "state from before the round" if step.settings.get("carried") else "groups with other settings"
            raise InputError(f"the optimizer had {why}, which the record does not hold")


def replay(
    model: nn.Module,
    weights: Weights,
    steps: Sequence[Step],
    batches: Iterable[tuple[Tensor, Tensor]],
    generators: Tensor | None = None,
) -> Replayed:
    """Train a network step by step, and return the update and the buffers.

    Args:
        model: a copy of the client's model for this use, with the record's names; its weights are overwritten.
        weights: the global model that the client started from, in the network's dtypes.
        steps: the steps, see `check_replayable`.
        batches: each step's images, as they enter the model, and labels.
        generators: state of torch's generator before each step; without them, dropout draws anew.
    """
    loaded(model, weights)
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    parameters = {name: own[name] for name in weights.parameters}
    for name, p in model.named_parameters():
        p.requires_grad_(name in parameters)
    optimizer = _optimizer(steps[0], list(parameters.values()))
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        for place, (step, (images, labels)) in enumerate(zip(steps, batches, strict=True)):
            if generators is not None:
                torch.set_rng_state(generators[place].clone())  # torch reads a view from the wrong place
            changed = not place or step is not steps[place - 1]
            if changed:
                set_modes(model, step)
            model.zero_grad()
            with _precision(step):
                _loss(step, model(images.clone().to(next(iter(parameters.values())))), labels).backward()
            if optimizer is not None:
                for group in optimizer.param_groups if changed else ():
                    group.update({k: v for k, v in _settings(step).items() if k in group})
                optimizer.step()
    if optimizer is None:
        tensors = {k: torch.zeros_like(p) if p.grad is None else p.grad.clone() for k, p in parameters.items()}
    else:
        tensors = {k: p.detach() - weights.parameters[k].to(p) for k, p in parameters.items()}
    return Replayed(tensors, {name: own[name].detach().clone() for name in weights.buffers})


def gap(sent: Tensors, other: Tensors) -> float:
    """Return the relative difference of two updates: the norm of ``sent - other`` divided by that of `other`."""
    over = sum(float((sent[k].double() - t.double()).square().sum()) for k, t in other.items())
    under = sum(float(t.double().square().sum()) for t in other.values())
    return (over / max(under, 1e-60)) ** 0.5


def buffer_gaps(sent: Tensors, replayed: Tensors) -> dict[str, float]:
    """Return the relative difference of each sent buffer from the replay's; counters compare as integers."""
    found = {}
    for name, own in replayed.items():
        if name not in sent:
            continue
        if not own.is_floating_point():
            found[name] = 0.0 if torch.equal(sent[name].to(own.dtype), own) else 1.0
            continue
        size = float(own.double().norm())
        found[name] = float((sent[name].double() - own.double()).norm()) / max(size, 1e-3 * own.numel() ** 0.5)
    return found


def counters(buffers: Tensors) -> dict[str, Tensor]:
    """Return batch norm's counters among buffers."""
    return {name: t for name, t in buffers.items() if name.rpartition(".")[2] == "num_batches_tracked"}


def _optimizer(step: Step, parameters: list[Tensor]) -> torch.optim.Optimizer | None:
    if not step.optimizer:
        return None
    kind = getattr(torch.optim, step.optimizer)
    known = set(inspect.signature(kind).parameters) - {"params", *SPEED_ONLY}
    return kind(parameters, **{k: v for k, v in _settings(step).items() if k in known})


def _settings(step: Step) -> Mapping[str, Any]:
    return {k: v for k, v in step.settings.items() if k not in SPEED_ONLY}


def loaded(model: nn.Module, weights: Weights) -> nn.Module:
    """Return the same network, whose weights are overwritten."""
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    with torch.no_grad():
        for name, value in {**weights.buffers, **weights.parameters}.items():
            own[name].copy_(value)
    return model


def set_modes(model: nn.Module, step: Step) -> None:
    """Set the network and its layers to a step's modes (train or eval)."""
    model.train(step.training)
    layers = dict(model.named_modules())
    for name, mode in step.modes.items():
        if isinstance(layers.get(name), _BatchNorm | _DropoutNd):
            layers[name].train(mode)


@contextmanager
def _precision(step: Step) -> Iterator[None]:
    kinds = {"float16": torch.float16, "bfloat16": torch.bfloat16}
    with torch.autocast("cpu", kinds[step.precision]) if step.precision in kinds else nullcontext():
        yield


def _loss(step: Step, outputs: Tensor, labels: Tensor) -> Tensor:
    if step.loss == "dice":
        return dice(outputs, labels)
    settings: dict[str, Any] = dict(step.loss_settings)
    for name, value in settings.items():
        if isinstance(value, tuple):
            settings[name] = torch.tensor(value, dtype=outputs.dtype)
    compute: Callable[..., Tensor] = getattr(nn.functional, step.loss)
    return compute(outputs, labels, **settings)
