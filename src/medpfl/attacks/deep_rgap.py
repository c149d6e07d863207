"""R-GAP through deep rectified networks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import Node

from medpfl.attacks.inversion.backward_walk import Peeled, peel
from medpfl.attacks.inversion.front_search import Front
from medpfl.attacks.inversion.gaussian_prior import expected_images
from medpfl.attacks.inversion.graph import Graph, exact, graph_of
from medpfl.attacks.inversion.recursion import check_plans
from medpfl.attacks.matching.residual import judged
from medpfl.attacks.optimize.coordinates import Spectral
from medpfl.attacks.optimize.lbfgs import LBFGS
from medpfl.attacks.optimize.optimizer import Solution
from medpfl.attacks.optimize.stacks import variables_like
from medpfl.attacks.rgap import RGAP
from medpfl.core import progress
from medpfl.core.errors import InputError, check_positive
from medpfl.core.plan import Plan
from medpfl.core.roles import Attack
from medpfl.core.types import Batch, Ended, Observation, Reconstruction, Weights
from medpfl.federated.local import local_update

__all__ = ["DeepRGAP"]

_EXPLAINED = 1e-3
"""Relative squared distance from the sent update up to which a guess explains it."""

_TOGETHER = 64
"""Victims whose images are searched for in one stack."""

_BASIS = Spectral(exponent=2.0, corner=4.0)
_GRAY = 0.5


@dataclass(frozen=True, repr=False)
class DeepRGAP(Attack):
    """Reads what a deep network computed, layer by layer from the last back, then looks for the image that gives it.

    Source: the recursion is that of Zhu and Blaschko, "R-GAP: Recursive Gradient Attack on Privacy", ICLR 2021
    (arXiv:2010.07733), section 3: a layer's inputs are linear in its weight's gradient, once the derivative of the loss
    by its outputs is known. It was made for chains whose activations can be inverted. Here it goes by way of sums
    and strides, batch norm in eval mode, rectifiers and average pooling, since it takes nothing from outputs: of a
    deep layer the gradient alone has many more equations than the layer has inputs
    (`medpfl.attacks.inversion.backward_walk`). Where it ends, at max pooling or at a layer with more inputs than
    equations, the image is searched for whose values there are those that were read: the network in front of that place
    is run, and no gradient is matched. Needs: the update, the plan, the model; one gradient of one image. Applies to
    networks that end in a linear layer with a bias, over a flat map or an average of at most 2 by 2 places of a 3 by 3
    convolution, and whose layers can be read back to at least half as many values as the image has: ResNet-18 and
    ResNet-34 in eval mode, of images of at most 64 pixels a side. Else it raises `InputError` before it starts, with
    the layer and the reason. It reads through float32's rounding, and not through noise: what cannot be read of an
    update is left to the search, which then finds something else, and that shows in `Reconstruction.loss`.
    Public maps that the defense discloses (orders, signs, scalings, rotations) are undone before the attack sees the
    update (`medpfl.core.channels.decoding`). What else a channel says is not used: one common factor (clipping)
    cancels, the rest counts as noise, and a coordinate that was not sent as a gradient of zero.

    Attributes:
        steps: of the search, at most.
        tolerance: squared distance of what was read, relative to its size, at which the search ends.
    """

    steps: int = 500
    tolerance: float = 1e-7
    specialized = True

    def __post_init__(self) -> None:
        check_positive(steps=self.steps, tolerance=self.tolerance)

    def check(self, model: nn.Module, plans: tuple[Plan, ...], image_shape: tuple[int, ...]) -> None:
        """Raises `InputError` where it does not apply, as its reading of a made-up image shows, and where RGAP does.

        The reading is of an undefended gradient: it says nothing of what a defense leaves.
        """
        check_plans(plans)
        weights = Weights.of(model)
        graph = graph_of(model, weights, image_shape)
        if len(graph.shapes[graph.output]) != 2:
            raise InputError("this model gives a class for every pixel: attack with GradInv")
        drawn = expected_images(image_shape, torch.device("cpu")).draw(1, torch.Generator().manual_seed(0))
        image = drawn.clamp(0, 1).view(1, *image_shape)
        with torch.no_grad():
            made_of, made_of_less = (graph.run(x, graph.nodes, graph.fixed) for x in (image, image / 2))
        label = made_of[graph.output].argmin(1)  # a class that the model is sure of has no gradient
        like = next(iter(weights.parameters.values()))
        made = local_update(model, Batch(image.to(like), label.to(like.device)), Plan(mode=plans[0].mode), weights)
        read = peel(graph, exact(made.tensors))
        rim = read.rim(graph)  # a value that is 0, or the same whatever the image is, says little of it
        values = sum(int(((made_of[k] != 0) & (made_of[k] != made_of_less[k])).sum()) for k in rim)
        if values < image.numel() / 2:
            reason = read.reasons[0] if read.reasons else "its first layers are dead"
            raise InputError(
                f"of a gradient no more than {values} values of a layer can be read back, of an image that has "
                f"{image.numel()}: {reason}; attack with GradInv"
            )
        if _solved(model, plans, image_shape):
            raise InputError("this model is a chain of layers that RGAP inverts as it is: attack with RGAP")

    def __call__(self, seen: Observation, generator: torch.Generator) -> Reconstruction:
        """The attack."""
        view = seen.views[0]
        check_plans(view.plans)
        graph = graph_of(seen.model, view.weights, seen.image_shape)
        read, finite = [], []
        for v in range(len(seen)):
            progress.report(v / len(seen) / 2)
            sent = exact({k: t[v] for k, t in view.update.tensors.items()})
            finite.append(all(bool(t.isfinite().all()) for t in sent.values()))
            read.append(peel(graph, sent) if finite[-1] else Peeled({}, ()))
        like = variables_like(seen)
        guesses = like.new_full((len(seen), 1, *seen.image_shape), _GRAY)
        steps, evaluations = torch.zeros(2, len(seen), dtype=torch.long)
        ended: list[Ended] = ["stalled" if one else "nonfinite" for one in finite]
        with progress.part(0.5, 1.0):
            for rim, victims in _alike(graph, read):
                targets = {k: torch.stack([read[v].known[k] for v in victims.tolist()]).to(like) for k in rim}
                images, found = self._images(graph, targets)
                guesses[victims], steps[victims], evaluations[victims] = images, found.steps, found.evaluations
                for v, why in zip(victims.tolist(), found.ended, strict=True):
                    ended[v] = why
        guesses = guesses.clamp(0, 1)
        classes, loss = judged(seen, guesses)
        for v, (why, distance) in enumerate(zip(ended, loss.tolist(), strict=True)):
            if why == "converged" and not distance < _EXPLAINED:  # what was read was misread
                ended[v] = "stalled"
        return Reconstruction(guesses, classes, loss, steps, evaluations + 1, tuple(ended))

    def _images(self, graph: Graph, targets: dict[Node, Tensor]) -> tuple[Tensor, Solution]:
        """Images (A, 1, C, H, W) whose values at some nodes are the given ones (A, ...), and how they were found."""
        first = next(iter(targets.values()))
        if graph.image in targets:
            none = torch.zeros(len(first), dtype=torch.long)
            return first, Solution(first.flatten(1), none.to(first), none, none, ("converged",) * len(first))
        front = Front(graph, targets, _BASIS)
        gray = first.new_full((len(first), *graph.shapes[graph.image]), _GRAY)
        found = LBFGS(tolerance=self.tolerance, patience=50).minimize(front, front.variables(gray), self.steps)
        return front.images(found.z), found


def _solved(model: nn.Module, plans: tuple[Plan, ...], image_shape: tuple[int, ...]) -> bool:
    """Whether `medpfl.attacks.RGAP` takes a model."""
    try:
        RGAP().check(model, plans, image_shape)
    except InputError:
        return False
    return True


def _alike(graph: Graph, read: list[Peeled]) -> Iterator[tuple[tuple[Node, ...], Tensor]]:
    """The nodes up to which victims (A,) were read, all of a stack alike; victims of whom nothing was are left out."""
    rims: dict[tuple[Node, ...], list[int]] = defaultdict(list)
    for v, one in enumerate(read):
        rims[one.rim(graph)].append(v)
    for rim, victims in rims.items():
        if rim:
            yield from ((rim, some) for some in torch.tensor(victims).split(_TOGETHER))
