"""Contradictions between the last layer's bias and the labels, the loss or the learning rate, for all images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from medpfl.core.records.record import Record
from medpfl.core.records.steps import SPEED_ONLY, Step, Steps
from medpfl.core.records.truth import Truth
from medpfl.recording.check import Cause

__all__ = ["bias_contradictions"]

_SGD = {"lr", "momentum", "dampening", "weight_decay", "nesterov"}
_SLACK = 1e-3
"""Share of a bound by which rounding may exceed it."""


def bias_contradictions(
    record: Record, name: str, outputs: Sequence[int], truth: Truth | None = None
) -> Iterator[Cause]:
    """Yield what the change of the last layer's bias contradicts under cross entropy.

    The gradient of that bias is the mean of p - y over the images: p are the predicted probabilities, and y is 1 for
    the label. So its elements sum to 0 in every step, whatever the images and their order. No element is below minus
    the share of its label in the batch, and none above 1 minus that share.

    Args:
        record: the record.
        name: name of the bias whose layer's output is the network's own; empty if there is none.
        outputs: shape of the network's output for one image, (K,) or (K, H, W).
        truth: the labels, if known.
    """
    steps, tensors = record.steps, record.update.tensors
    if name not in tensors or len(tensors[name]) < 2 or not all(map(_usual, steps.steps)):
        return
    change, start = tensors[name].double(), record.weights.parameters[name].double()
    rounding = _rounding(record, name)
    expected = _sum_after(steps, float(start.sum())) if steps.steps[0].optimizer else 0.0
    if abs(float(change.sum()) - expected) > len(change) * rounding + _SLACK * float(change.abs().sum()):
        yield Cause(
            f"the changes of the last layer's bias '{name}' sum to {float(change.sum()):.3g}, but with this loss they "
            f"sum to {expected:.3g}, whatever the images",
            "record the update as the training gives it, and state the weight decay, filters and the defense",
        )
        return
    shares = _shares(steps)
    if shares is None:
        return
    moved = -change if steps.steps[0].optimizer else change
    if float(moved.clamp(min=0).sum()) > sum(shares) * (1 + _SLACK) + len(change) * rounding:
        yield Cause(
            f"the last layer's bias '{name}' changed more than the learning rate and the number of steps allow",
            "give the plan that the client followed; a weight difference is new minus old weights",
        )
    elif len(outputs) == 1:
        yield from _of_number(record, name, moved, shares, rounding)
        yield from _of_labels(record, name, moved, shares, rounding, truth)


def _of_number(record: Record, name: str, moved: Tensor, shares: list[float], rounding: float) -> Iterator[Cause]:
    """Yield a contradiction if the bias shows more labels than there are images: each label needs a whole image."""
    images = record.steps.steps[0].images
    if len(shares) > 1 or record.images != images:
        return
    smoothing = _smoothing(record.steps)
    share = ((-moved - rounding) / shares[0] - _SLACK - smoothing / len(moved)) / (1 - smoothing)
    needed = int((share * images - _SLACK).ceil().clamp(min=0).sum())
    if needed > images:
        yield Cause(
            f"the last layer's bias '{name}' shows the labels of at least {needed} images, but the record was made "
            f"from {images}",
            "record one client's own update, with the number of its images",
        )


def _of_labels(
    record: Record, name: str, moved: Tensor, shares: list[float], rounding: float, truth: Truth | None
) -> Iterator[Cause]:
    """Yield a contradiction if the bias does not fit the truth's labels."""
    if truth is None or truth.labels.ndim != 1 or truth.labels.is_floating_point():
        return
    labels, classes = truth.labels.long(), len(moved)
    if int(labels.max()) >= classes:
        return
    known = torch.nn.functional.one_hot(labels, classes).double()
    if truth.order is not None and len(truth.order) == record.steps.total:
        least = most = _share_in_order(record.steps, known[truth.order], shares)
    elif truth.order is None and max(step.images for step in record.steps.steps) <= len(labels) == record.images:
        least, most = _share_in_any_order(record.steps, known.sum(0), shares)
    else:
        return
    smoothing, total = _smoothing(record.steps), sum(shares)
    low, high = (smoothing / classes * total + (1 - smoothing) * part for part in (least, most))
    slack = _SLACK * total + rounding
    if bool((moved < -high - slack).any() or (moved > total - low + slack).any()):
        yield Cause(
            f"the labels of the truth are not those behind the update: they do not fit the last layer's bias '{name}'",
            "give --truth the images of this client and round only, name the classes in the client's order, and record "
            "one client's own update before the server averages",
        )


