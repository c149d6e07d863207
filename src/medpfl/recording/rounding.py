"""Differences between a record and its replay that rounding explains."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from medpfl.core.records.record import Record
from medpfl.core.types import Weights
from medpfl.recording.check import Case, from_checkpoints
from medpfl.recording.fits import norm_of
from medpfl.recording.replay import Replayed, gap

__all__ = ["RIGHT", "SURE", "allowance", "client_device", "doubt", "near", "tolerance_of"]

RIGHT = 1e-5
"""Largest relative difference of a right record in float32, apart from the rounding of its numbers."""
SURE = 0.1
"""Largest difference explained by rounding at which a record is called right."""
_NEAR = 1e-3
"""A difference below this that no other cause explains is rounding by another kernel."""
_MARGIN = 6.0
"""Factor between rounding in every layer and rounding once, which was 1 to 5 in the trainings of docs/records.md."""


def tolerance_of(record: Record, made: Sequence[Replayed], held: Record | None = None) -> float:
    """Return the largest relative difference that rounding explains: of the weights, and of the sent numbers.

    Args:
        record: the record in the dtypes in which its training is repeated.
        made: its replays, to which differences are relative.
        held: the record as it was read. What was rounded to few digits stays so in a dtype with more.
    """
    rounding = max(map(_rounding, (record,) if held is None else (record, held)))
    size = max(norm_of(one.tensors) for one in made)
    return RIGHT + (2 * rounding / max(size, 1e-30) if math.isfinite(size) else 0.0)


def _rounding(record: Record) -> float:
    """Return the norm of what rounding adds to an update."""
    sent, start = record.update, record.weights.parameters
    coarse = max((torch.finfo(t.dtype).eps for t in (*start.values(), *sent.tensors.values())), default=0.0)
    return coarse * norm_of(start if sent.kind == "difference" else sent.tensors)


def near(difference: float, tolerance: float) -> bool:
    """Return True if a difference can be rounding by another kernel."""
    return difference <= max(tolerance, _NEAR)


def allowance(case: Case, made: Replayed) -> float:
    """Return the relative difference that rounding on the client's device explains; 0 if the record states a CPU.

    GPUs compute convolutions with 10 binary digits by default (TF32). How much that changes an update depends on the
    training, so it is measured: the training is repeated with images and weights rounded to 10 digits.

    Args:
        case: a record whose replay needs no guess.
        made: its replay.
    """
    if client_device(case.record) == "cpu":
        return 0.0
    start = case.record.weights
    weights = Weights({name: _coarse(t) for name, t in start.parameters.items()}, start.buffers)
    (rounded,) = case.replays(weights=weights, images=_coarse(case.truth.images))
    return _MARGIN * gap(rounded.tensors, made.tensors)


def client_device(record: Record) -> str:
    """Return the type of the client's device, such as ``"cuda"``; an empty text if the record does not state it."""
    return "" if record.source is None else record.source.versions.get("device", "")


def doubt(record: Record, difference: float, tolerance: float, allowed: float) -> str:
    """Return the reason why a record is not verified although rounding explains it; an empty text if it is right.

    Args:
        record: the record.
        difference: relative difference between the record and its replay, which rounding explains.
        tolerance: the part of it that `tolerance_of` explains.
        allowed: the part that `allowance` explains; 0 if it was not needed.
    """
    if allowed and not client_device(record):
        why = (
            "the record does not state the client's device, and a GPU may round in another way; or the images were "
            "resized or read by other software"
        )
        remedy = (
            ". Up to that difference, a wrong plan, other images or an unstated defense show no sign. To verify it, "
        )
        remedy += (
            "give --truth the pixels at the model's own size, as the client's loader gives them"
            if from_checkpoints(record)
            else "record at the client with truth=True, which notes the device and keeps the pixels"
        )
    elif allowed > SURE:
        why, remedy = "the client's device rounds in another way, which this training multiplies", ""
    elif tolerance > SURE:
        why, remedy = "the numbers have few digits, and the update is small beside the weights", ""
    else:
        return ""
    reach = min(max(tolerance, allowed), 1.0)
    return f"not verifiable beyond a relative difference of {reach:.2g}: {why} (the record: {difference:.2g}){remedy}"


def _coarse(values: Tensor) -> Tensor:
    """Return numbers rounded to the digits of TF32."""
    bits = values.float().contiguous().view(torch.int32)
    return ((bits + (1 << 12)) & -(1 << 13)).view(torch.float32).to(values)
