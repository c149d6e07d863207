"""Weights files: safetensors, or a state dict that torch loads without running code."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from medpfl.core.errors import InputError, listed
from medpfl.core.tensors import oddity, shared_prefix

__all__ = ["check_finite", "check_plain", "fill", "load_weights", "read_state"]

_COUNT = "num_batches_tracked"
_STATES = ("state_dict", "model_state_dict", "model", "net", "network", "params", "module")
"""Keys under which training checkpoints hold the model, the likeliest first."""


def load_weights(network: nn.Module, path: Path, head: str | None = None) -> None:
    """Load a weights file into a network, in place; see `fill`.

    The file may also be a training checkpoint, which holds the state under a name such as ``model_state_dict``, or a
    state saved from inside a wrapper, which puts a prefix before all names.

    Raises:
        InputError: if there is no such file, if it is not a weights file, or as in `fill`.
    """
    fill(network, _unwrapped(read_state(path), network), f"the weights in '{path}'", head)


def fill(network: nn.Module, state: Mapping[str, Tensor], what: str, head: str | None = None) -> None:
    """Load tensors into a network by name, in place.

    Args:
        network: the network.
        state: its parameters and buffers; batch counts, which old files lack, may be missing.
        what: description of the tensors for error messages.
        head: name of a layer that stays unchanged if its tensors have other shapes in `state`.

    Raises:
        InputError: if names or shapes do not fit, or values are not finite.
    """
    own = network.state_dict()
    counts = {k: t for k, t in own.items() if k.endswith(_COUNT) and k.removesuffix(_COUNT) + "running_mean" in state}
    state = counts | dict(state)
    if head is not None:
        kept = {k for k in own if k.startswith(f"{head}.") and k in state and own[k].shape != state[k].shape}
        state = {k: own[k] if k in kept else t for k, t in state.items()}
    if problems := _misfits(network, state):
        raise InputError(f"{what} do not fit the model:{listed(problems)}{_remedy(network, state)}")
    network.load_state_dict(state)
    check_finite(network, what)


def check_finite(network: nn.Module, what: str = "the model") -> None:
    """Raise `InputError` if a parameter or buffer holds a NaN or an infinity."""
    for name, value in _named(network):
        if value.is_floating_point() and not value.isfinite().all():
            raise InputError(f"{what}: '{name}' holds values that are not finite")


def check_plain(network: nn.Module) -> None:
    """Raise `InputError` if a parameter or buffer is not a plain real tensor, see `medpfl.core.tensors`."""
    for name, value in _named(network):
        if why := oddity(value):
            raise InputError(f"the model: '{name}' {why}")


def _named(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from network.named_parameters()
    yield from network.named_buffers()


def read_state(path: Path) -> Mapping[str, Tensor]:
    """Return the state dict in a file: safetensors, ``torch.save``, or a checkpoint that holds one. No code runs.

    Raises:
        InputError: there is no such file, or it holds no state dict of tensors.
    """
    if not path.is_file():
        raise InputError(f"there is no weights file '{path}'")
    try:
        plain = path.suffix == ".safetensors"
        with warnings.catch_warnings(action="ignore"):  # about odd tensors, which are refused below
            held = load_file(path) if plain else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch fails on a damaged file in every way there is
        raise InputError(
            f"'{path}' is not a weights file: it must be safetensors, or a state dict saved with "
            f"torch.save(model.state_dict(), path) and nothing else ({_unread(path, error)})"
        ) from None
    return _checked(held if plain else _state_in(held, path), path)


def _unread(path: Path, error: Exception) -> str:
    """Return why a file could not be read, in words: torch also fails with a bare number, or with nothing."""
    if not path.stat().st_size:
        return "the file is empty"
    said = str(error)
    if "Weights only load failed" in said:
        return "it holds more than tensors, and loading that could run code"
    first = said.partition("\n")[0]
    return first if " " in first else "it is of another kind, or damaged"


def _state_in(held: Any, path: Path) -> Mapping[Any, Any]:
    """Return a file's content if it is a state dict, or else the one state dict in it."""
    if isinstance(held, Mapping) and held and not _is_state(held):
        inside = {key: value for key, value in held.items() if isinstance(value, Mapping) and _is_state(value)}
        likely = [key for key in _STATES if key in inside] or list(inside)
        if len(likely) > 1 and likely[0] not in _STATES:
            names = ", ".join(map(repr, likely))
            raise InputError(
                f"'{path}' holds several state dicts ({names}): save the model's own with "
                f"torch.save(checkpoint[{likely[0]!r}], path)"
            )
        held = inside[likely[0]] if likely else held
    if not isinstance(held, Mapping) or not _is_state(held):
        raise InputError(f"'{path}' holds a {type(held).__name__}, not a state dict of tensors")
    return held


def _is_state(held: Mapping[Any, Any]) -> bool:
    return bool(held) and all(isinstance(value, Tensor) for value in held.values())


def _checked(state: Mapping[Any, Any], path: Path) -> Mapping[str, Tensor]:
    for name, value in state.items():
        if not isinstance(name, str):
            raise InputError(
                f"'{path}' holds a tensor named {name!r:.40}, which is not a string: save the model's own state_dict()"
            )
        if why := oddity(value):
            raise InputError(f"'{path}': '{name}' {why}")
    return state


def _unwrapped(state: Mapping[str, Tensor], network: nn.Module) -> Mapping[str, Tensor]:
    """Return the state under the network's own names, without a prefix such as ``module.`` from ``DataParallel``."""
    prefix = shared_prefix(list(state), list(network.state_dict()))
    return {name.removeprefix(prefix): value for name, value in state.items()}


def _remedy(network: nn.Module, state: Mapping[str, Tensor]) -> str:
    """Return advice for a file in which the model is one of several parts; otherwise an empty text."""
    own = set(network.state_dict())
    for prefix in dict.fromkeys(name.partition(".")[0] + "." for name in state):
        if own <= {name.removeprefix(prefix) for name in state if name.startswith(prefix)}:
            return f"\n  the names that begin with '{prefix}' are the model's: save only these, each without '{prefix}'"
    return ""


def _misfits(network: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    own = network.state_dict()
    problems = [f"{k}: in the model, not in the file" for k in own if k not in state]
    problems += [f"{k}: in the file, not in the model" for k in state if k not in own]
    for name in own.keys() & state.keys():
        if own[name].shape != state[name].shape:
            problems.append(f"{name}: {tuple(state[name].shape)} in the file, {tuple(own[name].shape)} in the model")
    return sorted(problems)