def _share_in_order(steps: Steps, labels: Tensor, shares: list[float]) -> Tensor:
    """Return the weighted sum, over the steps, of each label's share in the batch, from one-hot labels in order."""
    parts = labels.split([step.images for step in steps.steps])
    return torch.stack([share * part.mean(0) for share, part in zip(shares, parts, strict=True)]).sum(0)


def _share_in_any_order(steps: Steps, counts: Tensor, shares: list[float]) -> tuple[Tensor, Tensor]:
    """Return the least and the largest weighted sum, over the steps, of each label's share in the batch."""
    total, sizes = float(counts.sum()), [step.images for step in steps.steps]
    if len(set(sizes)) == 1 and max(shares) < min(shares) * (1 + 1e-9) and sum(sizes) % total == 0:  # whole epochs
        exact = sum(shares) * counts / total
        return exact, exact
    least, most = torch.zeros_like(counts), torch.zeros_like(counts)
    for share, size in zip(shares, sizes, strict=True):
        least += share * (size - (total - counts)).clamp(min=0) / size
        most += share * counts.clamp(max=size) / size
    return least, most


def _usual(step: Step) -> bool:
    """Return True if a step is one of plain SGD, or a gradient, with a cross entropy whose gradient nobody changed."""
    settings = {k: v for k, v in step.settings.items() if k not in SPEED_ONLY and v}
    numbers = all(isinstance(v, int | float) for v in settings.values())
    plain = step.optimizer in ("", "SGD") and set(settings) <= _SGD and numbers
    return plain and step.loss == "cross_entropy" and not step.change and not step.precision and step.images > 0


def _of(step: Step, name: str) -> float:
    value = step.settings.get(name) or 0.0
    return float(value) if isinstance(value, int | float) else 0.0


def _smoothing(steps: Steps) -> float:
    value = steps.steps[0].loss_settings.get("label_smoothing", 0.0)
    return float(value) if isinstance(value, int | float) else 0.0


def _sum_after(steps: Steps, start: float) -> float:
    """Return the change of the bias's sum: only weight decay moves it, as in `torch.optim.SGD`."""
    now, kept = start, None
    for step in steps.steps:
        moved = _of(step, "weight_decay") * now
        if momentum := _of(step, "momentum"):
            kept = moved if kept is None else momentum * kept + (1 - _of(step, "dampening")) * moved
            moved = moved + momentum * kept if step.settings.get("nesterov") else kept
        now -= _of(step, "lr") * moved
    return now - start


def _shares(steps: Steps) -> list[float] | None:
    """Return the factor with which each step's gradient enters the change; ``None`` if one is unknown or negative.

    Unknown are those with weight decay, accumulated gradients, other reductions of the loss, or random batch sizes.
    """
    first = steps.steps[0]
    for step in steps.steps:
        same = step.loss_settings == first.loss_settings and _of(step, "momentum") == _of(first, "momentum")
        if not same or step.passes > 1 or _of(step, "weight_decay"):
            return None
    if steps.sampling != "shuffle" or set(first.loss_settings) - {"label_smoothing"} or _smoothing(steps) >= 1:
        return None
    if not first.optimizer:
        return [1.0]
    after, found = 0.0, []
    for place, step in reversed(list(enumerate(steps.steps))):
        rate, momentum = _of(step, "lr"), _of(step, "momentum")
        after = rate + momentum * after
        entered = 1 - _of(step, "dampening") if place and momentum else 1.0
        found.append(rate + momentum * entered * after if step.settings.get("nesterov") else entered * after)
    return found[::-1] if min(found) > 0 else None


def _rounding(record: Record, name: str) -> float:
    """Return what rounding may change in one element of the bias's change."""
    steps, change, start = record.steps.steps, record.update.tensors[name], record.weights.parameters[name]
    eps = max(torch.finfo(change.dtype).eps, torch.finfo(start.dtype).eps)
    size = float((start.double().abs() + change.double().abs()).max())
    rate = sum(_of(step, "lr") for step in steps) if steps[0].optimizer else 1.0
    return eps * (size * (len(steps) + 1) + 32 * rate / max(1 - _of(steps[0], "momentum"), 1e-3)) + 1e-12
