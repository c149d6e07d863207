"""Contradictions within a record, found without its images."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from medpfl.core.errors import InputError
from medpfl.core.records.record import Record
from medpfl.recording.check import Finding
from medpfl.recording.replay import counters

__all__ = ["contradictions"]


def contradictions(record: Record, network: nn.Module | None = None) -> Iterator[Finding]:
    """Yield what a record contradicts by itself, without images: counters, variances, and numbers of images."""
    if not record.steps.are_known:
        return
    after, before = record.update.buffers or {}, record.weights.buffers
    for name, count in counters(after).items():
        if name not in before or count.numel() != 1:
            continue
        yield from _counted(record, name, float(before[name]), float(count))
    layers = {} if network is None else {n: m for n, m in network.named_modules() if isinstance(m, _BatchNorm)}
    for name, value in after.items():
        if not name.endswith("running_var") or name not in before or not value.is_floating_point():
            continue
        momentum = getattr(layers.get(name.removesuffix(".running_var")), "momentum", None) or 0.0
        least = before[name].double() * (1 - momentum) ** len(record.steps.steps) if momentum else 0.0
        if bool((value.double() < least * (1 - 1e-4) - 1e-12).any()):
            yield Finding(
                f"the variance '{name}' after the training is smaller than any training from these buffers allows",
                "send the buffers' values after the training, not their differences, and before any noise",
            )


def _counted(record: Record, name: str, before: float, after: float) -> Iterator[Finding]:
    """Yield a contradiction between a batch norm's counter and the number of steps."""
    layer, steps = name.rpartition(".")[0], record.steps.steps
    expected = sum(step.modes.get(layer, step.training) for step in steps)
    if after % 1:
        yield Finding(
            f"the counter '{name}' is {after:g} after the training, which is an average over several clients",
            "record one client's update before the server averages",
        )
        return
    counted = int(after) - int(before)
    if counted == expected:
        return
    if int(after) == expected and int(before):
        yield Finding(
            f"the buffers are differences: the counter '{name}' is {int(after)} after the training and "
            f"{int(before)} before",
            "record the buffers' values after the training",
        )
        return
    yield Finding(_steps_cause(record, counted, expected, name), "give the plan that the client followed")


def _steps_cause(record: Record, counted: int, expected: int, name: str) -> str:
    said = f"the counter '{name}' says {counted} steps, the record's plan {expected}"
    per_epoch = _per_epoch(record)
    if counted == 0:
        return f"the weights before the training are those of another round, or the layer was in eval mode ({said})"
    if per_epoch and counted % per_epoch == 0 and counted > 0:
        return f"the client trained for {counted // per_epoch} epochs, not {expected // per_epoch} ({said})"
    return said


def _per_epoch(record: Record) -> int:
    """Return the number of steps in an epoch; 0 if it is unknown."""
    try:
        return record.regular_plan().batches if record.steps.steps[0].optimizer else 0
    except InputError:
        return 0
