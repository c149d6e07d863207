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
    """Sends a class of the user's own whole, and a dataclass's mark for a missing default as what it is everywhere.

    Args:
        file: file to write to.
        held: gets large tensors or their copies, which other processes of this machine open where they are; ``None``
            sends all tensors.
    """

    dispatch_table: ClassVar = {**cloudpickle.Pickler.dispatch_table, type(MISSING): lambda _: "MISSING"}

    def __init__(self, file: BytesIO, held: list[Any] | None) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.held = held

    def reducer_override(self, obj: Any) -> Any:
        """Send many images as their place in shared memory, or as an array; torch copies a tensor's bytes twice more.

        An array is copied once on each side.
        """
        torch = sys.modules.get("torch")
        if torch is None or type(obj) is not torch.Tensor:
            return super().reducer_override(obj)
        from medpfl.core.shared_memory import LARGE, empty, opened, shared  # not at the top: it imports torch

        plain = _is_plain(obj) and obj.nbytes >= LARGE
        if self.held is not None and (place := shared(obj)) is not None:
            self.held.append(obj)
            return opened, tuple(place)
        if self.held is not None and plain and (place := shared(copy := empty(obj.shape, obj.dtype))) is not None:
            self.held.append(copy.copy_(obj))
            return opened, tuple(place)
        return (torch.from_numpy, (obj.numpy(),)) if plain else super().reducer_override(obj)


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


def packed(work: Any, held: list[Any] | None = None) -> bytes:
    """Return work as bytes. The user's own modules are sent whole, since another process may not find them.

    Args:
        work: the work.
        held: gets what processes of this machine open in place of large tensors, and must last as long as the bytes.
            ``None`` for other machines.

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
        _Pickler(made, held).dump(work)
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
