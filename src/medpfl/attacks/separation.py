"""Separation: every image of a batch from one gradient, batch norm in train mode included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import Node

from medpfl.attacks.deep.backward_walk import peel
from medpfl.attacks.deep.capacity import capacity
from medpfl.attacks.deep.contrast import stated_variances, with_contrast
from medpfl.attacks.deep.front_search import Band, Front
from medpfl.attacks.deep.graph import Graph, exact, graph_of
from medpfl.attacks.deep.separated_start import SeparatedStart, separated_start
from medpfl.attacks.deep.walk_state import Peeled
from medpfl.attacks.matching.residual import judged
from medpfl.attacks.optimize.coordinates import Spectral
from medpfl.attacks.optimize.lbfgs import LBFGS
from medpfl.attacks.optimize.optimizer import Solution
from medpfl.attacks.optimize.stacks import variables_like
from medpfl.core import progress
from medpfl.core.errors import InputError, check_positive
from medpfl.core.experiments.limits import plain_ascii
from medpfl.core.messages import counted
from medpfl.core.plan import Plan
from medpfl.core.roles import Attack
from medpfl.core.types import Ended, Observation, Reconstruction, Tensors, View

__all__ = ["Separation"]

_BASIS = Spectral(exponent=2.0, corner=4.0)
_STAGES = ((12.0, 0.03), (24.0, 0.01), (None, 0.01), (None, 1e-3), (None, 1e-4))
"""Highest frequency and weight for the total variation, one pair for each stage of the search."""

_GRAY = 0.5
"""Mean of the images at the start of a search, and pixel value where nothing was read."""

_COLORED = 0.55
"""Ratio of a color search's first objective to a gray one's, below which the images count as colored."""


@dataclass(frozen=True, eq=False)
class _Read:
    """Images (N, C, H, W), labels (N,), the search for the images, and the certificate of their values."""

    images: Tensor
    labels: Tensor
    search: Solution
    certificate: str


class _Unread(NamedTuple):
    """Why nothing was read of an update."""

    ended: Ended
    why: str


@dataclass(frozen=True, repr=False)
class Separation(Attack):
    """Recovery of every image's hidden values from one gradient of a batch, then a search for the images.

    Source: MedPFL. At a kernel weight that meets one position of each image, a convolution's gradient is a sum of one
    outer product per image. Its inputs are not negative and sparse, so linear programs find them one by one, and
    their zeros certify them (`medpfl.attacks.deep.sources`). The order of the images at all positions, their
    factors and the derivative by the logits follow by linear algebra
    (`medpfl.attacks.deep.separated_start`). The logits' derivative shows the labels. Layer by layer, the inputs of
    each earlier convolution follow from its gradient, through batch norm in train mode too
    (`medpfl.attacks.deep.backward_walk`). The search at the end runs only the first layers. It matches no
    gradient. At a linear layer before the last ReLU, the states of that ReLU tell the images apart instead, whatever
    the layer's inputs are: the images themselves, in a multilayer perceptron with one hidden layer
    (`medpfl.attacks.deep.switches`).
    Related: SPEAR (Dimitrov et al. 2024, arXiv:2403.03945) separates batches at linear layers by the zeros of the
    derivative; R-GAP (Zhu and Blaschko, ICLR 2021, arXiv:2010.07733) recovers one image layer by layer.
    Needs: the update, the plan, the model. Labels and other images are not used.
    Applies to: networks of convolutions, linear layers, batch norm in either mode, ReLUs, sums, strides and average
    pooling that end in a linear layer, with a hidden linear layer or a 3 x 3 convolution over 2 x 2 positions near the
    end, and fewer images than half of its inputs. Examples are multilayer perceptrons, and ResNet-18 and ResNet-34 for
    images of 32 and 64 pixels a side.
    Several local steps or clients: labels and the values at that late layer are still read, if every image enters once.
    In train mode, the attack also reads which images shared a batch; the batches' values are taken to have one size.
    Earlier values, and so the images, are read only if all gradients were taken at the same weights, without batch norm
    in train mode; otherwise the guess is gray, and the certificate says what was read.
    Train mode: batch norm hides the batch's contrast. It is set from the batch norm's statistics if they are sent, and
    otherwise so that the pixels fill [0, 1].
    Noise: rounding to float32 does not disturb it. Noise ends the walk first; where it leaves no source certified, the
    guess is gray and the attack ends as stalled.
    Disclosures: as for `DeepRGAP`.

    Attributes:
        steps: maximum search steps, a fifth of them in each of five stages.
    """

    steps: int = 600
    specialized = True

    def __post_init__(self) -> None:
        check_positive(steps=self.steps)

    def check(self, model: nn.Module, plans: tuple[Plan, ...], image_shape: tuple[int, ...]) -> None:
        """Raise `InputError` if the attack does not apply to the model or the plans, by count."""
        _check(plans)
        images, moved = sum(plan.images for plan in plans), any(plan.steps > 1 for plan in plans)
        found = capacity(model, image_shape, images, plans[0].mode, moved)
        if not found.applies:
            raise InputError(f"{counted(images, 'image')} cannot be read: {found.why}; attack with GradInv")

    def __call__(self, seen: Observation, generator: torch.Generator) -> Reconstruction:
        """Reconstruct the images of each victim."""
        _check(seen.views[0].plans)
        graph, batches = _graph(seen)
        like = variables_like(seen)
        guesses = like.new_full((len(seen), seen.num_images, *seen.image_shape), _GRAY)
        labels = torch.zeros(len(seen), seen.num_images, dtype=torch.long, device=like.device)
        steps, evaluations = torch.zeros(2, len(seen), dtype=torch.long)
        ended: list[Ended] = []
        certificates, unread = [""] * len(seen), [""] * len(seen)
        for v in range(len(seen)):
            with progress.part(v / len(seen), (v + 1) / len(seen)):
                own = torch.Generator().manual_seed(int(torch.randint(2**62, (1,), generator=generator)))
                found = self._read(seen, graph, batches, v, own)
            if not isinstance(found, _Read):
                ended.append(found.ended)
                unread[v] = plain_ascii(found.why)
                continue
            guesses[v], labels[v] = found.images.to(like), found.labels.to(labels)
            steps[v], evaluations[v] = found.search.steps[0], found.search.evaluations[0]
            ended.append(found.search.ended[0])
            certificates[v] = found.certificate
        guesses = guesses.clamp(0, 1)
        _, loss = judged(seen, guesses, labels if seen.labels is None else None)
        return Reconstruction(
            guesses,
            labels,
            loss,
            steps,
            evaluations + 1,
            tuple(ended),
            certificates=tuple(certificates),
            unread=tuple(unread),
        )

    def _read(
        self, seen: Observation, graph: Graph, batches: int, v: int, generator: torch.Generator
    ) -> _Read | _Unread:
        """Return what was read of a victim's update, or why nothing was."""
        view = seen.views[0]
        sent, moved = _gradients(view, v), any(plan.steps > 1 for plan in view.plans)
        if not all(bool(t.isfinite().all()) for t in sent.values()):
            return _Unread("nonfinite", "the update holds values that are not finite")
        try:
            begun = separated_start(graph, sent, batches, moved)
        except InputError as error:
            return _Unread("stalled", str(error))
        if batches > 1 or moved:
            labels = torch.cat([start.pull.argmin(1) for start in begun.starts])
            gray = begun.start.value.new_full((len(labels), *seen.image_shape), _GRAY)
            return _Read(gray, labels, _no_search(gray[None], "stalled"), _certificate(begun, None))
        read = peel(graph, sent, begun.start)
        targets = {k: read.known[k][None].to(variables_like(seen)) for k in read.rim(graph)}
        images, search = self._images(graph, targets, generator)
        after = {k: t[v] for k, t in (view.update.buffers or {}).items()}
        variances = stated_variances(graph, seen.model, view.weights.buffers, after)
        images = with_contrast(graph, images[0].cpu(), variances)
        return _Read(images, begun.start.pull.argmin(1), search, _certificate(begun, read))

    def _images(self, graph: Graph, targets: dict[Node, Tensor], generator: torch.Generator) -> tuple[Tensor, Solution]:
        """Search for images (1, N, C, H, W) whose values at the given nodes equal the targets."""
        like = next(iter(targets.values()))
        shape = graph.shapes[graph.image]
        if graph.image in targets:
            return like, _no_search(like, "converged")
        gray = Front(graph, targets, _BASIS).variables(like.new_full((1, *shape), _GRAY))
        z = gray + torch.randn(gray.shape, generator=generator).to(like)
        highest, variation = _STAGES[0]
        found, plain = self._stage(0, graph, targets, Band(highest, False, variation), z), False
        if shape[1] > 1:
            gray_found = self._stage(0, graph, targets, Band(highest, True, variation), z)
            plain = float(found.loss) >= _COLORED * float(gray_found.loss)
            found = gray_found if plain else found
        parts = [found]
        for k, (highest, variation) in enumerate(_STAGES[1:], 1):
            parts.append(self._stage(k, graph, targets, Band(highest, plain, variation), parts[-1].z))
        last = parts[-1]
        steps = torch.stack([one.steps for one in parts]).sum(0)
        evaluations = torch.stack([one.evaluations for one in parts]).sum(0)
        images = Front(graph, targets, _BASIS, Band(None, plain)).images(last.z)
        return images, replace(last, steps=steps, evaluations=evaluations)

    def _stage(self, k: int, graph: Graph, targets: dict[Node, Tensor], band: Band, z: Tensor) -> Solution:
        front, count = Front(graph, targets, _BASIS, band), len(_STAGES)
        steps = self.steps * (k + 1) // count - self.steps * k // count
        with progress.part(k / count, (k + 1) / count):
            return LBFGS(tolerance=0.0, patience=50, still=0.0).minimize(front, z, steps)


