"""The truth behind a record: private images and labels, kept at the client only, in a file that is never shared."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medpfl.core.atomic_files import PRIVATE
from medpfl.core.errors import InputError, private
from medpfl.core.experiments.limits import IMAGES, NAME, STEPS, check_image_shape, check_whole, shortened
from medpfl.core.records.files import holds, opened, put

__all__ = ["FOLDER", "RETENTION", "TRUTH", "Truth", "digest_of", "truth_beside"]

TRUTH = "medpfl-truth"
VERSION = 1
FOLDER = "private-truth"
"""Name of the folder beside the records, so that nobody shares it."""
RETENTION = 30
"""Days for which a truth file may be kept, unless the client states another number."""

_MOST_DAYS = 36_500


@dataclass(frozen=True, eq=False)
class Truth:
    """A client's private images as they entered the model, their labels, and the order of the steps.

    Attributes:
        images: (M, C, H, W) or (M, C, D, H, W), in the model's own range: normalized if the loader normalizes.
        labels: (M,) classes, (M, K) probabilities, or masks (M, H, W).
        order: indices into `images`, step after step; the record's steps state how many each step takes. ``None`` if
            it is not known.
        generators: state of torch's random number generator before each step (steps, B), if layers draw numbers.
        record: digest of the record's file, see `digest_of`.
        date: when the file was made, ISO 8601.
        days: days for which the file may be kept.
    """

    images: Tensor
    labels: Tensor
    order: Tensor | None = None
    generators: Tensor | None = None
    record: str = ""
    date: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    days: int = RETENTION

    @property
    def expires(self) -> datetime:
        """The date on which the stated retention ends."""
        return datetime.fromisoformat(self.date) + timedelta(days=self.days)

    @property
    def overdue(self) -> bool:
        """True if the stated retention is over."""
        return datetime.now(UTC) > self.expires

    @property
    def classes(self) -> int:
        """Number of classes in the labels: the columns of probabilities, or the largest label plus 1; at least 2."""
        if self.labels.is_floating_point() and self.labels.ndim in (2, self.images.ndim):
            return max(self.labels.shape[1], 2)
        return max(int(self.labels.max()) + 1, 2)

    def save(self, folder: Path, name: str) -> Path:
        """Write the truth into a private folder (mode 0700) inside `folder`, as a file that only its owner can read."""
        place = folder / FOLDER
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        place.chmod(0o700)
        entries = {"images": self.images, "labels": self.labels, "order": self.order, "generators": self.generators}
        about = {"format": TRUTH, "version": VERSION, "record": self.record, "date": self.date, "days": self.days}
        path = place / name
        put(path, TRUTH, about, {key: t for key, t in entries.items() if t is not None}, PRIVATE)
        return path

    @staticmethod
    def is_one(path: Path) -> bool:
        """Return True if a file's header says that it holds a truth."""
        return holds(path, TRUTH)

    @classmethod
    def load(cls, path: str | Path) -> Truth:
        """Read a truth from a file.

        Raises:
            InputError: the file is not a truth, is damaged, or has another version.
        """
        path = Path(path)
        about, tensors = opened(path, TRUTH, "truth file")
        try:
            return _checked(about, tensors)
        except InputError as error:
            raise InputError(f"the truth file '{private(path)}' is not valid: {error}") from None

    def of(self, record: str) -> Truth:
        """Return the same truth, stated to belong to a record's file."""
        return dataclasses.replace(self, record=record)


def truth_beside(record: Path) -> Path | None:
    """Return the truth file in its place, of the record's name in ``private-truth`` beside it; ``None`` without one."""
    place = record.parent / FOLDER / record.name
    return place if Truth.is_one(place) else None


def digest_of(path: Path) -> str:
    """Return a record file's SHA-256 digest, by which a truth file names its record."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checked(about: dict[str, Any], tensors: dict[str, Tensor]) -> Truth:
    if about.get("version") != VERSION:
        raise InputError(f"it has version {shortened(about.get('version'))}, this MedPFL reads version {VERSION}")
    if not {"images", "labels"} <= tensors.keys() <= {"images", "labels", "order", "generators"}:
        raise InputError(f"it holds {shortened(sorted(tensors))}: it must hold images and labels")
    images, labels, order = tensors["images"], tensors["labels"], tensors.get("order")
    check_image_shape(tuple(images.shape[1:]))
    check_whole("the number of images", len(images), 1, IMAGES)
    if not images.is_floating_point() or not images.isfinite().all():
        raise InputError("its images are not finite floating-point numbers")
    if not labels.ndim or len(labels) != len(images):
        raise InputError(f"it holds {len(images)} images and {len(labels) if labels.ndim else 0} labels")
    if order is not None:
        known = order.ndim == 1 and not order.is_floating_point() and 0 < len(order) <= IMAGES * STEPS
        if not known or int(order.min()) < 0 or int(order.max()) >= len(images):
            raise InputError("its order does not consist of indices of its images")
        order = order.long()
    for name in ("record", "date"):
        if not isinstance(about.get(name), str) or len(about[name]) > NAME:
            raise InputError(f"its {name} is {shortened(about.get(name))}")
    check_whole("days", about.get("days"), 0, _MOST_DAYS)
    try:
        datetime.fromisoformat(about["date"]).astimezone(UTC)
    except (ValueError, OverflowError):
        raise InputError(f"its date is {shortened(about['date'])}") from None
    states = tensors.get("generators")
    size = torch.get_rng_state().numel()
    if states is not None and (states.dtype != torch.uint8 or states.ndim != 2 or states.shape[1] != size):
        raise InputError("its states of the random number generator are not those of this version of torch")
    return Truth(images, labels, order, states, about["record"], about["date"], about["days"])
