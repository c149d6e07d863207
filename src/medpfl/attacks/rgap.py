"""R-GAP: a recursive gradient attack on privacy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from medpfl.attacks.inversion.chain import chain_of
from medpfl.attacks.inversion.recursion import check_plans, invert
from medpfl.attacks.matching.residual import judged
from medpfl.core.errors import check_positive
from medpfl.core.plan import Plan
from medpfl.core.roles import Attack
from medpfl.core.types import Ended, Observation, Reconstruction, Weights

__all__ = ["RGAP"]

_CONVERGED = 1e-7
"""Relative squared distance from the sent update below which a guess explains it."""


@dataclass(frozen=True, repr=False)
class RGAP(Attack):
    """Recursive solution for each layer's inputs, from the first linear layer back to the image.

    Source: Zhu and Blaschko, "R-GAP: Recursive Gradient Attack on Privacy", ICLR 2021 (arXiv:2010.07733), sections 3.2
    and 3.3. If the model's first layer is linear, the attack is Phong et al. 2018 (IEEE TIFS 13(5)) and proposition 3.1
    of Geiping et al. 2020 (arXiv:2003.14053), and finds the image at once.
    Needs: the update, the plan, the model; one gradient of one image.
    Applies to: chains of Conv2d, invertible activations and Linear layers in which each convolution has at least as
    many equations (outputs and weights) as inputs. For these the solution is exact. Otherwise the attack raises
    `InputError` before it starts, with the layer and the reason (pooling, strides, sums, batches, local steps, no
    bias). Noise and rank deficiency found later show in `Reconstruction.loss` and `ended`.
    Deviates:

    - The recursion begins at the first linear layer with a bias, whatever follows it. It takes the gradient with
      respect to that layer's outputs from the bias, and the inputs by least squares over all rows. The paper derives
      the output gradient from the loss.
    - A convolution's outputs and gradients are solved jointly by conjugate gradients, without matrices. Each equation
      is weighted by its error: the update's noise, as the first layer's deviation from rank one shows it, and its
      propagation to later layers.
    - Inputs have a prior: natural images for the image, and the statistics of made-up images for hidden values. It
      matters only where noise leaves the inputs open.

    Disclosures: public maps (permutations, signs, scalings, rotations) are undone before the attack sees the update
    (`medpfl.core.channels.decoding`). The attack uses nothing else of the channel: a common factor (clipping) cancels,
    everything else counts as noise, and a coordinate that was not sent counts as a zero gradient.

    Attributes:
        steps: maximum least-squares iterations per layer.
        tolerance: least-squares tolerance.
    """

    steps: int = 1000
    tolerance: float = 1e-6
    specialized = True

    def __post_init__(self) -> None:
        check_positive(steps=self.steps, tolerance=self.tolerance)

    def check(self, model: nn.Module, plans: tuple[Plan, ...], image_shape: tuple[int, ...]) -> None:
        """Raise `InputError` if the attack does not apply."""
        check_plans(plans)
        chain_of(model, Weights.of(model), image_shape, torch.Generator())

    def __call__(self, seen: Observation, generator: torch.Generator) -> Reconstruction:
        """Reconstruct the image of each victim."""
        found = invert(seen, generator, self.steps, self.tolerance)
        like = next(iter(seen.views[0].update.tensors.values()))
        finite = found.images.flatten(1).isfinite().all(1)
        guesses = found.images.to(like).nan_to_num(0.5, 0.5, 0.5).clamp(0, 1)
        classes, loss = judged(seen, guesses)
        ended: list[Ended] = []
        for one in zip(finite.tolist(), loss.tolist(), found.steps.tolist(), strict=True):
            ended.append(self._why(*one))
        return Reconstruction(guesses, classes, loss, found.steps, found.total + 1, tuple(ended))

    def _why(self, finite: bool, loss: float, steps: int) -> Ended:
        if not finite:
            return "nonfinite"
        if loss < _CONVERGED:
            return "converged"
        return "max_steps" if steps >= self.steps else "stalled"
