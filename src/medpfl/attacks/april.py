"""APRIL: attention privacy leakage from a vision transformer's patch embedding."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medpfl.attacks.inversion.patch_embedding import PatchEmbedding, embedding_of
from medpfl.attacks.inversion.recursion import check_plans
from medpfl.attacks.matching.labels import LastLayer
from medpfl.core.plan import Plan
from medpfl.core.roles import Attack
from medpfl.core.types import Ended, Observation, Reconstruction, Weights

__all__ = ["APRIL"]

_CONVERGED = 1e-6
"""Relative squared distance from the projection's gradient below which the patches explain it."""
_MEAN, _SPREAD = 0.5, 0.3
"""Prior mean and standard deviation for pixels in [0, 1]."""
_OTHERS = 0.1
"""Precision lost to the differences between a batch's images, relative to the tokens' mean squared gradient."""


@dataclass(frozen=True, repr=False)
class APRIL(Attack):
    """Linear solution for image patches, from the gradients of the patch projection and the learned positions.

    Source: Lu, Zhang, Zhao, He and Cheng, "APRIL: Finding the Achilles' Heel on Privacy for Vision Transformers", CVPR
    2022 (arXiv:2112.14087): a learned position receives the gradient of the token to which it is added. The authors
    solve the attention layer for its inputs, which requires an attention layer without normalization before it. Here
    the projection itself is solved, whatever follows it. For patches x_t with token gradients g_t, the projection's
    weight W has the gradient dL/dW = sum_t g_t x_t^T. With g known, these are linear equations for x.
    Needs: the update, the plan, the model; one gradient.
    Batches: a position receives the sum of its gradients over the images. The equations then give one image, a mean of
    the batch weighted by these gradients, which is the guess for each of its images. It rarely reaches the threshold of
    success; searches may begin there.
    Applies to: models that cut the image into patches by a convolution with at least as many channels as patches, and
    add a learned position to each patch (ViTs from torchvision, timm and MONAI, and models built on them; images and
    volumes). For these the solution is exact for one image. For other models it raises `InputError` with the reason.
    Noise: estimated from the part of the update that no patches explain, and weighed against a prior for pixels (mean
    0.5, standard deviation 0.3).
    Disclosures: public maps (permutations, signs, scalings, rotations) are undone before the attack sees the update
    (`medpfl.core.channels.decoding`). The attack uses nothing else from the channel: a common factor cancels,
    everything else counts as noise, and a coordinate that was not sent counts as a zero gradient.
    """

    specialized = True

    def check(self, model: nn.Module, plans: tuple[Plan, ...], image_shape: tuple[int, ...]) -> None:
        """Raise `InputError` if the attack does not apply."""
        check_plans(plans, batches=True)
        embedding_of(model, Weights.of(model), image_shape, torch.Generator())

    def __call__(self, seen: Observation, generator: torch.Generator) -> Reconstruction:
        """Reconstruct the image of each victim."""
        view = seen.views[0]
        check_plans(view.plans, batches=True)
        found = embedding_of(seen.model, view.weights, seen.image_shape, generator)
        sent = view.update.tensors
        tokens = sent[found.positions].double().reshape(len(seen), -1, sent[found.positions].shape[-1])
        pull = tokens[:, found.first : found.first + torch.Size(found.grid).numel()]
        weight = sent[found.weight].double().flatten(2)
        patches, loss = _solved(pull, weight, found, seen.num_images, torch.finfo(sent[found.weight].dtype).eps)
        images = ((found.joined(patches) - found.shift) / found.factor).view(len(seen), *found.shape)
        if seen.image_shape[0] == 1:  # a gray image may enter as three equal channels
            images = images.mean(1, keepdim=True)
        guesses = images.to(sent[found.weight]).nan_to_num(_MEAN, _MEAN, _MEAN).clamp(0, 1)[:, None]
        guesses = guesses.repeat_interleave(seen.num_images, 1)
        dummy = torch.full_like(guesses[:1, 0], _MEAN)
        classes = seen.labels if seen.labels is not None else LastLayer().infer(seen, dummy)
        none = torch.zeros(len(seen), dtype=torch.long, device=loss.device)
        ended: list[Ended] = [_why(value) for value in loss.tolist()]
        return Reconstruction(guesses, classes, loss.to(guesses), none, none + 1, tuple(ended))


def _why(loss: float) -> Ended:
    if math.isnan(loss):
        return "nonfinite"
    return "converged" if loss < _CONVERGED else "stalled"


def _solved(pull: Tensor, weight: Tensor, found: PatchEmbedding, images: int, epsilon: float) -> tuple[Tensor, Tensor]:
    """Return the most likely patches (V, T, K), and the unexplained share (V,) of the weight's gradient.

    The share is NaN where the update is not finite.

    Args:
        pull: (V, T, D) gradients with respect to the tokens.
        weight: (V, D, K) gradient of the projection's weight.
        found: patch embedding; it determines the prior for pixels.
        images: number of images in the batch.
        epsilon: machine epsilon of the sent dtype.
    """
    finite = pull.flatten(1).isfinite().all(1) & weight.flatten(1).isfinite().all(1)
    # The SVD of a stack fails if one victim is not finite.
    pull, weight = (t.where(finite[:, None, None], 0.0) for t in (pull, weight))
    size = weight.square().sum((1, 2))
    mean, spread = found.cut(torch.stack([_MEAN * found.factor + found.shift, _SPREAD * found.factor.abs()]).double())
    left, values, right = torch.linalg.svd(pull.mT, full_matrices=False)  # (V, D, T), (V, T), (V, T, T)
    rest = weight - pull.mT @ mean
    along = left.mT @ rest
    freedoms = max(pull.shape[2] - pull.shape[1], 1) * weight.shape[2]
    outside = (rest - left @ along).square().sum((1, 2)) / freedoms
    noise = torch.maximum(outside, epsilon**2 * size / weight[0].numel())[:, None, None]
    # One deviation for each column of the weight: a pixel is scaled alike in all patches.
    others = _OTHERS * (1 - 1 / images) * pull.square().sum(2).mean(1)
    precision = noise / spread.mean(0).square() + others[:, None, None]
    patches = mean + right.mT @ (values[:, :, None] * along / (values[:, :, None].square() + precision))
    loss = (weight - pull.mT @ patches).square().sum((1, 2)) / size
    return patches, loss.where(finite, torch.nan)
