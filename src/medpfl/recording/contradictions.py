"""Contradictions within a record, found without a replay: in counters, batch-norm statistics, and the last bias."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from medpfl.core.errors import InputError
from medpfl.core.messages import counted
from medpfl.core.records.record import Record
from medpfl.core.records.steps import Steps
from medpfl.core.records.truth import Truth
from medpfl.recording.causes import PLAN, SWAPPED
from medpfl.recording.check import Cause, from_checkpoints
from medpfl.recording.last_bias import bias_contradictions
from medpfl.recording.replay import counters
from medpfl.recording.tracing import Trace, traced

__all__ = ["Look", "looked"]

_TURNED = Cause(
    f"{SWAPPED.text}, or of different trainings",
    f"{SWAPPED.remedy}, and both of the same client's training in the same run and round",
)
"""The cause of a counter that decreases: it tells which state is the older one, not that both are of one training."""
_SLACK = 1e-3
"""Share of a bound by which rounding may exceed it."""


class Look(NamedTuple):
    """The result of looking at a record without a replay.

    Attributes:
        wrong: its first contradiction.
        facts: what was checked and agrees.
        counted: True if the contradiction is one of counters, which names its cause.
    """

    wrong: Cause | None
    facts: tuple[str, ...] = ()
    counted: bool = False


def looked(record: Record, network: nn.Module | None = None, truth: Truth | None = None) -> Look:
    """Return what a record contradicts by itself. No right record contradicts itself.

    Args:
        record: a record; under a network's names if one is given.
        network: the client's model. Without it, only counters are checked, and that no variance is negative.
        truth: images and labels, if known; their order is not needed.
    """
    if not record.steps.are_known:
        return Look(None, tuple(_told(record)))
    trace = None if network is None else _trace(record, network, truth)
    if (told := next(_of_counters(record, trace), None)) is not None:
        return Look(told, counted=True)
    wrong = next(_of_moments(record, network, trace), None)
    if wrong is None and trace is not None:
        wrong = next(bias_contradictions(record, trace.bias, trace.outputs, truth), None)
    return Look(wrong) if wrong else Look(None, tuple(_told(record, trace)))


def _trace(record: Record, network: nn.Module, truth: Truth | None) -> Trace | None:
    shape = record.image_shape or (None if truth is None else tuple(truth.images.shape[1:]))
    steps = record.steps.steps
    if shape is None or any((s.training, s.modes) != (steps[0].training, steps[0].modes) for s in steps[1:]):
        return None
    images = max(*(step.images for step in steps), record.images or 0)
    return traced(network, record.weights, steps[0], images, shape, record.pixels, len(steps) == 1)


def _told(record: Record, trace: Trace | None = None) -> Iterator[str]:
    """Yield what agrees."""
    after, before = counters(record.update.buffers or {}), counters(record.weights.buffers)
    steps = {float(t - before[name]) for name, t in after.items() if name in before and t.numel() == 1}
    if len(steps) == 1 and not next(iter(steps)) % 1:
        same = ", as the plan does" if record.steps.are_known else ""
        yield f"batch norm's counters state {counted(round(steps.pop()), 'step')}{same}"
    known = [] if trace is None else [name for name, one in trace.entries.items() if _is_known(one.range)]
    if any(f"{name}.running_mean" in (record.update.buffers or {}) for name in known):
        yield "batch norm's means and variances lie in the range that pixels and weights allow"
    if trace is not None and trace.bias in record.update.tensors:
        yield "the changes of the last layer's bias have the sum that the loss gives"


# --- counters


def _of_counters(record: Record, trace: Trace | None) -> Iterator[Cause]:
    """Yield what the counters contradict, unless one agrees: others may belong to layers that are not always called."""
    before, found = record.weights.buffers, []
    for name, count in counters(record.update.buffers or {}).items():
        if name in before and count.numel() == 1:
            calls = 1 if trace is None else trace.calls.get(name.rpartition(".")[0], 1)
            found.append(list(_counted(record, name, float(before[name]), float(count), calls)))
    if all(found):
        yield from (cause for one in found for cause in one)


def _counted(record: Record, name: str, before: float, after: float, calls: int) -> Iterator[Cause]:
    """Yield a contradiction between a batch norm's counter and the number of steps."""
    expected = calls * _updates(record.steps, name.rpartition(".")[0])
    if after % 1:
        yield Cause(
            f"the counter '{name}' is {after:g} after the training, which is an average over several clients",
            "record one client's update before the server averages",
        )
        return
    steps = int(after) - int(before)
    if steps == expected or (_accumulates(record.steps) and steps > expected):  # passes may be left over at the end
        return
    if int(after) == expected and int(before):
        yield Cause(
            f"the buffers are differences: the counter '{name}' is {int(after)} after the training and "
            f"{int(before)} before",
            "record the buffers' values after the training",
        )
        return
    said = f"the counter '{name}' says {counted(steps, 'step')}, the record's plan {expected}"
    if steps < 0:
        other = Cause("the weights before the training are those of a later round", "record those that the client got")
        cause = _TURNED if from_checkpoints(record) else other
        yield replace(cause, text=f"{cause.text} ({said})")
        return
    yield Cause(_steps_cause(record, steps, expected, said), PLAN)


