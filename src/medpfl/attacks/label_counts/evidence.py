"""The evidence for label counts: the probability of the last layer's gradient, whatever the images are.

The last layer's gradient is ``sum_i (p_i - t_i) [x_i, 1]^T / N``, with the layer's inputs x_i, predictions p_i and
targets t_i. Its bias part gives the counts if the mean prediction is known: Geng et al. 2021 (arXiv:2110.09074) take it
from made-up images. Its weight part tells about the inputs, and so about the predictions: iLRG ("Instance-wise Batch
Label Restoration via Gradients", ICLR 2023) takes the ratio of weight to bias as each class's mean input. The first is
wrong where images differ from made-up ones, the second where a class's bias part is near 0.

Here, both are weighed. The inputs of a client's images are those of phantoms, plus an unknown shift for each class. The
shifts are normal, with the variance that phantoms have. The evidence for some counts is the gradient's probability with
the shifts integrated out, by an iterated linearization (Laplace's method).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from medpfl.attacks.label_counts.clients import Clients, contrasts
from medpfl.core.errors import InputError

__all__ = ["Gradient", "best_counts", "classes_of", "counts_of", "rounded"]

_CLASS_SHIFT = 0.3
"""Variance of a class's mean input, relative to the variance within a family."""

_ERROR = 0.01
"""Deviation of what no shift explains, relative to the root mean square of what phantoms and shifts allow."""

_MISFIT = 25.0
"""Misfit from which on the counts do not explain the gradient."""

_ITERATIONS, _TINY = 5, 1e-30


@dataclass(frozen=True, eq=False)
class Gradient:
    """The gradient of the last layer, summed over a client's images.

    Attributes:
        weight: (K, D), float64 on the CPU.
        bias: (K,), or ``None`` without a bias.
        images: number of images.
        smoothing: share of the labels that is spread over all classes.
    """

    weight: Tensor
    bias: Tensor | None
    images: int
    smoothing: float


@dataclass(frozen=True, eq=False)
class _Problem:
    """The gradient in the clients' coordinates.

    Attributes:
        clients: clients with phantoms.
        toward: (K - 1, K) the contrasts of the classes.
        targets: (K, K) the targets of each class.
        data: (d,) the gradient; d is K - 1 times the number of coordinates, plus 1 with a bias.
        noise: (d,) its variances.
        bias: True if the bias's gradient is in the data.
        images: number of images.
        deviations: (F, q) the families' mean inputs, minus their mean.
    """

    clients: Clients
    toward: Tensor
    targets: Tensor
    data: Tensor
    noise: Tensor
    bias: bool
    images: int
    deviations: Tensor


def best_counts(clients: Clients, gradient: Gradient) -> Tensor:
    """Return the counts (K,) with the largest evidence that can be reached by moving one image after the other.

    The search starts at the two simple estimates: predictions on phantoms, and on the ratio of weight to bias. Where no
    counts explain the gradient, because something changed it, the first estimate is the result.
    """
    problem, known = _problem(clients, gradient), {}
    if gradient.bias is None:
        starts = [rounded(gradient.images * clients.logits.softmax(-1).mean((0, 1)), gradient.images)]
    else:
        starts = [_by_phantoms(clients, gradient), _by_ratio(clients, gradient)]
    best = max((_climbed(problem, start, known) for start in starts), key=lambda counts: known[_key(counts)][0])
    return best if known[_key(best)][1] < _MISFIT else starts[0]


def _by_phantoms(clients: Clients, gradient: Gradient) -> Tensor:
    """Return the counts (K,) for which the bias's gradient is the sum of p - t, with p predicted on phantoms."""
    assert gradient.bias is not None
    chances = clients.logits.softmax(-1).mean((0, 1))
    return counts_of(chances, gradient.bias / gradient.images, gradient.images, gradient.smoothing)


def counts_of(chances: Tensor, bias: Tensor, images: int, smoothing: float) -> Tensor:
    """Return the counts (K,) from mean predictions (K,) and the bias's mean gradient (K,)."""
    shares = (chances - bias - smoothing / len(bias)) / (1 - smoothing)
    return rounded(images * shares.clamp(min=0), images)


