"""A user's own model: ``path/to/file.py:make_model`` or ``package.module:Class(arg=1)``."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from medpfl.core.errors import InputError
from medpfl.core.place import find
from medpfl.core.roles import Model
from medpfl.core.spec import construct

__all__ = ["UserModel"]

_SYNONYMS = {
    "classes": ("classes", "num_classes", "n_classes", "out_channels"),
    "channels": ("channels", "in_channels", "n_input_channels", "num_channels"),
    "size": ("size", "img_size", "image_size"),
    "axes": ("spatial_dims",),
}


@dataclass(frozen=True, repr=False)
class UserModel(Model):
    """A network made by the user's own function or class, called with the arguments that the spec gives.

    Arguments that it has no default for and that are named like ``num_classes``, ``in_channels``, ``image_size``
    or ``spatial_dims`` are filled in from the data. Of several outputs the first counts (of named ones that are
    called ``logits`` or ``out``, this one).

    Attributes:
        place: a ``.py`` file or a module. It is kept out of everything that is written.
        call: the name in it, with literal arguments if any.
    """

    place: str = field(repr=False)
    call: str = ""

    @classmethod
    def parse(cls, text: str) -> UserModel:
        """From ``place:name(arguments)``."""
        head, bracket, arguments = text.partition("(")
        place, _, name = head.rpartition(":")
        return cls(place, name + bracket + arguments)

    def build(self, image_shape: tuple[int, ...], num_classes: int, seed: int) -> nn.Module:
        """What the user's function returns, made under `seed`.

        Raises:
            InputError: no such file, module or name, a call that fails, or a result that is no module.
        """
        name, args, kwargs = _parse_call(self.call)
        make = find(self.place, name, "model")
        axes = len(image_shape) - 1
        values = {"classes": num_classes, "channels": image_shape[0], "size": image_shape[-1], "axes": axes}
        kwargs |= _fill(make, len(args), kwargs, values)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                network = construct(make, name, args, kwargs, "model")
            except InputError:
                raise
            except Exception as error:  # whatever a stranger's code raises is the user's to read
                raise InputError(f"model '{name}' failed: {type(error).__name__}: {error}") from error
        if not isinstance(network, nn.Module):
            raise InputError(f"model '{name}' returned a {type(network).__name__}, not a torch.nn.Module")
        network.register_forward_hook(_first_output)  # a hook, since a wrapper would rename the parameters
        return network


def _first_output(_: nn.Module, __: Any, output: Any) -> Any:
    if isinstance(output, Mapping):
        return next((output[key] for key in ("logits", "out") if key in output), output)
    return output[0] if isinstance(output, tuple | list) and output else output


def _parse_call(text: str) -> tuple[str, list[Any], dict[str, Any]]:
    try:
        node = ast.parse(text, mode="eval").body
        if isinstance(node, ast.Name):
            return node.id, [], {}
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            raise ValueError
        kwargs = {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
        return node.func.id, [ast.literal_eval(a) for a in node.args], kwargs
    except (SyntaxError, ValueError, TypeError):
        raise InputError(
            f"model '{text}': after the colon write a name, or a name with literal arguments: make_model(width=8)"
        ) from None


def _fill(make: Any, positional: int, given: dict[str, Any], values: dict[str, int]) -> dict[str, int]:
    try:
        parameters = list(inspect.signature(make).parameters.values())[positional:]
    except (TypeError, ValueError):
        return {}
    missing = {p.name for p in parameters if p.default is p.empty and p.name not in given}
    return {name: values[key] for key, names in _SYNONYMS.items() for name in names if name in missing}
