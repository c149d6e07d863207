"""The standard attack: every solver that applies, then searches within a budget."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from medpfl.attacks.april import APRIL
from medpfl.attacks.deep_rgap import DeepRGAP
from medpfl.attacks.gradinv import GradInv
from medpfl.attacks.idlg import iDLG
from medpfl.attacks.matching.likelihood import with_noise
from medpfl.attacks.matching.orders import unknown_order
from medpfl.attacks.matching.residual import judged
from medpfl.attacks.matching.solved_start import Solved
from medpfl.attacks.optimize.stacks import variables_like
from medpfl.attacks.posterior import Posterior
from medpfl.attacks.rgap import RGAP
from medpfl.attacks.separation import Separation
from medpfl.core import progress
from medpfl.core.errors import InputError
from medpfl.core.experiments.limits import plain_ascii
from medpfl.core.plan import Plan
from medpfl.core.roles import Attack
from medpfl.core.types import Ended, Observation, Reconstruction
from medpfl.federated.ready import batch_norms

__all__ = ["ENOUGH", "LEAST", "Search", "WorstCase", "may_explain", "solvers_of"]

_Settings = Posterior | iDLG | GradInv
_SOLVERS: tuple[Attack, ...] = (RGAP(), DeepRGAP(), APRIL(), Separation())

_EXPLAINED = 1e-8
"""Relative squared distance below which a guess explains the update, and no further search begins."""

_FIRST = 0.75
"""Posterior's share of the budget for small networks. With the rest, a search goes on from the best guess: iDLG for
exact updates, which it fits best, and Posterior for noisy ones, whose noise it does not fit."""

_MIXED = GradInv(tv=0.1, rate=0.1)
"""The search for batches whose images batch norm in train mode mixes, with the whole budget. Searches with L-BFGS end
far from such images, and do not improve its guesses (benchmarks/results/contested.md)."""

_RACE = 1.9
"""Cost of a search with a race of label sequences, relative to the search alone (`GradientMatching`'s default)."""

_EXACT = 1e-3
"""Relative noise below which an update counts as exact."""

LEAST, ENOUGH = 100, 2000
"""Smallest budget with which searches run, and the budget beyond which they rarely reconstruct more."""

_GRAY = 0.5


@dataclass(frozen=True, repr=False)
class WorstCase(Attack):
    """An ensemble: every analytic attack that applies, then searches within a budget of gradient evaluations.

    Source: MedPFL. As in AutoAttack (Croce and Hein, ICML 2020, arXiv:2003.01690), members with fixed settings replace
    the choice of an attack and its tuning.
    Members: `RGAP`, `DeepRGAP`, `APRIL` and `Separation` where their checks accept the model and the plans. For updates
    that none of them explains: `Posterior`, after which `iDLG` continues the best guess for exact updates, and
    `Posterior` for noisy ones; if the order of one epoch's local steps is unknown, with the sequence of labels that the
    first search found. Instead of these, deep networks get GradInv's settings for them, and batches under batch norm in
    train mode ``GradInv(tv=0.1, rate=0.1)``.
    Choice: a read with a certificate comes first. Otherwise the guess with the highest posterior density is chosen,
    `Posterior`'s objective: the update's likelihood under its noise, and the prior for images. The other members'
    guesses are candidates, so an audit also counts what any member reconstructs.
    Needs: the update, the plan, the model.
    Budget: in evaluations rather than seconds, so that the guesses do not depend on the machine.

    Attributes:
        evaluations: evaluations of the update and its derivative for each victim, shared by the searches. Analytic
            attacks match no gradient and take none of it; below 100, only these run.
    """

    evaluations: int = 1000
    members: ClassVar[tuple[type[Attack], ...]] = (*map(type, _SOLVERS), iDLG, Posterior, GradInv)

    def __post_init__(self) -> None:
        if self.evaluations < 0:
            raise InputError(f"evaluations is {self.evaluations}: it must be at least 0")

    def check(self, model: nn.Module, plans: tuple[Plan, ...], image_shape: tuple[int, ...]) -> None:
        """Raise `InputError` if no member can run: the budget is too small, and no analytic attack applies."""
        if self.evaluations < LEAST and not solvers_of(model, plans, image_shape):
            raise InputError(
                f"evaluations is {self.evaluations}, but no analytic attack applies to this model and plan: searches "
                f"take at least {LEAST}"
            )

    def __call__(self, seen: Observation, generator: torch.Generator) -> Reconstruction:
        """Reconstruct the images of each victim."""
        solvers = solvers_of(seen.model, seen.views[0].plans, seen.image_shape)
        searches, continued = _searches(seen, self.evaluations)
        members = len(solvers) + len(searches) + 1
        seeds = torch.randint(2**62, (members,), generator=generator).tolist()
        found = _Guesses(seen, len(solvers), members)

        def add(k: int, attack: Attack | Search, victims: Tensor) -> None:
            with progress.part(k / members, (k + 1) / members):
                made = attack(seen.of(victims), torch.Generator().manual_seed(seeds[k]))
            found.add(k, victims, made, attack.name if isinstance(attack, Search) else repr(attack))

        for k, solver in enumerate(solvers):
            add(k, solver, torch.arange(len(seen)))
        for k, search in enumerate(searches, len(solvers)):
            if len(victims := found.unexplained):
                add(k, search, victims)
        left = self.evaluations - int(found.evaluations.sum(1).amax())
        if continued and left > 1 and len(victims := found.unexplained):
            last, start, sequence = Posterior() if _noisy(seen) else iDLG(), found.best(victims), None
            if unknown_order(seen):  # the images belong to the labels that were found with them
                start, sequence = (made[victims, len(solvers)] for made in (found.images, found.labels))
            add(members - 1, Search(last, left, Solved(start.cpu()), sequence), victims)
        return found.reconstruction()


def solvers_of(model: nn.Module, plans: tuple[Plan, ...], image_shape: tuple[int, ...]) -> list[Attack]:
    """Return the analytic attacks that apply to a model and the plans of the clients in an update."""
    return [solver for solver in _SOLVERS if solver.accepts(model, plans, image_shape)]


def may_explain(model: nn.Module, plans: tuple[Plan, ...], image_shape: tuple[int, ...]) -> bool:
    """Return True if an analytic attack that applies may explain the update; of a batch, `APRIL` reads a mean only."""
    batch = sum(plan.images for plan in plans) > 1
    return any(not (batch and isinstance(found, APRIL)) for found in solvers_of(model, plans, image_shape))


def _searches(seen: Observation, evaluations: int) -> tuple[list[Search], bool]:
    """Return the searches for an observation, which share a budget for each victim, and True if another continues.

    There are none below `LEAST`.
    """
    if evaluations < LEAST:
        return [], False
    if deep := [attack for attack in GradInv().suited(seen.model) if isinstance(attack, GradInv)]:
        return [Search(attack, evaluations // len(deep)) for attack in deep], False
    if unknown_order(seen) and any(plan.epochs > 1 for plan in seen.views[0].plans):
        return [Search(Posterior(), evaluations)], False  # a guess does not tell at which step an image returns
    if batch_norms(seen.model) and any(plan.batch_size > 1 for plan in seen.views[0].plans):
        return [Search(_MIXED, evaluations)], False
    return [Search(Posterior(), int(_FIRST * evaluations))], True


def _noisy(seen: Observation) -> bool:
    """Return True if the update is not exact: it has noise, or coordinates with errors."""
    view = with_noise(seen).views[0]
    if view.channel is None or (view.channel.precision is None and view.channel.bounds is None):
        return False
    if view.channel.bounds is not None:
        return True
    assert view.channel.precision is not None
    sent, precision = view.update.tensors, view.channel.precision
    deviation = torch.stack([(1 / precision[k]).flatten(1).amin(1) for k in sent]).amin(0).sqrt()
    size = torch.stack([t.flatten(1).square().mean(1) for t in sent.values()]).amax(0).sqrt()
    return bool((deviation > _EXACT * size).any())


@dataclass(frozen=True)
class Search:
    """A search with a limit to its evaluations.

    Attributes:
        attack: its settings.
        most: maximum evaluations for each victim, above 1.
        start: initial images in place of the attack's own, without a warm-up.
        sequence: classes (V, N) of images in the order of one epoch's steps, or in a granted order, as if they were
            granted; ``None``: as observed.
    """

    attack: _Settings
    most: int
    start: Solved | None = None
    sequence: Tensor | None = None

    @property
    def name(self) -> str:
        """The attack's spec, without the limit, and where it begins."""
        return repr(self.attack) + ("" if self.start is None else ", from the best guess")

    def __call__(self, seen: Observation, generator: torch.Generator) -> Reconstruction:
        """Reconstruct the images of each victim."""
        if self.sequence is not None:
            given = torch.arange(seen.num_images, device=self.sequence.device).expand(len(seen), 1, -1)
            seen = replace(seen, labels=self.sequence, order=given if seen.order is None else seen.order)
        steps = int(self.most / _RACE) if unknown_order(seen) else self.most
        short = replace(self.attack, steps=steps - 1)
        search = short.matching(seen) if isinstance(short, Posterior) else short.matching()
        search = replace(search, evaluations=self.most)
        if self.start is not None:
            search = replace(search, start=self.start, warmup=())
        found = search(with_noise(seen) if isinstance(short, Posterior) else seen, generator)
        if self.sequence is not None:
            found = replace(found, labels=self.sequence)
        if isinstance(short, GradInv) and short.steps < self.attack.steps:  # its schedule was cut short
            return replace(found, ended=tuple("out_of_budget" if e == "max_steps" else e for e in found.ended))
        return found


class _Guesses:
    """The guesses of M members for V victims.

    Args:
        seen: observation.
        solvers: number of analytic attacks among the members; these come first.
        members: M.
    """

    def __init__(self, seen: Observation, solvers: int, members: int) -> None:
        self.solvers, like, shape = solvers, variables_like(seen), (len(seen), members)
        self.seen, self.noisy = seen, with_noise(seen)
        # At an exact update, a larger floor would prefer smoother images to those that explain it.
        self.posterior = (Posterior() if _noisy(seen) else Posterior(floor=_EXACT)).matching(seen)
        self.images = like.new_full((*shape, seen.num_images, *seen.image_shape), _GRAY)
        self.labels = torch.zeros(*shape, seen.num_images, *seen.label_shape, dtype=torch.long, device=like.device)
        self.loss = torch.full(shape, torch.inf)
        self.certified, self.explains = torch.zeros(2, *shape, dtype=torch.bool)
        self.steps, self.evaluations = torch.zeros(2, *shape, dtype=torch.long)
        self.ended: list[list[Ended]] = [["nonfinite"] * members for _ in range(len(seen))]
        self.certificates = [[""] * members for _ in range(len(seen))]
        self.unread: list[list[str]] = [[] for _ in range(len(seen))]
        self.names = [""] * members
        self.engine, self.traces = "loop", dict[int, tuple[Tensor, Tensor]]()

    @property
    def unexplained(self) -> Tensor:
        """The victims (A,) whose update is not explained by any guess."""
        return (~self.explains.any(1)).nonzero()[:, 0]

    def add(self, member: int, victims: Tensor, made: Reconstruction, name: str) -> None:
        """Add the guesses of a member with this name for some victims (A,)."""
        self.names[member] = name
        if made.engine != "loop":
            self.engine = made.engine
        if made.trace is not None:
            self.traces[member] = (victims, made.trace)
        finite = made.guesses.flatten(1).isfinite().all(1)
        images = torch.where(finite.view(-1, *[1] * (made.guesses.ndim - 1)), made.guesses, _GRAY)
        shown = images.flatten(1).amin(1) < images.flatten(1).amax(1)  # a gray guess was not read
        _, distance = judged(self.seen.of(victims), images, made.labels)
        _, density = judged(self.noisy.of(victims), images, made.labels, self.posterior.objective, self.posterior.prior)
        told = torch.tensor([bool(text) for text in made.certificates or [""] * len(victims)])
        self.images[victims, member] = images.to(self.images)
        if made.labels is not None:
            self.labels[victims, member] = made.labels
        self.loss[victims, member] = density.nan_to_num(torch.inf, torch.inf).to(self.loss)
        self.certified[victims, member] = told & shown.cpu()
        self.explains[victims, member] = (told | (distance.cpu() < _EXPLAINED)) & shown.cpu()
        if member >= self.solvers:
            self.steps[victims, member], self.evaluations[victims, member] = made.steps.cpu(), made.evaluations.cpu()
        for a, v in enumerate(victims.tolist()):
            self.ended[v][member] = made.ended[a]
            self.certificates[v][member] = made.certificates[a] if made.certificates else ""
            if made.unread and made.unread[a]:
                self.unread[v].append(f"{name}: {made.unread[a]}")

    def _trace(self, members: Tensor) -> Tensor | None:
        """Return the iterates (V, T, N, C, H, W) of a member (V,) for each victim, if iterates are kept.

        A guess without as many iterates is repeated.
        """
        if not self.traces:
            return None
        guesses = self.images[torch.arange(len(members)), members]
        count = max(trace.shape[1] for _, trace in self.traces.values())
        found = guesses[:, None].repeat(1, count, *[1] * (guesses.ndim - 1))
        for member, (victims, trace) in self.traces.items():
            own = members[victims] == member
            found[victims[own], : trace.shape[1]] = trace[own].to(found)
        return found

    @property
    def _order(self) -> Tensor:
        """The members (V, M), the best guess first."""
        return torch.where(self.certified, -torch.inf, self.loss).argsort(dim=1, stable=True)

    def best(self, victims: Tensor) -> Tensor:
        """Return the best guesses (A, N, C, H, W) for some victims (A,)."""
        return self.images[victims, self._order[victims, 0]]

    def reconstruction(self) -> Reconstruction:
        """Return each victim's guesses in the order of the choice."""
        order = self._order
        rows, best = torch.arange(len(order)), order[:, 0]
        order = torch.where(self.loss.gather(1, order).isinf(), best[:, None], order)  # members that did not run
        ended = [self.ended[v][m] for v, m in enumerate(best.tolist())]
        unread = [""] * len(order)
        for v in self.unexplained.tolist():
            unread[v] = plain_ascii("; ".join(self.unread[v]))
            if self.solvers == order.shape[1] - 1 or "out_of_budget" in self.ended[v]:
                ended[v] = "out_of_budget"
        return Reconstruction(
            guesses=self.images[rows, best],
            labels=self.labels[rows, best],
            loss=self.loss[rows, best],
            steps=self.steps.sum(1),
            evaluations=self.evaluations.sum(1),
            engine=self.engine,
            trace=self._trace(best),
            ended=tuple(ended),
            candidates=self.images[rows[:, None], order],
            certificates=tuple(self.certificates[v][m] for v, m in enumerate(best.tolist())),
            found_by=tuple(self.names[m] for m in best.tolist()),
            unread=tuple(unread),
        )