def _updates(steps: Steps, layer: str) -> int:
    """Return how often a batch norm updates its statistics: once in each pass in train mode."""
    return sum(step.passes for step in steps.steps if step.modes.get(layer, step.training))


def _accumulates(steps: Steps) -> bool:
    return any(step.passes > 1 for step in steps.steps)


def _steps_cause(record: Record, steps: int, expected: int, said: str) -> str:
    per_epoch = _per_epoch(record)
    if steps == 0:
        return f"the weights before the training are those of another round, or the layer was in eval mode ({said})"
    if per_epoch and steps % per_epoch == 0 and steps > 0:
        return f"the client trained for {counted(steps // per_epoch, 'epoch')}, not {expected // per_epoch} ({said})"
    return said


def _per_epoch(record: Record) -> int:
    """Return the number of steps in an epoch; 0 if it is unknown."""
    try:
        return record.regular_plan().batches if record.steps.steps[0].optimizer else 0
    except InputError:
        return 0


# --- means and variances


def _of_moments(record: Record, network: nn.Module | None, trace: Trace | None) -> Iterator[Cause]:
    """Yield batch norms whose statistics no training from these buffers gives."""
    after, before = record.update.buffers or {}, record.weights.buffers
    layers = {} if network is None else {n: m for n, m in network.named_modules() if isinstance(m, _BatchNorm)}
    for name, value in after.items():
        layer, _, kind = name.rpartition(".")
        if kind not in ("running_mean", "running_var") or name not in before or not value.is_floating_point():
            continue
        low, high = _bounds(record, layer, kind, layers, trace)
        found, slack = value.double(), _slack(value, before[name], low, high)
        what = "variance" if kind == "running_var" else "mean"
        if bool((found < low - slack).any()):
            cause = f"the {what} '{name}' after the training is smaller than any training from these buffers allows"
        elif bool((found > high + slack).any()):
            cause = f"the {what} '{name}' after the training is larger than any training from these buffers allows"
        else:
            continue
        yield Cause(
            cause,
            "send the buffers' values after the training, not their differences, and before any noise"
            + ("" if low.isinf().any() or kind == "running_var" else "; state how pixels enter the model"),
        )


def _bounds(
    record: Record, layer: str, kind: str, layers: Mapping[str, _BatchNorm], trace: Trace | None
) -> tuple[Tensor, Tensor]:
    """Return the least and the largest value that a batch norm's statistic can have after the training."""
    start = record.weights.buffers[f"{layer}.{kind}"].double()
    infinite = torch.full_like(start, math.inf)
    nothing = (-infinite if kind == "running_mean" else torch.zeros_like(start)), infinite
    share = _old_share(record, layer, layers.get(layer), trace)
    if share is None:
        return nothing
    entry = None if trace is None else trace.entries.get(layer)
    known = entry is not None and _is_known(entry.range)
    if kind == "running_mean":
        if entry is None or not known:
            return nothing if share < 1 else (start, start)
        return share * start + (1 - share) * entry.range.low, share * start + (1 - share) * entry.range.high
    if entry is None or not known:
        return share * start, infinite if share < 1 else start
    count = 2 if record.steps.sampling == "poisson" else entry.elements * min(_batches(record.steps))
    largest = ((entry.range.high - entry.range.low) / 2).square() * (count / (count - 1) if count > 1 else 2)
    return share * start, share * start + (1 - share) * largest


def _old_share(record: Record, layer: str, module: _BatchNorm | None, trace: Trace | None) -> float | None:
    """Return the weight that the statistics before the training have in those after it; ``None`` if it is unknown."""
    updates = _updates(record.steps, layer)
    if not updates:
        return 1.0
    if module is None or _accumulates(record.steps) or (trace is not None and trace.calls.get(layer, 1) > 1):
        return None
    if module.momentum is not None:
        return (1 - module.momentum) ** updates if 0 <= module.momentum <= 1 else None
    passed = record.weights.buffers.get(f"{layer}.num_batches_tracked")
    return None if passed is None else int(passed) / (int(passed) + updates)


def _batches(steps: Steps) -> Iterator[int]:
    """Yield the least number of images that a pass of each step can have; a batch norm needs two values."""
    for step in steps.steps:
        yield step.images if step.passes == 1 else 1


def _slack(value: Tensor, before: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return what rounding explains: a share of the numbers, which is larger for those with few digits."""
    share = max(_SLACK, 8 * torch.finfo(value.dtype).eps)
    sizes = [t.double().abs().nan_to_num(posinf=0.0) for t in (before, low, high)]
    return share * torch.stack(sizes).amax(0) + 1e-6


def _is_known(range_: tuple[Tensor, Tensor]) -> bool:
    return all(bool(t.isfinite().all()) for t in range_)
