"""``python -m benchmarks vit_limits``: does information or the search limit what is read of a ViT's batches?

First table: the update's derivative with respect to the pixels, at the true images, in float64. Its rank is the number
of directions in which the images can move only if the update moves too. With full rank, the update determines the
images, up to a discrete choice. A count sketch stands in for the derivative: random sums of its rows with random signs,
at least four for each pixel, which keep the rank, and singular values up to a small factor.

Second table: a search that begins at the true images plus noise, and one that begins as attacks do. The labels are
granted, and all is in float64. A search that returns from nearby and fails from afar does not lack information.

Images are gray (one channel), so that the derivative fits into memory.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.func import jvp, vmap

from benchmarks.conditioning import in_double
from benchmarks.rows import columns, conditions, now, scores
from benchmarks.scenes import REPORTED, Scene, available, held_out, play
from medpfl import models
from medpfl.attacks.idlg import iDLG
from medpfl.attacks.matching.solved_start import Solved
from medpfl.attacks.optimize.lbfgs import LBFGS
from medpfl.core.plan import Plan
from medpfl.core.roles import Model
from medpfl.core.spec import build, registry
from medpfl.core.threat import ThreatModel
from medpfl.core.types import Batch
from medpfl.federated.local import local_update

_ROWS, _TOGETHER = 4, 8
"""Rows of the sketch for each pixel, and columns that are computed together."""

_RANK = 1e-10
"""Singular values below this, relative to the largest, count as zero: float64 has 16 digits."""

_ROUNDING = 2.0**-24
"""Relative error of a number in float32."""

RANKS = columns(("set", -12), ("batch", 5), ("equations", 11), ("pixels", 8), ("rank", 7), ("condition", 11))
RANKS += columns(("above float32", 15), ("s", 8))
SEARCHES = columns(("set", -12), ("batch", 5), ("start", 9), ("SSIM", 8), ("to", 8), ("RMSE", 9), ("to", 9))
SEARCHES += columns(("objective", 11), ("s", 8))


def scene(name: str, batch: int, chosen: argparse.Namespace) -> Scene:
    """Compute the gradient of the first `batch` gray images, with the labels granted."""
    images, labels, classes = held_out(name, 4, chosen.size)
    images, labels = images[None, :batch].mean(2, keepdim=True), labels[None, :batch]
    model = build(chosen.model, registry(models), "model")
    assert isinstance(model, Model)
    network = model.build((1, chosen.size, chosen.size), classes, REPORTED)
    plan, threat = Plan(batch_size=batch, mode="eval"), ThreatModel(("labels",))
    return play(network, images, labels, classes, plan=plan, threat=threat)


def sketched(case: Scene) -> tuple[list[Tensor], int]:
    """Return the derivative of each image's own gradient (rows, pixels), sketched, and the update's size.

    The model does not mix the images of a batch, so that these are the columns of the whole batch's derivative, times
    the number of images.
    """
    view = in_double(case.seen).views[0]
    images, labels = case.batches[0].double(), case.labels[0]
    size = sum(t.numel() for t in view.weights.parameters.values())
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(_ROWS * images.numel(), (size,), generator=generator)
    signs = torch.randint(2, (size,), generator=generator) * 2.0 - 1
    plan = replace(view.plan, batch_size=1)
    parts = []
    for image, label in zip(images.split(1), labels.split(1), strict=True):

        def update(pixels: Tensor, label: Tensor = label) -> Tensor:
            made = local_update(case.seen.model, Batch(pixels, label), plan, view.weights).tensors
            return torch.cat([t.flatten() for t in made.values()])

        def column(direction: Tensor, image: Tensor = image, update: Callable[[Tensor], Tensor] = update) -> Tensor:
            return jvp(update, (image,), (direction,))[1]

        made = image.new_zeros(_ROWS * images.numel(), image.numel())
        for places in torch.arange(image.numel()).split(_TOGETHER):
            directions = image.new_zeros(len(places), image.numel())
            directions[torch.arange(len(places)), places] = 1
            moved = vmap(column)(directions.view(-1, *image.shape))
            made[:, places] = image.new_zeros(len(places), len(made)).index_add_(1, rows, moved * signs).T
        parts.append(made)
    return parts, size


def rank_row(name: str, case: Scene, parts: Sequence[Tensor], equations: int, seconds: float) -> str:
    """Return the row of the first images of a scene, as many as there are parts of the derivative."""
    began, batch = now(), len(parts)
    whole = torch.cat(list(parts), 1) / batch
    values = torch.linalg.svdvals(torch.linalg.qr(whole, mode="r")[1])
    sent = case.seen.views[0].update.norm()
    rank, shown = int((values > _RANK * values[0]).sum()), int((values > _ROUNDING * sent).sum())
    front = f"{name:<12}{batch:>5}{equations:>11,}{whole.shape[1]:>8}{rank:>7}{values[0] / values[-1]:>11.1e}"
    return f"{front}{shown:>15}{seconds + now() - began:>8.0f}"


def search_row(name: str, case: Scene, noise: float | None, steps: int) -> str:
    """Return the row of a search from the truth with noise; ``None``: as iDLG begins, beside the scores of gray."""
    search = replace(iDLG(steps=steps).matching(), optimizer=LBFGS(tolerance=1e-20, still=0.0))
    began, start = now(), torch.full_like(case.batches, 0.5)
    if noise is not None:
        draw = torch.randn(case.batches.shape, generator=torch.Generator().manual_seed(1))
        start = (case.batches + noise * draw).clamp(0, 1)
        search = replace(search, start=Solved(start.double()), warmup=())
    found = search(in_double(case.seen), torch.Generator().manual_seed(0))
    text = f"{name:<12}{case.batches.shape[1]:>5}{'own' if noise is None else f'{noise:g}':>9}"
    guesses = (start, found.guesses.float())
    ssims, errors = (
        [f"{value:>{width}.{digits}f}" for value in values]
        for values, width, digits in (
            ([float(scores(guess, case.batches).mean()) for guess in guesses], 8, 3),
            ([float((guess - case.batches).square().mean().sqrt()) for guess in guesses], 9, 5),
        )
    )
    return f"{text}{''.join(ssims)}{''.join(errors)}{float(found.loss):>11.1e}{now() - began:>8.0f}"


def lines(chosen: argparse.Namespace, go_on: Callable[[], bool] = lambda: True) -> Iterator[str]:
    """Yield the lines of both tables. Once `go_on` returns False, the remaining rows are named and skipped."""
    yield conditions()
    yield RANKS
    for name in chosen.sets:
        if not go_on():
            yield f"{name}: not run: time is up"
            continue
        began, case = now(), scene(name, max(chosen.batches), chosen)
        parts, equations = sketched(case)
        seconds = now() - began
        for batch in chosen.batches:
            yield rank_row(name, scene(name, batch, chosen), parts[:batch], equations, seconds)
    yield SEARCHES
    for name in chosen.sets:
        for batch in chosen.batches:
            for noise in (*chosen.noise, None):
                if go_on():
                    yield search_row(name, scene(name, batch, chosen), noise, chosen.steps)
                else:
                    yield f"{name}, {batch}, {noise}: not run: time is up"


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks vit_limits", description=__doc__)
    parser.add_argument("--sets", nargs="+", default=available(), help="image sets (default: all on this machine)")
    parser.add_argument("--model", default="ViT()", help="a model that does not mix images, as a spec (%(default)s)")
    parser.add_argument("--batches", nargs="+", type=int, choices=range(1, 5), default=[1, 4], help="images per update")
    parser.add_argument("--noise", nargs="+", type=float, default=[0.01, 0.05, 0.2], help="deviations of the starts")
    parser.add_argument("--steps", type=int, default=200, help="steps of a search")
    parser.add_argument("--size", type=int, default=32, help="pixels per side, a multiple of 8")
    return parser.parse_args(arguments)
