"""R-GAP for deep networks with ReLUs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import Node

from medpfl.attacks.deep.backward_walk import peel
from medpfl.attacks.deep.contrast import stated_variances, with_contrast
from medpfl.attacks.deep.front_search import Band, Front
from medpfl.attacks.deep.graph import Graph, exact, graph_of
from medpfl.attacks.deep.walk_state import Peeled
from medpfl.attacks.inversion.gaussian_prior import expected_images
from medpfl.attacks.inversion.recursion import check_plans
from medpfl.attacks.matching.residual import judged
from medpfl.attacks.optimize.coordinates import Spectral
from medpfl.attacks.optimize.lbfgs import LBFGS
from medpfl.attacks.optimize.optimizer import Solution
from medpfl.attacks.optimize.stacks import variables_like
from medpfl.attacks.rgap import RGAP
from medpfl.core import progress
from medpfl.core.errors import InputError, check_positive
from medpfl.core.experiments.limits import plain_ascii
from medpfl.core.plan import Plan
from medpfl.core.roles import Attack
from medpfl.core.types import Batch, Ended, Observation, Reconstruction, Weights
from medpfl.federated.local import local_update

__all__ = ["DeepRGAP"]

_EXPLAINED = 1e-3
"""Largest relative squared distance from the sent update at which a guess explains it."""

_TOGETHER = 64
"""Number of victims whose images are searched for in one stack."""

_SHARE = 1 / 3
"""Smallest number of recovered values with which an image is searched for, relative to the image's own."""

_BASIS = Spectral(exponent=2.0, corner=4.0)
_GRAY, _NOISE = 0.5, 0.1
"""Mean of the images at the start of a search, and deviation of their coordinates under batch norm in train mode."""


