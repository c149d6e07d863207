"""How the work is laid out on a machine: seeds, stacks, devices, versions."""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from medpfl.auditing.writes import check_writes
from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.strangers import explained
from medpfl.federated.ready import prepare

__all__ = [
    "check_network",
    "check_trainable",
    "checked_module",
    "device_of",
    "explained",
    "generator_of",
    "label_shape_of",
    "naming",
    "seed_of",
    "stack_size",
    "versions",
]

_LARGEST_STACK = 64


def seed_of(seed: int, *words: Any) -> int:
    """A seed of its own for every named draw of an experiment."""
    text = json.dumps([seed, *words], default=str)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 2


def generator_of(seed: int, *words: Any) -> torch.Generator:
    """A CPU generator under `seed_of`."""
    return torch.Generator().manual_seed(seed_of(seed, *words))


def device_of(name: str) -> torch.device:
    """The device, if this machine has it."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # which the device that holds no numbers refuses
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device '{name}' cannot be used here: {str(error).partition(chr(10))[0]}") from None
    return device


def versions() -> dict[str, str]:
    """Of what decides the numbers."""
    found = {"python": platform.python_version()}
    for package in ("medpfl", "torch", "torchvision", "numpy", "torchmetrics"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found


@contextlib.contextmanager
def naming(part: Any) -> Iterator[None]:
    """Says which part, an object or its spec, an `InputError` is about."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{part if isinstance(part, str) else repr(part)}: {error}") from None


def checked_module(network: Any) -> nn.Module:
    """Return what a stranger's part made of a network; raise `InputError` unless it is one."""
    if not isinstance(network, nn.Module):
        raise InputError(f"it returned a {type(network).__name__} in place of the network, not a torch.nn.Module")
    return network


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
            what it must not (`medpfl.auditing.writes`), or draws random numbers of its own.
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


def stack_size(network: nn.Module, images: Tensor, memory: float) -> int:
    """Victims that are attacked together: as many as fit into `memory` GiB by a fixed estimate, at most 64.

    The estimate counts, for each victim, its update three times and the activations of its images ten times
    (forward, backward and their derivatives). It depends on the experiment alone, never on free memory.
    """
    if not memory > 0:
        raise InputError(f"memory is {memory}: it must be above 0 (GiB)")
    parameters = sum(p.numel() for p in network.parameters())
    activations = 0

    def count(_: nn.Module, __: Any, output: Any) -> None:
        nonlocal activations
        activations += output.numel() if isinstance(output, Tensor) else 0

    handles = [m.register_forward_hook(count) for m in network.modules() if not list(m.children())]
    try:
        with torch.no_grad(), explained("the model cannot be run once more"):
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    history = 2 * 100 * images.numel()
    bytes_each = 4 * (3 * parameters + 10 * activations + history)
    return max(1, int(min(_LARGEST_STACK, memory * 2**30 / bytes_each)))
