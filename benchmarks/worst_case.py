"""``python -m benchmarks worst_case``: compare `WorstCase` with its members, each with the whole budget for itself.

A cell is a model, the clients' plan, a defense that the attacks know, and a set. Searches get the budget in evaluations
of the update; analytic attacks run where they apply. The last columns are the rate of `WorstCase`'s own choice, its
difference from the best member's, the rate over all its candidates, and its evaluations divided by the budget.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from itertools import product

import torch

from benchmarks.rows import columns, conditions, scores
from benchmarks.scenes import REPORTED, TUNED, Scene, available, dealt, held_out, play
from medpfl.attacks import GradInv, Posterior, WorstCase, iDLG
from medpfl.attacks.worst_case import Search, solvers_of
from medpfl.core.plan import Plan
from medpfl.core.roles import Defense, Model
from medpfl.core.threat import ThreatModel
from medpfl.core.types import Observation, Reconstruction
from medpfl.defenses import DPSGD, LaplaceNoise, NoDefense, TopK
from medpfl.metrics.pixel import SUCCESS
from medpfl.models import MLP, ConvNet, LeNet, ResNet

MODELS: dict[str, Model] = {
    "LeNet": LeNet("dlg"),
    "ConvNet": ConvNet(),
    "ConvNet, batch norm": ConvNet(norm="batch"),
    "MLP": MLP(),
    "ResNet-18": ResNet(18),
}
PLANS = {
    "one image": Plan(),
    "4 images": Plan(batch_size=4),
    "2 steps": Plan(algorithm="FedAvg", batch_size=1, local_images=2, learning_rate=0.01),
}
DEFENSES: dict[str, Defense] = {
    "none": NoDefense(),
    "Laplace 1e-3": LaplaceNoise(1e-3),
    "top 0.1": TopK(0.1),
    "DP-SGD": DPSGD(1.0, 1e-3),
}
CELLS = (
    *product(("LeNet", "ConvNet", "MLP"), ("one image",), DEFENSES),
    *product(("LeNet", "ConvNet", "MLP"), ("4 images", "2 steps"), ("none",)),
    ("ConvNet, batch norm", "one image", "none"),
    ("ResNet-18", "one image", "none"),
)
HEAD = columns(
    ("model", -21), ("plan", -11), ("defense", -14), ("set", -12), ("images", 6), ("", 2), ("best member", -22)
)
HEAD += columns(("chosen", 7), ("diff", 7), ("any", 6), ("cost", 6))


def members(case: Scene, budget: int) -> dict[str, Callable[[Observation, torch.Generator], Reconstruction]]:
    """Return the members for a scene by name: analytic attacks that apply, and searches with the whole budget."""
    seen = case.seen
    solvers = solvers_of(seen.model, seen.views[0].plans, seen.image_shape)
    found: dict[str, Callable[[Observation, torch.Generator], Reconstruction]] = {
        type(one).__name__: one for one in solvers
    }
    deep = [one for one in GradInv().suited(seen.model) if isinstance(one, GradInv)]
    searches = deep or [iDLG(), Posterior(), GradInv()]
    for one in searches:
        found[type(one).__name__ + " trained" * ("layer" in repr(one))] = Search(one, budget)
    return found


def scene_of(model: str, plan: str, defense: str, name: str, chosen: argparse.Namespace) -> Scene:
    """Return a cell's scene on a set."""
    each, size = PLANS[plan].images, 64 if model == "ResNet-18" else 32
    images, labels, classes = held_out(name, chosen.updates * each, size, chosen.tune)
    network = MODELS[model].build(tuple(images.shape[1:]), classes, TUNED if chosen.tune else REPORTED)
    batches = dealt(images, labels, each, 0)
    threat = ThreatModel(("defense",))
    return play(network, *batches, classes, plan=PLANS[plan], defense=DEFENSES[defense], threat=threat)


def lines(chosen: argparse.Namespace, go_on: Callable[[], bool] = lambda: True) -> Iterator[str]:
    """Yield the table's lines. Once `go_on` returns False, the remaining rows are named and skipped."""
    yield conditions()
    yield HEAD
    for model, plan, defense in CELLS:
        for name in chosen.sets if model in chosen.models and plan in chosen.plans else ():
            place = f"{model:<21}{plan:<11}{defense:<14}{name:<12}"
            yield place + (cell(scene_of(model, plan, defense, name, chosen), chosen.budget) if go_on() else "not run")


def cell(case: Scene, budget: int) -> str:
    """Return a row's numbers."""
    own = WorstCase(evaluations=budget)(case.seen, torch.Generator().manual_seed(0))
    rates = {
        k: _rate(run(case.seen, torch.Generator().manual_seed(0)), case) for k, run in members(case, budget).items()
    }
    best = max(rates, key=lambda k: rates[k])
    assert own.candidates is not None
    any_ = torch.stack([scores(own.candidates[:, r], case.batches) for r in range(own.candidates.shape[1])]).amax(0)
    chosen, cost = _rate(own, case), float(own.evaluations.double().mean()) / budget
    row = f"{case.batches.shape[:2].numel():>6}  {f'{best} {rates[best]:.2f}':<22}"
    return (
        f"{row}{chosen:>7.2f}{chosen - rates[best]:>+7.2f}{float((any_ >= SUCCESS).double().mean()):>6.2f}{cost:>6.2f}"
    )


def _rate(found: Reconstruction, case: Scene) -> float:
    return float((scores(found.guesses, case.batches) >= SUCCESS).double().mean())


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks worst_case", description=__doc__)
    parser.add_argument("--updates", type=int, default=6, help="updates per set and cell (%(default)s)")
    parser.add_argument("--budget", type=int, default=600, help="evaluations for each victim (%(default)s)")
    parser.add_argument("--sets", nargs="+", default=available())
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS), help="models (all)")
    parser.add_argument("--plans", nargs="+", choices=list(PLANS), default=list(PLANS), help="clients' plans (all)")
    parser.add_argument("--tune", action="store_true", help="use the rows and weights for tuning")
    return parser.parse_args(arguments)
