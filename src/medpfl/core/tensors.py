"""Checks for named tensors in a file or a model, and the prefixes of their names."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["oddity", "shared_prefix"]

_DTYPES = {
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
}  # fmt: skip


def oddity(tensor: Tensor) -> str:
    """Return why a tensor cannot be a weight and what to do, as the end of a sentence; ``""`` if it can be one.

    >>> oddity(torch.zeros(2)), oddity(torch.zeros(2, dtype=torch.complex64))
    ('', 'holds complex numbers: use torch.view_as_real, which gives real ones')
    """
    if tensor.is_meta:
        return "is on the meta device, where tensors have no values: give it values before it is saved or used"
    if tensor.layout is not torch.strided:
        return "is a sparse tensor: use its .to_dense()"
    if tensor.is_quantized:
        return "is quantized, and a quantized model is not trained: use its .dequantize()"
    if tensor.is_complex():
        return "holds complex numbers: use torch.view_as_real, which gives real ones"
    if tensor.dtype not in _DTYPES:
        return f"is of {tensor.dtype}, which cannot be computed with: use its .float()"
    return ""


def shared_prefix(names: list[str], own: list[str]) -> str:
    """Return the prefix that all saved tensors' names share and the network's own names lack, such as ``"module."``.

    Wrappers add such prefixes, sometimes several. The result ends with a dot; it is ``""`` if there is no such prefix.

    Args:
        names: names of the saved tensors.
        own: names of the network's parameters and buffers.

    >>> shared_prefix(["_orig_mod.module.fc.weight", "_orig_mod.module.fc.bias"], ["fc.weight", "fc.bias"])
    '_orig_mod.module.'
    >>> shared_prefix(["fc.weight", "fc.bias"], ["fc.weight", "fc.bias"]), shared_prefix(["a.b"], ["c"])
    ('', 'a.')
    """
    prefix, known = "", set(own)
    while names and not known.intersection(names):
        first, dot, _ = names[0].partition(".")
        head = first + dot
        shared = all(name.startswith(head) for name in names)
        if not dot or not shared or (own and all(name.startswith(head) for name in own)):
            break
        names = [name.removeprefix(head) for name in names]
        prefix += head
    return prefix
