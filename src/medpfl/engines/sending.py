"""Work, tasks and results as bytes for another process. Does not import torch."""

from __future__ import annotations

import pickle
import sys
from dataclasses import MISSING
from io import BytesIO
from typing import Any, ClassVar

import cloudpickle

from medpfl.core.errors import InputError
from medpfl.core.user_code.modules import own_modules

__all__ = ["packed", "shipped"]


class _Pickler(cloudpickle.Pickler):
    """Sends a class of the user's own whole, and a dataclass's mark for a missing default as what it is everywhere."""

    dispatch_table: ClassVar = {**cloudpickle.Pickler.dispatch_table, type(MISSING): lambda _: "MISSING"}

    def reducer_override(self, obj: Any) -> Any:
        """Send many images as an array, which is copied once on each side; torch copies a tensor's bytes twice more."""
        torch = sys.modules.get("torch")
        if torch is not None and type(obj) is torch.Tensor and _is_plain(obj) and obj.nbytes > _LARGE:
            return torch.from_numpy, (obj.numpy(),)
        return super().reducer_override(obj)


_LARGE = 2**20
"""Bytes above which a tensor is sent as an array."""


def _is_plain(tensor: Any) -> bool:
    """Return True if a tensor is nothing but an array: numbers in this machine's memory, whole and in order."""
    return (
        tensor.device.type == "cpu"
        and str(tensor.dtype) in ("torch.float32", "torch.float64", "torch.uint8", "torch.int64")
        and tensor.is_contiguous()
        and not tensor.requires_grad
        and not tensor.is_neg()
        and tensor.untyped_storage().nbytes() == tensor.nbytes
    )


def packed(work: Any) -> bytes:
    """Return work as bytes. The user's own modules are sent whole, since another process may not find them.

    Raises:
        InputError: a part cannot be sent.
    """
    known = cloudpickle.list_registry_pickle_by_value()
    names = own_modules() - known - {"__main__"}  # what the main program defines is always sent whole
    sent = [sys.modules[name] for name in names if getattr(sys.modules.get(name), "__name__", "") == name]
    try:
        for module in sent:
            cloudpickle.register_pickle_by_value(module)
        made = BytesIO()
        _Pickler(made, protocol=pickle.HIGHEST_PROTOCOL).dump(work)
        return made.getvalue()
    except (pickle.PicklingError, TypeError, AttributeError, ValueError, RecursionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"a part of this run cannot be sent to another process ({reason}): give your own parts as file.py:Name or "
            "package.module:Name, without open files, locks or generators, or leave out --engine and --workers"
        ) from error
    finally:
        for module in sent:
            cloudpickle.unregister_pickle_by_value(module)


class _Shipper(pickle.Pickler):
    """Copies a tensor that shares memory with others, whose bytes would come with it."""

    def reducer_override(self, obj: Any) -> Any:
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(obj, torch.Tensor) and obj.untyped_storage().nbytes() > obj.nbytes:
            return obj.detach().clone().__reduce_ex__(pickle.HIGHEST_PROTOCOL)
        return NotImplemented


def shipped(value: Any) -> bytes:
    """Return a task or a result as bytes for `pickle.loads`.

    `multiprocessing` would move each tensor into shared memory, whose files end with the process that made them.
    """
    made = BytesIO()
    _Shipper(made, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
    return made.getvalue()
