"""Seeds, devices, stack sizes and versions of a run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.user_code.strangers import explained
from medpfl.core.versions import version_of

__all__ = [
    "checked_module",
    "device_of",
    "explained",
    "free_memory",
    "generator_of",
    "naming",
    "seed_of",
    "stack_size",
    "versions",
    "victim_size",
]

_LARGEST_STACK = 64


def seed_of(seed: int, *words: Any) -> int:
    """Return a separate seed for each named random draw."""
    text = json.dumps([seed, *words], default=str)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 2


def generator_of(seed: int, *words: Any) -> torch.Generator:
    """Return a CPU generator seeded with `seed_of`."""
    return torch.Generator().manual_seed(seed_of(seed, *words))


def device_of(name: str) -> torch.device:
    """Return the named device.

    Raises:
        InputError: if this machine cannot use it.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # the meta device fails here
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device '{name}' cannot be used here: {str(error).partition(chr(10))[0]}") from None
    return device


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages behind the results."""
    packages = ("medpfl", "torch", "torchvision", "numpy")
    return {"python": platform.python_version(), **{package: version_of(package) for package in packages}}


@contextlib.contextmanager
def naming(part: Any) -> Iterator[None]:
    """Prefix an `InputError` with the part in question, an object or its spec."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{part if isinstance(part, str) else repr(part)}: {error}") from None


def checked_module(network: Any) -> nn.Module:
    """Return the network that user code returned; raise `InputError` if it is no module."""
    if not isinstance(network, nn.Module):
        raise InputError(f"it returned a {type(network).__name__} in place of the network, not a torch.nn.Module")
    return network


def stack_size(network: nn.Module, images: Tensor, plan: Plan, memory: float, clients: int = 1) -> int:
    """Return how many victims to attack together: as many as fit into `memory` GiB by a fixed estimate, at most 64.

    The estimate depends on the experiment alone, never on free memory. A stack that runs out of memory all the same is
    split later, and the run notes how (`medpfl.auditing.work`).

    Args:
        network, images, plan, clients: as in `victim_size`.
        memory: GiB.

    Raises:
        InputError: if `memory` is not above 0, or the model cannot be run.
    """
    if not memory > 0:
        raise InputError(f"memory is {memory}: it must be above 0 (GiB)")
    return max(1, int(min(_LARGEST_STACK, memory / victim_size(network, images, plan, clients))))


def victim_size(network: nn.Module, images: Tensor, plan: Plan, clients: int = 1) -> float:
    """Return the GiB that one victim takes in a stack, by a fixed estimate.

    It counts the parameters three times, and six times for each further local step, for every client, because an attack
    differentiates through all steps; the activations of all images ten times in each epoch (forward, backward and their
    derivatives); and the optimizer's history of the images.

    Args:
        network: the model, in the client's mode.
        images: one batch of images (n, C, H, W).
        plan: the client's plan.
        clients: number of clients whose updates are summed into one.

    Raises:
        InputError: if the model cannot be run.
    """
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
    held, passes = plan.images * clients, plan.steps if plan.sampling == "poisson" else plan.epochs
    states = clients * (3 + 6 * (plan.steps - 1))
    history = 2 * 100 * held * images[0].numel()
    return 4 * (states * parameters + 10 * activations * held * passes / len(images) + history) / 2**30


def free_memory(device: torch.device) -> float | None:
    """Return the GiB that a device has free; ``None`` if the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / 2**30
    try:
        known = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(known["MemAvailable"].split()[0]) / 2**20
    except (OSError, KeyError, ValueError):  # not on Linux
        return None
    with contextlib.suppress(OSError, ValueError):  # "max" where a container has no limit
        free = min(free, int(Path("/sys/fs/cgroup/memory.max").read_text()) / 2**30)
    return free