def rounded(counts: Tensor, total: int) -> Tensor:
    """Return the whole numbers (K,) with the sum `total` that are nearest to `counts` (K,), scaled to this sum."""
    if not counts.isfinite().all() or counts.sum() <= 0:
        counts = torch.ones_like(counts)
    counts = counts * (total / counts.sum())
    whole = counts.floor()
    missing = total - int(whole.sum())
    whole[(counts - whole).argsort(descending=True, stable=True)[:missing]] += 1
    return whole


def classes_of(counts: Tensor, images: int, classes: int) -> Tensor:
    """Return the labels (N,), ascending, of a batch with known or inferred counts (K,).

    Args:
        counts: number of images in each class.
        images: number N of images in the batch.
        classes: number K of classes.

    Raises:
        InputError: there are not K counts, one is negative or no whole number, or their sum is not N.
    """
    if counts.shape != (classes,):
        raise InputError(f"label counts of shape {tuple(counts.shape)}: give one for each of the {classes} classes")
    wrong = (counts < 0) | (counts != counts.floor())  # NaN is no whole number either
    if wrong.any():
        place = int(wrong.nonzero()[0])
        raise InputError(f"the label count of class {place} is {float(counts[place]):g}: give a whole number from 0 on")
    if int(counts.sum()) != images:
        raise InputError(
            f"the label counts sum to {int(counts.sum())}, but the update holds {images} images: make them sum to that"
        )
    return torch.arange(classes).repeat_interleave(counts.long().cpu())


def _by_ratio(clients: Clients, gradient: Gradient) -> Tensor:
    """Return the counts (K,) if a class's mean input is the ratio of the weight's gradient to the bias's."""
    assert gradient.bias is not None
    bias, smoothing = gradient.bias, gradient.smoothing
    floor = torch.where(bias < 0, -_TINY, _TINY)
    inputs = gradient.weight @ clients.basis / torch.where(bias.abs() < _TINY, floor, bias)[:, None]
    offset = (clients.logits - clients.inputs @ clients.rows.T).mean((0, 1))
    chances = (inputs @ clients.rows.T + offset).softmax(1)  # of a mean image in each class
    system = torch.cat([(chances - _targets(len(bias), smoothing)).T, torch.ones(1, len(bias), dtype=torch.float64)])
    known = torch.cat([bias, bias.new_tensor([float(gradient.images)])])
    return rounded((torch.linalg.pinv(system) @ known).clamp(min=0), gradient.images)


def _targets(classes: int, smoothing: float) -> Tensor:
    """Return the target (K, K) of each class."""
    return (1 - smoothing) * torch.eye(classes, dtype=torch.float64) + smoothing / classes


def _problem(clients: Clients, gradient: Gradient) -> _Problem:
    classes = len(gradient.weight)
    toward = contrasts(classes)
    parts, unit = [toward @ gradient.weight @ clients.basis], [1.0] * clients.basis.shape[1]
    if gradient.bias is not None:
        parts.append((toward @ gradient.bias)[:, None] * clients.unit)
        unit.append(clients.unit)
    # Without noise, the sum over classes is 0 in every column.
    variance = gradient.weight.sum(0).square().mean() / classes
    means = clients.inputs.mean(1)
    return _Problem(
        clients=clients,
        toward=toward,
        targets=_targets(classes, gradient.smoothing),
        data=torch.cat(parts, 1).flatten(),
        noise=(variance * torch.tensor(unit, dtype=torch.float64).square()).repeat(classes - 1),
        bias=gradient.bias is not None,
        images=gradient.images,
        deviations=means - means.mean(0),
    )


def _key(counts: Tensor) -> tuple[int, ...]:
    return tuple(counts.long().tolist())


def _climbed(problem: _Problem, counts: Tensor, known: dict[tuple[int, ...], tuple[float, float]]) -> Tensor:
    """Return the counts that are reached by moving single images to other classes while the evidence grows.

    Args:
        problem: the gradient.
        counts: counts (K,) at the start.
        known: evidence and misfit of counts, to which new ones are added.
    """
    while True:
        near = _neighbors(counts)
        new = [one for one in near if _key(one) not in known]
        if new:
            evidence, misfit = _evidence(problem, torch.stack(new).double())
            values = zip(evidence.nan_to_num(-torch.inf).tolist(), misfit.tolist(), strict=True)
            known |= dict(zip(map(_key, new), values, strict=True))
        best = max(near, key=lambda one: known[_key(one)][0])
        if known[_key(best)][0] <= known[_key(counts)][0]:
            return counts
        counts = best


