"""The images of a watched training: which are the same, their labels, order and range of pixels."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from medpfl.core.records.origin import Pixels
from medpfl.core.records.truth import Truth
from medpfl.recording.watching.ranges import Ranges

__all__ = ["Intake"]


class Intake:
    """The images that entered a model in steps. Each has a number by its content and label."""

    def __init__(self) -> None:
        self.image_shape: tuple[int, ...] | None = None
        self._known: dict[bytes, int] = {}
        self._images: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._order: list[int] = []
        self._ranges = Ranges()

    def take(self, inputs: Tensor, labels: Tensor | None, keep: bool) -> None:
        """Give each image of a batch a number, and keep them and their labels if asked.

        Args:
            inputs: images (N, C, H, W) or (N, C, D, H, W) as they entered the model.
            labels: their labels (N, ...), if they were seen.
            keep: True keeps pixels and labels for a truth file; images without labels are never kept.
        """
        images = inputs.cpu() if inputs.is_floating_point() else inputs.float().cpu()
        self.image_shape = tuple(images.shape[1:])
        self._ranges.take(images)
        for place, image in enumerate(images):
            label = None if labels is None else labels[place]
            digest = _digest(image, label)
            if digest not in self._known:
                self._known[digest] = len(self._known)
                if keep and label is not None:
                    self._images.append(image.clone())
                    self._labels.append(label.clone())
            self._order.append(self._known[digest])

    def different(self) -> int | None:
        """Return the number of different images if the steps are whole epochs over them; else ``None``."""
        count = len(self._known)
        if not count or len(self._order) % count:
            return None
        epochs = [self._order[i : i + count] for i in range(0, len(self._order), count)]
        return count if all(len(set(epoch)) == count for epoch in epochs) else None

    def truth(self, generators: Tensor | None, days: int) -> Truth | None:
        """Return the kept images with labels and order; ``None`` unless all were kept.

        Args:
            generators: state of torch's generator before each step, if all are known.
            days: days for which the truth may be kept.
        """
        if not self._images or len(self._images) != len(self._known):
            return None
        order = torch.tensor(self._order)
        return Truth(torch.stack(self._images), torch.stack(self._labels), order, generators, days=days)

    @property
    def pixels(self) -> Pixels | None:
        """The mapping by which pixels entered the model, inferred from their values."""
        return self._ranges.pixels


def _digest(image: Tensor, label: Tensor | None) -> bytes:
    key = hashlib.blake2b(_bytes(image), digest_size=16)
    key.update(b"" if label is None else _bytes(label))
    return key.digest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
