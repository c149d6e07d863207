"""The images behind a record, and the check of the record against them before any attack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from medpfl.core.errors import InputError, private
from medpfl.core.messages import about, say
from medpfl.core.plan import Plan
from medpfl.core.records.origin import Pixels
from medpfl.core.records.record import Record
from medpfl.core.records.truth import Truth
from medpfl.data.images import LabelledImages
from medpfl.inputs.parts import Found
from medpfl.inputs.spelling import path_of
from medpfl.models.entering import entering, leaving
from medpfl.recording.check import Case, Check
from medpfl.recording.diagnosis import check_case
from medpfl.recording.folder import neighbors, warn_if_overdue

__all__ = ["check_images", "found_in", "kept_at", "told_of"]

_OUTSIDE = 1e-3
"""Pixels may leave [0, 1] by this much, from rounding, when they are mapped back."""


def kept_at(truth: Any) -> Truth | None:
    """Return the truth file at a path, or ``None`` if it is something else. A warning says if its retention is over."""
    if not isinstance(truth, str | Path) or not Truth.is_one(path_of(truth)):
        return None
    path = path_of(truth)
    about(path)
    kept = Truth.load(path)
    warn_if_overdue(kept, path)
    return kept


def found_in(kept: Truth, path: Path, record: Record, plan: Plan) -> Found:
    """Return a truth file's images in [0, 1], one for each of the plan's images.

    Raises:
        InputError: the images do not fit the record: their number, or pixels out of the range that the record states.
    """
    images, labels = kept.images, kept.labels
    if len(images) != plan.images and kept.order is not None and len(kept.order) == plan.images:
        images, labels = images[kept.order], labels[kept.order]  # drawn anew or augmented in each epoch
    shown = leaving(images.float(), record.pixels or Pixels())
    low, high = (float(v) for v in shown.aminmax())
    if low < -_OUTSIDE or high > 1 + _OUTSIDE:
        raise InputError(
            f"the pixels in the truth file range from {low:.3g} to {high:.3g} after the mapping that the record "
            "states; record with pixels= set to the loader's own range, or mean and std"
        )
    classes = record.classes or tuple(f"class {i}" for i in range(_classes(labels)))
    masks = labels.long() if labels.ndim > 2 else None
    of_images = labels.argmax(1) if labels.ndim == 2 else labels
    numbers = torch.zeros(len(images), dtype=torch.long) if masks is not None else of_images.long()
    names = tuple(str(i) for i in range(len(images)))
    held = LabelledImages(shown.clamp(0, 1), numbers, classes, names, (None,) * len(images), masks=masks)
    return Found(held, "truth file", str(private(path.resolve().parent)))


def _classes(labels: torch.Tensor) -> int:
    if labels.ndim == 2 and labels.is_floating_point():
        return labels.shape[1]
    return max(int(labels.max()) + 1, 2)


def check_images(
    record: Record, path: Path, network: nn.Module, data: LabelledImages, labels: torch.Tensor, kept: Truth | None
) -> Check:
    """Return the check of an undefended record against its images.

    Args:
        record: the record under the network's names and dtypes.
        path: its file; other records in the same folder help to find the cause of a wrong one.
        network: the client's model, which takes pixels in the loader's range.
        data, labels: the images in [0, 1], and the client's labels.
        kept: the truth file behind them, if there is one.
    """
    truth = kept or Truth(entering(data.images, record.pixels or Pixels()), labels)
    check = check_case(Case(network, record, truth, neighbors(path, record)))
    if record.filters and check.verdict == "wrong":  # the record itself says that it differs from the training
        acting = f"the update was changed after the training by {'; '.join(record.filters)}"
        return Check("unverified", check.difference, check.spread, open=(f"not verifiable: {acting}",))
    return check


def told_of(check: Check) -> dict[str, Any]:
    """Return a check as the settings of a run state it; raise `InputError` if the record is wrong."""
    check.raise_if_wrong()
    told = {"difference": check.difference, "spread": check.spread, "checked": check.verdict}
    for line in check.open:
        say(f"note: the record is {line}")
    return {**told, "facts": list(check.facts), "open": list(check.open)}