def _neighbors(counts: Tensor) -> list[Tensor]:
    """Return the counts (K,) themselves, then those with one image in another class."""
    moves = torch.eye(len(counts), dtype=counts.dtype)
    pairs = [(a, b) for a in range(len(counts)) for b in range(len(counts)) if a != b and counts[a] > 0]
    return [counts, *(counts - moves[a] + moves[b] for a, b in pairs)]


def _evidence(problem: _Problem, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logarithm of the evidence (M,) for counts (M, K), up to a constant, and the misfit (M,).

    The misfit is the squared distance from the data in standard deviations, per number; about 1 is expected.
    """
    shape = (*counts.shape, problem.clients.basis.shape[1])
    shifts, noise = counts.new_zeros(shape), None
    covariance = _class_covariance(counts, problem.images)
    rest = weighed = factor = counts
    for iteration in range(_ITERATIONS):
        expected, slope = _linearized(problem, counts, shifts)  # (M, F, d), (M, K, d, q)
        common = (expected - expected.mean(1, keepdim=True)) / (expected.shape[1] - 1) ** 0.5
        families = problem.deviations / (expected.shape[1] - 1) ** 0.5
        moved = torch.einsum("mjk,mkdr->mjdr", covariance, slope @ problem.clients.within)
        allowed = torch.einsum("mjdr,mjer->mde", moved, slope) + common.mT @ common
        if noise is None:
            size = allowed.diagonal(dim1=1, dim2=2).mean(0)
            noise = torch.diag(_ERROR**2 * size + problem.noise + 1e-12 * size.mean())
        factor = torch.linalg.cholesky_ex(allowed + noise)[0]
        rest = problem.data - expected.mean(1) + torch.einsum("mjdq,mjq->md", slope, shifts)
        weighed = torch.cholesky_solve(rest[..., None], factor)[..., 0]
        gain = moved + (common.mT @ families)[:, None]  # covariance of the shifts and the gradient
        new = torch.einsum("mjdq,md->mjq", gain, weighed)
        shifts = new if iteration in (0, _ITERATIONS - 1) else (shifts + new) / 2
    misfit = (rest * weighed).sum(1)
    return -misfit / 2 - factor.diagonal(dim1=1, dim2=2).log().sum(1), misfit / len(problem.data)


def _class_covariance(counts: Tensor, images: int) -> Tensor:
    """Return the covariance (M, K, K) of the classes' mean inputs about the client's, relative to that in a family.

    The client's mean itself varies with the family.
    """
    variance, share = _CLASS_SHIFT + 1 / counts.clamp(min=0.5), counts / images
    own = variance * share
    whole = (own * share).sum(1)[:, None, None]
    return torch.diag_embed(variance) - own[:, :, None] * own[:, None] / whole


def _linearized(problem: _Problem, counts: Tensor, shifts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients (M, F, d) of the families at shifts (M, K, q), and their mean derivative (M, K, d, q)."""
    clients, toward = problem.clients, problem.toward
    logits = clients.logits + (shifts @ clients.rows.T)[:, :, None, None]  # (M, K, F, E, K)
    inputs = clients.inputs + shifts[:, :, None, None]
    extra = inputs.new_full((*inputs.shape[:-1], 1), clients.unit)
    whole = torch.cat([inputs, extra], -1) if problem.bias else inputs
    chances = logits.softmax(-1)
    pulls = (chances - problem.targets[:, None, None]) @ toward.T
    count = clients.inputs.shape[1]
    expected = torch.einsum("mj,mjfeh,mjfeq->mfhq", counts, pulls, whole).flatten(2) / count

    own = toward * chances.flatten(2, 3)[..., None, :]  # (M, K, F * E, K - 1, K)
    turned = own @ clients.rows - own.sum(-1, keepdim=True) * (chances.flatten(2, 3) @ clients.rows)[..., None, :]
    slope = torch.einsum("mjphr,mjpq->mjhqr", turned, whole.flatten(2, 3)) / turned.shape[2]
    direct = torch.eye(whole.shape[-1], inputs.shape[-1], dtype=torch.float64)
    slope = slope + torch.einsum("mjh,qr->mjhqr", pulls.mean((2, 3)), direct)
    return expected, (counts[:, :, None, None, None] * slope).flatten(2, 3)
