"""Utility: how well a model tells classes apart on images that it was not trained on."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from medpfl.metrics.rates import cluster_interval

__all__ = ["auroc", "balanced_accuracy", "cross_entropy", "right", "utility"]


def utility(logits: Tensor, labels: Tensor, clusters: Sequence[Hashable] | None = None) -> dict[str, float | None]:
    """Return all scores for a set of images.

    The interval for accuracy comes from `cluster_interval`. The interval for balanced accuracy is the mean of the
    classes' intervals, each at the confidence ``1 - 0.05 / classes``, so that all hold together. It is exact, and a
    little wide.

    Args:
        logits: the model's logits (N, K).
        labels: classes (N,).
        clusters: each image's cluster, for example its patient; ``None``: every image is its own cluster.

    Returns:
        accuracy and balanced_accuracy with ``_low`` and ``_high``, auroc, loss and images; ``None`` for an undefined
        score, such as AUROC if all images have the same class.
    """
    hits, own = right(logits, labels), list(range(len(labels)) if clusters is None else clusters)
    low, high = cluster_interval(hits.tolist(), own)
    ends = _ends(hits, labels, own)
    return {
        "accuracy": float(hits.double().mean()),
        "accuracy_low": low,
        "accuracy_high": high,
        "balanced_accuracy": balanced_accuracy(logits, labels),
        "balanced_accuracy_low": sum(end[0] for end in ends) / len(ends),
        "balanced_accuracy_high": sum(end[1] for end in ends) / len(ends),
        "auroc": auroc(logits, labels),
        "loss": cross_entropy(logits, labels),
        "images": float(len(labels)),
    }


def right(logits: Tensor, labels: Tensor) -> Tensor:
    """Return booleans (N,), true if the largest logit is the label's."""
    return logits.argmax(1) == labels


def balanced_accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the mean recall over the classes that have images."""
    hits = right(logits, labels).double()
    return float(torch.stack([hits[labels == label].mean() for label in labels.unique()]).mean())


def auroc(logits: Tensor, labels: Tensor) -> float | None:
    """Return the area under the ROC curve.

    This is how often an image has a higher score for its class than an image from another class: Mann and Whitney's
    statistic; ties count one half. With two classes, the score is the difference between the logits. With more, each
    class's softmax is scored against all others, and the areas are averaged over the classes that have images.

    Returns:
        The area; ``None`` if all images have the same class, or a logit is not a number.
    """
    present = labels.unique()
    if len(present) < 2 or bool(logits.isnan().any()):
        return None
    if logits.shape[1] == 2:
        return _area(logits[:, 1].double() - logits[:, 0].double(), labels == 1)
    shares = logits.double().softmax(1)
    areas = [_area(shares[:, label], labels == label) for label in present.tolist()]
    return sum(areas) / len(areas)


def cross_entropy(logits: Tensor, labels: Tensor) -> float:
    """Return the mean cross entropy in nats."""
    return float(torch.nn.functional.cross_entropy(logits.double(), labels))


def _area(score: Tensor, positive: Tensor) -> float:
    _, place, ties = score.double().unique(return_inverse=True, return_counts=True)
    ranks, count = (ties.cumsum(0) - (ties - 1) / 2)[place], int(positive.sum())
    wins = float(ranks[positive].sum()) - count * (count + 1) / 2
    return wins / (count * (len(score) - count))


def _ends(hits: Tensor, labels: Tensor, clusters: list[Hashable]) -> list[tuple[float, float]]:
    """Return the interval of each class's recall."""
    present = labels.unique().tolist()
    places = [(labels == label).nonzero()[:, 0].tolist() for label in present]
    return [cluster_interval(hits[own].tolist(), [clusters[i] for i in own], 1 - 0.05 / len(present)) for own in places]