@dataclass(frozen=True, repr=False)
class DeepRGAP(Attack):
    """Layer-by-layer recovery of a deep network's hidden values, then a search for the image that produces them.

    Source: Zhu and Blaschko, "R-GAP: Recursive Gradient Attack on Privacy", ICLR 2021 (arXiv:2010.07733), section 3:
    once the loss's derivative with respect to a layer's outputs is known, the gradient of its weight is linear in its
    inputs. R-GAP was made for chains of invertible activations. This attack also passes sums, strides, batch norm,
    ReLUs and average pooling, because it uses no outputs: in a deep layer, the gradient alone gives many
    more equations than the layer has inputs (`medpfl.attacks.deep.backward_walk`). The recursion ends at max
    pooling or at a layer with more inputs than equations. There the attack searches for an image whose values equal the
    recovered ones. The search runs only the part of the network before that point, and matches no gradient.
    Needs: the update, the plan, the model; one gradient of one image.
    Applies to: networks that end in a linear layer with a bias, after a flattened map or an average over at most 2 x 2
    positions of a 3 x 3 convolution, and in which at least a third as many values as the image has can be recovered.
    Examples are ResNet-18 and ResNet-34 in eval mode, for images of at most 64 pixels a side, and ConvNet in either
    mode for 32 pixels, whose average pooling `medpfl.attacks.deep.pooled_convolution` passes. Otherwise it raises
    `InputError` before it starts, with the layer and the reason.
    Train mode: batch norm hides the image's contrast and the size of the recovered values. Both are set from the batch
    norms' statistics if they are sent. Otherwise the size is that of made-up images, and the pixels fill [0, 1].
    Gray images (`Observation.gray`) are searched for in gray.
    Noise: float32 rounding does not disturb the recovery; noise does. Values lost to noise are left to the search,
    which then finds another image. `Reconstruction.loss` shows this.
    Disclosures: public maps (permutations, signs, scalings, rotations) are undone before the attack sees the update
    (`medpfl.core.channels.decoding`). The attack uses nothing else of the channel: a common factor (clipping) cancels,
    everything else counts as noise, and a coordinate that was not sent counts as a zero gradient.

    Attributes:
        steps: maximum search steps.
        tolerance: squared distance from the recovered values, relative to their size, at which the search ends.
    """

    steps: int = 500
    tolerance: float = 1e-7
    specialized = True

    def __post_init__(self) -> None:
        check_positive(steps=self.steps, tolerance=self.tolerance)

    def check(self, model: nn.Module, plans: tuple[Plan, ...], image_shape: tuple[int, ...]) -> None:
        """Raise `InputError` if the attack does not apply to the model, or if RGAP does.

        The check recovers hidden values from the undefended gradient of a made-up image. It says nothing about the
        values that a defense leaves.
        """
        check_plans(plans)
        if RGAP().accepts(model, plans, image_shape):
            raise InputError("RGAP applies to this model and inverts every layer: attack with RGAP")
        weights = Weights.of(model)
        graph = graph_of(model, weights, image_shape)
        if len(graph.shapes[graph.output]) != 2:
            raise InputError("this model gives a class for every pixel: attack with GradInv")
        drawn = expected_images(image_shape, torch.device("cpu")).draw(1, torch.Generator().manual_seed(0))
        image = drawn.clamp(0, 1).view(1, *image_shape)
        with torch.no_grad():
            made_of, made_of_less = (graph.run(x, graph.nodes, graph.fixed) for x in (image, image / 2))
        label = made_of[graph.output].argmin(1)  # the gradient vanishes for a class that the model is sure of
        like = next(iter(weights.parameters.values()))
        made = local_update(model, Batch(image.to(like), label.to(like.device)), Plan(mode=plans[0].mode), weights)
        read = peel(graph, exact(made.tensors))
        rim = read.rim(graph)  # values that are 0, or the same for every image, reveal little
        values = sum(int(((made_of[k] != 0) & (made_of[k] != made_of_less[k])).sum()) for k in rim)
        if values < _SHARE * image.numel():
            reason = read.reasons[0] if read.reasons else "its first layers are dead"
            raise InputError(
                f"the gradient reveals at most {values} values of a layer, too few for an image with {image.numel()} "
                f"values: {reason}; attack with GradInv"
            )

    def __call__(self, seen: Observation, generator: torch.Generator) -> Reconstruction:
        """Reconstruct the image of each victim."""
        view = seen.views[0]
        check_plans(view.plans)
        graph = graph_of(seen.model, view.weights, seen.image_shape)
        read, finite, stated = [], [], []
        for v in range(len(seen)):
            progress.report(v / len(seen) / 2, lambda v=v: f"image {v + 1} of {len(seen)}")
            sent = exact({k: t[v] for k, t in view.update.tensors.items()})
            finite.append(all(bool(t.isfinite().all()) for t in sent.values()))
            after = {k: t[v] for k, t in (view.update.buffers or {}).items()}
            stated.append(stated_variances(graph, seen.model, view.weights.buffers, after))
            read.append(peel(graph, sent, variances=stated[-1]) if finite[-1] else Peeled({}, ()))
        like = variables_like(seen)
        guesses = like.new_full((len(seen), 1, *seen.image_shape), _GRAY)
        steps, evaluations = torch.zeros(2, len(seen), dtype=torch.long)
        ended: list[Ended] = ["stalled" if one else "nonfinite" for one in finite]
        unread = [_unread(graph, *pair) for pair in zip(read, finite, strict=True)]
        with progress.part(0.5, 1.0):
            for rim, victims in _alike(graph, read):
                targets = {k: torch.stack([read[v].known[k] for v in victims.tolist()]).to(like) for k in rim}
                images, found = self._images(graph, targets, Band(gray=seen.gray), generator)
                steps[victims], evaluations[victims] = found.steps, found.evaluations
                for v, image, why in zip(victims.tolist(), images, found.ended, strict=True):
                    guesses[v], ended[v] = with_contrast(graph, image.cpu(), stated[v]), why
        guesses = guesses.clamp(0, 1)
        classes, loss = judged(seen, guesses)
        for v, (why, distance) in enumerate(zip(ended, loss.tolist(), strict=True)):
            if why == "converged" and not distance < _EXPLAINED:  # the recovered values were wrong
                ended[v] = "stalled"
        return Reconstruction(guesses, classes, loss, steps, evaluations + 1, tuple(ended), unread=tuple(unread))

    def _images(
        self, graph: Graph, targets: dict[Node, Tensor], band: Band, generator: torch.Generator
    ) -> tuple[Tensor, Solution]:
        """Search for images (A, 1, C, H, W) whose values at the given nodes equal the targets (A, ...).

        Return the images and the solution.
        """
        first = next(iter(targets.values()))
        if graph.image in targets:
            none = torch.zeros(len(first), dtype=torch.long)
            return first, Solution(first.flatten(1), none.to(first), none, none, ("converged",) * len(first))
        front = Front(graph, targets, _BASIS, band)
        start = front.variables(first.new_full((len(first), *graph.shapes[graph.image]), _GRAY))
        if graph.mixes:  # a gray image has no contrast that batch norm could normalize
            start = start + _NOISE * torch.randn(start.shape, generator=generator).to(start)
        found = LBFGS(tolerance=self.tolerance, patience=50).minimize(front, start, self.steps)
        return front.images(found.z), found


def _unread(graph: Graph, read: Peeled, finite: bool) -> str:
    """Return why nothing was read of an update; ``""`` if something was."""
    if not finite:
        return "the update holds values that are not finite"
    if read.rim(graph):
        return ""
    return plain_ascii(read.reasons[0] if read.reasons else "all recovered values are behind dead layers")


def _alike(graph: Graph, read: list[Peeled]) -> Iterator[tuple[tuple[Node, ...], Tensor]]:
    """Yield the nodes up to which values were recovered, and a stack of victims (A,) that share them.

    Victims without recovered values are left out.
    """
    rims: dict[tuple[Node, ...], list[int]] = defaultdict(list)
    for v, one in enumerate(read):
        rims[one.rim(graph)].append(v)
    for rim, victims in rims.items():
        if rim:
            yield from ((rim, some) for some in torch.tensor(victims).split(1 if graph.mixes else _TOGETHER))
