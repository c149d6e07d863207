"""Differences between a record and its replay that rounding explains."""

from __future__ import annotations

import torch
from torch import Tensor

from medpfl.core.records.record import Record
from medpfl.core.types import Weights
from medpfl.recording.check import Case
from medpfl.recording.replay import Replayed, gap

__all__ = ["RIGHT", "SURE", "allowance", "near", "tolerance_of"]

RIGHT = 1e-5
"""Largest relative difference of a right record in float32, apart from the rounding of its numbers."""
SURE = 0.1
"""Largest allowance for another device at which a record is called right."""
_NEAR = 1e-3
"""A difference below this that no other cause explains is rounding by another kernel."""
_MARGIN = 6.0
"""Factor between rounding in every layer and rounding once, which was 1 to 5 in the trainings of docs/records.md."""


def tolerance_of(record: Record) -> float:
    """Return the largest relative difference that rounding explains: of the weights, and of the sent numbers."""
    sent, start = record.update, record.weights.parameters
    size = sum(float(t.double().square().sum()) for t in sent.tensors.values()) ** 0.5
    whole = sum(float(t.double().square().sum()) for t in start.values()) ** 0.5
    coarse = max((torch.finfo(t.dtype).eps for t in (*start.values(), *sent.tensors.values())), default=0.0)
    rounding = coarse * (whole if sent.kind == "difference" else size)
    return RIGHT + 2 * rounding / max(size, 1e-30)


def near(difference: float, tolerance: float) -> bool:
    """Return True if a difference can be rounding by another kernel."""
    return difference <= max(tolerance, _NEAR)


def allowance(case: Case, made: Replayed) -> float:
    """Return the relative difference that rounding on the client's device explains; 0 if that was a CPU.

    GPUs compute convolutions with 10 binary digits by default (TF32). How much that changes an update depends on the
    training, so it is measured: the training is repeated with images and weights rounded to 10 digits.

    Args:
        case: a record whose replay needs no guess.
        made: its replay.
    """
    if case.record.source is None or case.record.source.versions.get("device", "cpu") == "cpu":
        return 0.0
    start = case.record.weights
    weights = Weights({name: _coarse(t) for name, t in start.parameters.items()}, start.buffers)
    (rounded,) = case.replays(weights=weights, images=_coarse(case.truth.images))
    return _MARGIN * gap(rounded.tensors, made.tensors)


def _coarse(values: Tensor) -> Tensor:
    """Return numbers rounded to the digits of TF32."""
    bits = values.float().contiguous().view(torch.int32)
    return ((bits + (1 << 12)) & -(1 << 13)).view(torch.float32).to(values)
