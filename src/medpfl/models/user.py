"""A user's own model: ``path/to/file.py:make_model`` or ``package.module:Class(arg=1)['output']``."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from medpfl.core.errors import InputError
from medpfl.core.roles import Model
from medpfl.core.spec import construct
from medpfl.core.user_code.copies import check_copies
from medpfl.core.user_code.loading import find, parted
from medpfl.core.user_code.strangers import explained
from medpfl.models.wrapped import unwrapped

__all__ = ["UserModel"]

_SYNONYMS = {
    "classes": ("classes", "num_classes", "n_classes", "out_channels"),
    "channels": ("channels", "in_channels", "n_input_channels", "num_channels"),
    "size": ("size", "img_size", "image_size"),
    "axes": ("spatial_dims",),
}


@dataclass(frozen=True, repr=False)
class UserModel(Model):
    """A network from the user's own function or class, called with the arguments in the spec.

    Required arguments with names like ``num_classes``, ``in_channels`` or ``image_size`` are filled in from the data.
    ``spatial_dims`` is always filled in, because MONAI sets it to 3 in places. If the network returns several outputs,
    the one in brackets is used: ``make()[1]`` or ``make()['aux']``. Without brackets, it is ``logits`` or ``out`` of a
    dictionary, and the first output of a tuple or list.

    Attributes:
        place: path to a ``.py`` file, or a module. No output ever shows it.
        call: name in the file or module, with literal arguments if any, and with an output in brackets if needed.
    """

    place: str = field(repr=False)
    call: str = ""

    @classmethod
    def parse(cls, text: str) -> UserModel:
        """Parse ``place:name(arguments)``."""
        place, call = parted(text) or ("", text)
        return cls(place, call)

    def maker(self) -> Callable[..., Any]:
        """Return the user's function or class.

        Raises:
            InputError: if there is no such file, module or name.
        """
        return find(self.place, _parse_call(self.call)[0], "model")

    def build(self, image_shape: tuple[int, ...], num_classes: int, seed: int) -> nn.Module:
        """Call the user's function under `seed`, and return its network.

        Raises:
            InputError: if there is no such file, module or name, if the call fails, or if the result is not a module.
        """
        name, args, kwargs, output = _parse_call(self.call)
        make = self.maker()
        axes = len(image_shape) - 1
        values = {"classes": num_classes, "channels": image_shape[0], "size": image_shape[-1], "axes": axes}
        with torch.random.fork_rng(devices=[]), explained(f"model '{name}' failed", named=True):
            torch.manual_seed(seed)
            kwargs |= _fill(make, len(args), kwargs, values)
            network = construct(make, name, args, kwargs, "model")
        if not isinstance(network, nn.Module):
            raise InputError(f"model '{name}' returned a {type(network).__name__}, not a torch.nn.Module")
        network = unwrapped(network)
        check_copies(network)
        network.register_forward_hook(_Output(output))  # a hook, since a wrapper would rename the parameters
        return network


@dataclass(frozen=True)
class _Output:
    """A forward hook that selects one of several outputs: the one at `key`, or else the likeliest."""

    key: str | int | None = None

    def __call__(self, _: nn.Module, __: Any, output: Any) -> Any:
        if self.key is not None:
            return self._named(output)
        if isinstance(output, Mapping):
            return next((output[key] for key in ("logits", "out") if key in output), output)
        return output[0] if isinstance(output, tuple | list) and output else output

    def _named(self, output: Any) -> Any:
        if isinstance(self.key, str) and hasattr(output, self.key):  # named tuples
            return getattr(output, self.key)
        try:
            if isinstance(output, Mapping | tuple | list):
                return output[self.key]  # type: ignore[index]  (what does not fit is caught)
        except (KeyError, IndexError, TypeError):
            pass
        has = f"outputs named {', '.join(map(str, output))}" if isinstance(output, Mapping) else _counted(output)
        raise InputError(f"the model has no output [{self.key!r}]: it returns {has}")


def _counted(output: Any) -> str:
    return f"{len(output)}, counted from 0" if isinstance(output, tuple | list) else "one: leave the brackets out"


def _parse_call(text: str) -> tuple[str, list[Any], dict[str, Any], str | int | None]:
    try:
        node, output = ast.parse(text, mode="eval").body, None
        if isinstance(node, ast.Subscript):
            node, output = node.value, ast.literal_eval(node.slice)
        if output is not None and not isinstance(output, str | int):
            raise ValueError
        if isinstance(node, ast.Name):
            return node.id, [], {}, output
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            raise ValueError
        kwargs = {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
        return node.func.id, [ast.literal_eval(a) for a in node.args], kwargs, output
    except (SyntaxError, ValueError, TypeError):
        raise InputError(
            f"model '{text}': after the colon write a name, or a name with literal arguments, such as "
            "make_model(width=8); if it returns several outputs, add the one to use, such as make_model()['logits']"
        ) from None


def _fill(make: Any, positional: int, given: dict[str, Any], values: dict[str, int]) -> dict[str, int]:
    try:
        parameters = list(inspect.signature(make).parameters.values())[positional:]
    except (TypeError, ValueError):
        return {}
    open_ = {p.name for p in parameters if p.default is p.empty or p.name in _SYNONYMS["axes"]}
    missing = open_ - set(given)
    return {name: values[key] for key, names in _SYNONYMS.items() for name in names if name in missing}
