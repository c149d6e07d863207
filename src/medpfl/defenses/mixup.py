"""Training on mixtures of images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from medpfl.core.drawn_layers import last_linear
from medpfl.core.errors import InputError, check_positive
from medpfl.core.roles import Defense, State
from medpfl.core.spec import shown
from medpfl.core.types import Batch

__all__ = ["Mixup"]


@dataclass(frozen=True, repr=False)
class Mixup(Defense):
    """Training on mixtures of two images and their labels, instead of the images.

    Mixup (Zhang et al. 2018, arXiv:1710.09412, section 2): ``w x_i + (1 - w) x_j``, where j is another image in the
    batch and w comes from Beta(alpha, alpha). Here w is mirrored to at least 1/2 and drawn for each image. Labels
    become probabilities (N, K). Huang et al. 2021 (arXiv:2112.00059) study it as a defense.

    Promises that a reconstruction shows a mixture. This is no encryption: a mixture with weight 0.8 easily shows who
    the patient is. Breaks: attacks reconstruct mixtures as they do images, and separate several rounds' mixtures of
    the same image (Carlini et al. 2021, arXiv:2011.05315, on the stronger InstaHide).

    Attributes:
        alpha: parameter of the Beta distribution, above 0; 1 is uniform, small values hardly mix.

    Raises:
        InputError: if `alpha` is not above 0. In a round: if there are fewer than two images, or the model has no
            linear layer, which tells the number of classes.
    """

    alpha: float = shown(1.0)

    def __post_init__(self) -> None:
        check_positive(alpha=self.alpha)

    def init(self) -> State:
        """Return a state without the number of classes, which is not known yet."""
        return {"classes": 0}

    def model(self, value: nn.Module, state: State, generator: torch.Generator) -> tuple[nn.Module, State]:
        """Return the model unchanged, and store its number of outputs."""
        return value, {**state, "classes": last_linear(value, "Mixup")[1].out_features}

    def batch(self, value: Batch, state: State, generator: torch.Generator) -> tuple[Batch, State]:
        """Mix the images; the labels become probabilities (N, K)."""
        count, images = len(value), value.images
        if count < 2:
            raise InputError("Mixup needs two images or more in a round: it cannot mix one with itself")
        labels = value.labels
        if labels.ndim == 1:
            labels = functional.one_hot(labels, state["classes"]).to(images)
        turn = int(torch.randint(1, count, (), generator=generator))
        shuffled = torch.randperm(count, generator=generator)
        other = torch.empty_like(shuffled).scatter_(0, shuffled, shuffled.roll(turn))
        weight = _beta(self.alpha, count, generator).to(images)
        weight = torch.maximum(weight, 1 - weight)
        over = weight.view(-1, *[1] * (images.ndim - 1))
        mixed = over * images + (1 - over) * images[other]
        return Batch(mixed.clamp(0, 1), weight[:, None] * labels + (1 - weight[:, None]) * labels[other]), state


def _beta(alpha: float, count: int, generator: torch.Generator) -> torch.Tensor:
    """Draw Beta(alpha, alpha) values (count,), by inverse transform sampling."""
    from scipy.special import betaincinv

    uniform = torch.rand(count, generator=generator, dtype=torch.float64)
    return torch.as_tensor(betaincinv(alpha, alpha, uniform.numpy()))