def _check(plans: Sequence[Plan]) -> None:
    """Raise `InputError` for updates in which images enter more than once, an unknown number, or in unequal batches."""
    reason = None
    if any(one.sampling == "poisson" for one in plans):
        reason = "an unknown number of images, as under Poisson sampling"
    elif any(one.epochs > 1 for one in plans):
        reason = "several epochs, in which each image enters more than once with nearly the same values"
    elif len({(one.batch_size, one.mode) for one in plans}) > 1 or any(one.images % one.batch_size for one in plans):
        reason = "batches of different sizes or modes"
    elif len(plans) > 1 and any(one.algorithm == "FedAvg" and one.weight_decay for one in plans):
        reason = "a sum over clients with weight decay"
    if reason:
        raise InputError(f"Separation needs gradients of disjoint, equal batches, not {reason}; attack with GradInv")


def _graph(seen: Observation) -> tuple[Graph, int]:
    """Return the model's graph for the images of one batch, and the number of batches in the update.

    Where images do not depend on each other, all images of the update count as one batch.
    """
    view = seen.views[0]
    batches = sum(plan.steps for plan in view.plans)
    graph = graph_of(seen.model, view.weights, seen.image_shape, seen.num_images // batches)
    if batches == 1 or graph.mixes:
        return graph, batches
    return graph_of(seen.model, view.weights, seen.image_shape, seen.num_images), 1


def _gradients(view: View, v: int) -> Tensors:
    """Return the sum of all steps' gradients, up to a factor, in float64: the update without weight decay."""
    sent = exact({k: t[v] for k, t in view.update.tensors.items()})
    if view.update.kind == "gradient":
        return sent
    lost = 1 - view.plans[0].kept_share()
    weights = exact(view.weights.parameters) if lost else {}
    return {k: -t - lost * weights[k] if lost else -t for k, t in sent.items()}


def _no_search(images: Tensor, ended: Ended) -> Solution:
    """Return the result of a search of no steps that gave images (1, N, C, H, W)."""
    none = torch.zeros(1, dtype=torch.long)
    return Solution(images.flatten(1), none.to(images), none, none, (ended,))


def _certificate(begun: SeparatedStart, read: Peeled | None) -> str:
    """Return why the values are right: zeros beyond chance, residuals, and agreement of separate readings.

    Args:
        begun: the separated images.
        read: the values of earlier layers, if they were read.
    """
    found = begun.sources
    groups = f" and assigned to {len(begun.starts)} batches" if len(begun.starts) > 1 else ""
    text = f"{counted(found.rank, 'image')} separated{groups}; {found.evidence}; labels by the last layer"
    if read is None:
        return text + f" (misfit {begun.residual:.1g}); earlier layers are not read from several gradients"
    if read.residuals:
        text += f"; {len(read.residuals)} layers walked, residuals up to {max(read.residuals.values()):.1g}"
    if read.bound is not None:
        apart = max(read.differences.values())
        # A relative error of 1 may be all of a value.
        bounded = f"agree to {apart:.1g}, so errors are below {read.bound:.1g}"
        text += (
            f"; separate readings {bounded if read.bound < 1 else f'differ by up to {apart:.1g}: no bound on errors'}"
        )
    return text
