"""Weights files: safetensors, or a state dict that torch reads without running code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from medpfl.core.errors import InputError, listed

__all__ = ["check_finite", "fill", "load_weights"]

_COUNT = "num_batches_tracked"


def load_weights(network: nn.Module, path: Path, head: str | None = None) -> None:
    """Loads a weights file into a network, in place; see `fill`. One that was saved from inside a wrapper fits too.

    Raises:
        InputError: no such file, not a weights file, or what `fill` raises.
    """
    fill(network, _unwrapped(_read(path), network), f"the weights in '{path}'", head)


def fill(network: nn.Module, state: Mapping[str, Tensor], what: str, head: str | None = None) -> None:
    """Puts tensors into a network by name, in place.

    Args:
        network: the network.
        state: its parameters and buffers; counts of batches, which old files lack, may be missing.
        what: the tensors, in an error message.
        head: a layer that stays as it is if its tensors have other shapes than the network's.

    Raises:
        InputError: names or shapes that do not fit, values that are not finite.
    """
    own = network.state_dict()
    counts = {k: t for k, t in own.items() if k.endswith(_COUNT) and k.removesuffix(_COUNT) + "running_mean" in state}
    state = counts | dict(state)
    if head is not None:
        kept = {k for k in own if k.startswith(f"{head}.") and k in state and own[k].shape != state[k].shape}
        state = {k: own[k] if k in kept else t for k, t in state.items()}
    if problems := _misfits(network, state):
        raise InputError(f"{what} do not fit the model:{listed(problems)}")
    network.load_state_dict(state)
    check_finite(network, what)


def check_finite(network: nn.Module, what: str = "the model") -> None:
    """Raises `InputError` if a parameter or buffer holds a NaN or an infinity."""
    for name, value in network.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise InputError(f"{what}: '{name}' holds values that are not finite")


def _read(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise InputError(f"there is no weights file '{path}'")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch fails on a damaged file in every way there is
        code = "Weights only load failed" in str(error)
        reason = (
            "it holds more than tensors, and loading that could run code" if code else str(error).partition("\n")[0]
        )
        raise InputError(
            f"'{path}' is not a weights file: it must be safetensors, or a state dict saved with "
            f"torch.save(model.state_dict(), path) and nothing else ({reason})"
        ) from None
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise InputError(f"'{path}' holds a {type(state).__name__}, not a state dict of tensors")
    return state


def _unwrapped(state: Mapping[str, Tensor], network: nn.Module) -> Mapping[str, Tensor]:
    """The state by the network's own names: ``DataParallel`` puts ``module.`` before each, ``compile`` its own."""
    for prefix in ("module.", "_orig_mod."):
        inside = all(name.startswith(prefix) for name in network.state_dict())
        if state and not inside and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _misfits(network: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    own = network.state_dict()
    problems = [f"{k}: in the model, not in the file" for k in own if k not in state]
    problems += [f"{k}: in the file, not in the model" for k in state if k not in own]
    for name in own.keys() & state.keys():
        if own[name].shape != state[name].shape:
            problems.append(f"{name}: {tuple(state[name].shape)} in the file, {tuple(own[name].shape)} in the model")
    return sorted(problems)
