"""``python -m benchmarks conditioning``: measure what each part of DLG's and iDLG's search contributes.

The attacks run on tuning images (even rows, weights that are not reported): first unchanged, then with one part
changed. A tolerance has another meaning under another objective. The table therefore also counts the steps until a
guess reaches a given SSIM. Only the table uses the SSIM; no search sees it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp
from torch.nn.functional import avg_pool2d, pad

from benchmarks.rows import columns, conditions
from benchmarks.scenes import TUNED, Scene, available, scene
from medpfl.attacks.matching import GradientMatching
from medpfl.attacks.matching.label_targets import label_vectors, with_spare
from medpfl.attacks.matching.labels import Joint, LastLayer
from medpfl.attacks.matching.objectives import SquaredDistance
from medpfl.attacks.matching.solved_start import Solved
from medpfl.attacks.matching.stages import WARM_UP
from medpfl.attacks.optimize.coordinates import Basis, Pixels, Spectral
from medpfl.attacks.optimize.lbfgs import LBFGS
from medpfl.core.trace import tracing
from medpfl.core.types import Batch, Observation, Reconstruction, Weights
from medpfl.federated.local import local_update
from medpfl.metrics import ssim

SCORES = (0.9, 0.98, 0.99)
ENDING = "float64, to 1/100"
PLAIN = Spectral(exponent=0.0, color=1.0)
_PROBES, _NEIGHBORS = 8, 5


@dataclass(frozen=True, eq=False, repr=False)
class Scaled(Basis):
    """Cosines, each also multiplied by its entry of a table (C, H, W)."""

    table: Tensor
    cosines: Spectral

    def images(self, coordinates: Tensor, axes: int) -> Tensor:
        return self.cosines.images(coordinates * self.table, axes)

    def coordinates(self, images: Tensor, axes: int) -> Tensor:
        return self.cosines.coordinates(images, axes) / self.table


def diagonal(case: Scene) -> Tensor:
    """Return the Gauss-Newton diagonal (C, H, W) of the weighted distance at gray images, in orthonormal cosines.

    It is the mean over victims, estimated with random signs in update space, and smoothed over neighboring frequencies.
    """
    seen, generator = case.seen, torch.Generator().manual_seed(0)
    gray = torch.full((1, *seen.image_shape), 0.5)
    labels = LastLayer().infer(seen, gray)
    assert labels is not None
    vectors = label_vectors(seen, labels, gray)
    total, view = torch.zeros(seen.image_shape), seen.views[0]
    model = with_spare(seen.model) if vectors.shape[2] > seen.num_classes else seen.model
    for v in range(len(seen)):
        sent = {name: t[v] for name, t in view.update.tensors.items()}
        weights = SquaredDistance().prepare({"sent": sent})["weight"]

        def update(images: Tensor, labels: Tensor = vectors[v]) -> dict[str, Tensor]:
            return dict(local_update(model, Batch(images, labels), view.plan, view.weights).tensors)

        made, pull = vjp(update, gray)  # pyright: ignore[reportAssignmentType]
        for _ in range(_PROBES):
            signs = {k: torch.randint(2, t.shape, generator=generator) * 2.0 - 1 for k, t in made.items()}
            (row,) = pull({k: s * weights[k].sqrt() for k, s in signs.items()})
            total += PLAIN.coordinates(row, 3)[0].square()
    total /= len(seen) * _PROBES
    return avg_pool2d(pad(total[None], [_NEIGHBORS // 2] * 4, mode="replicate"), _NEIGHBORS, 1)[0]


def by_diagonal(case: Scene, cosines: Spectral) -> Scaled:
    """Return cosines divided by the square root of `diagonal`, relative to its entry for the mean brightness."""
    table = diagonal(case).rsqrt()
    return Scaled(table / table[0, 0, 0], cosines)


VARIANTS: dict[str, Callable[[Scene], dict[str, Any]]] = {
    "as it is": lambda _: {},
    "pixels": lambda _: {"basis": Pixels()},
    "cosines, not scaled": lambda _: {"basis": PLAIN},
    "no warm-up": lambda _: {"warmup": ()},
    "smooth prior stays on": lambda _: {"prior": WARM_UP[-1].prior},
    "plain distance": lambda _: {"objective": SquaredDistance("none")},
    "Gauss-Newton diagonal": lambda case: {"basis": by_diagonal(case, PLAIN)},
    "the same, times ours": lambda case: {"basis": by_diagonal(case, Spectral())},
    ENDING: lambda _: {},
}
"""Changed settings by variant."""

HEAD = columns(("set", -12), ("variant", -24), ("images", 6), *((f"to {s:g}", 12) for s in SCORES))
HEAD += columns(("evals", 8), ("SSIM", 8))


def attack(case: Scene, joint: bool, chosen: argparse.Namespace, **changed: Any) -> GradientMatching:
    """Return the attack with some settings changed."""
    optimizer = LBFGS(tolerance=chosen.stop)
    labels = Joint() if joint else LastLayer()
    return GradientMatching(**{"labels": labels, "optimizer": optimizer, "steps": chosen.steps, **changed})


def line(name: str, variant: str, chosen: argparse.Namespace) -> str:
    """Return the row of one variant on one set."""
    case = scene(name, chosen.network, chosen.images, TUNED, tune=True)
    changed = VARIANTS[variant](case)
    search = attack(case, chosen.network == "dlg", chosen, **changed)
    parts = []
    with tracing(chosen.steps):
        parts.append(search(case.seen, torch.Generator().manual_seed(0)))
        if variant == ENDING:
            start, optimizer = Solved(parts[0].guesses.double()), LBFGS(tolerance=chosen.stop / 100)
            further = replace(search, start=start, optimizer=optimizer)
            parts.append(further(in_double(case.seen), torch.Generator().manual_seed(0)))
    course = torch.cat([course_of(part, case.truths) for part in parts])
    cells = "".join(f"{reached(course, score):>12}" for score in SCORES)
    evaluations = sum(part.evaluations.double().mean() for part in parts)
    last = ssim(parts[-1].guesses[:, 0].float(), case.truths)
    front = f"{name:<12}{variant:<24}{len(last):>6}{cells}"
    return f"{front}{evaluations:>8.0f}{last.mean():>8.4f}"


def course_of(found: Reconstruction, truths: Tensor) -> Tensor:
    """Return the SSIM (T, V) at each step."""
    assert found.trace is not None, "nothing was traced"
    return torch.stack([ssim(images[:, 0].float(), truths) for images in found.trace.unbind(1)])


def reached(course: Tensor, score: float) -> str:
    """Return the median number of steps to `score` in a course (T, V), and how many images ever reach it."""
    hit = (course >= score).any(0)
    steps = (course >= score).double().argmax(0)[hit]
    return f"{steps.median():.0f} ({int(hit.sum())})" if len(steps) else "- (0)"


def in_double(seen: Observation) -> Observation:
    """Convert an observation to float64. The client's own computation was in float32."""
    (view,) = seen.views
    state = ({k: t.double() for k, t in part.items()} for part in (view.weights.parameters, view.weights.buffers))
    update = view.update.replace({k: t.double() for k, t in view.update.tensors.items()})
    return replace(seen, views=(replace(view, weights=Weights(*state), update=update),))


def lines(chosen: argparse.Namespace, go_on: Callable[[], bool] = lambda: True) -> Iterator[str]:
    """Yield the table's lines. Once `go_on` returns False, the remaining rows are named and skipped."""
    yield conditions()
    yield HEAD
    for name in chosen.sets:
        for variant in chosen.variants:
            yield line(name, variant, chosen) if go_on() else f"{name:<12}{variant:<24}not run: time is up"


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks conditioning", description=__doc__)
    parser.add_argument("--network", choices=["dlg", "idlg"], default="idlg", help="network and recipe (%(default)s)")
    parser.add_argument("--images", type=int, default=8, help="images per set (%(default)s)")
    parser.add_argument("--steps", type=int, default=500, help="maximum steps (%(default)s)")
    parser.add_argument("--stop", type=float, default=1e-7, help="relative distance to stop at (%(default)s)")
    parser.add_argument("--sets", nargs="+", default=available())
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), help="variants (all)")
    return parser.parse_args(arguments)
