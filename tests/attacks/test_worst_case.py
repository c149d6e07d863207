"""`WorstCase`: which members run, what they may spend, and which guess it chooses."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

from medpfl.attacks import RGAP, WorstCase, worst_case
from medpfl.attacks.matching import GradientMatching
from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.roles import Defense
from medpfl.core.threat import ThreatModel
from medpfl.core.trace import tracing
from medpfl.core.types import Observation, Reconstruction
from medpfl.defenses import LaplaceNoise, TopK
from medpfl.models import MLP, ConvNet, ViT
from tests.attacks.scenes import scene, smooth, tiny

IMAGES = smooth(3).view(3, 1, 1, 12, 12)
LABELS = torch.tensor([[0], [2], [1]])
GRANTED = ThreatModel(("defense",))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def convolutional(**options) -> Observation:
    """Return an observation for which no analytic attack applies."""
    return scene(ConvNet(width=4, depth=2).build((1, 12, 12), 3, 0), IMAGES, LABELS, Plan(), **options)


@cache
def searched(defense: Defense | None) -> tuple[Observation, Reconstruction]:
    """Return an observation under a defense that is known, and what a short search finds."""
    seen = convolutional(defense=defense, threat=GRANTED)
    return seen, WorstCase(evaluations=120)(seen, generator())


def test_a_solved_update_is_not_searched():
    seen = scene(tiny(), IMAGES, LABELS, Plan())
    found = WorstCase()(seen, generator())
    alone = RGAP()(seen, generator())
    assert torch.allclose(found.guesses, alone.guesses, atol=1e-4)
    assert found.evaluations.tolist() == [0, 0, 0]
    assert found.ended == alone.ended


@pytest.mark.slow
@pytest.mark.parametrize("defense", [None, LaplaceNoise(1e-3), TopK(0.5)])
def test_searches_keep_the_budget(defense):
    _, found = searched(defense)
    assert ((found.evaluations > 60) & (found.evaluations <= 1.2 * 120)).all()


def test_a_race_of_label_sequences_keeps_the_budget_although_line_searches_backtrack():
    plan = Plan(algorithm="FedAvg", batch_size=1, local_images=3, learning_rate=0.01)
    images, labels = smooth(6).view(2, 3, 1, 12, 12), torch.tensor([[0, 2, 1], [1, 0, 2]])
    seen = scene(MLP((64,)).build((1, 12, 12), 3, 0), images, labels, plan)
    found = WorstCase(evaluations=120)(seen, generator())
    assert ((found.evaluations > 60) & (found.evaluations <= 1.1 * 120)).all()


@pytest.mark.parametrize(
    ("epochs", "grants", "order"), [(1, (), [0, 1]), (1, ("order",), "as granted"), (2, (), "unknown")]
)
def test_the_last_search_takes_the_sequence_of_labels_that_the_first_found(monkeypatch, epochs, grants, order):
    plan, called = Plan(algorithm="FedAvg", batch_size=1, local_images=2, epochs=epochs), []
    seen = scene(tiny(), smooth(2).view(1, 2, 1, 12, 12), torch.tensor([[2, 0]]), plan, threat=ThreatModel(grants))
    search = GradientMatching.__call__

    def spied(self: GradientMatching, seen: Observation, generator: torch.Generator) -> Reconstruction:
        called.append((seen, found := search(self, seen, generator)))
        return found

    monkeypatch.setattr(GradientMatching, "__call__", spied)
    WorstCase(evaluations=120)(seen, generator())
    (first, found), *rest = called
    assert first.labels is None
    if order == "unknown":  # a guess holds no order of several epochs
        assert not rest
        return
    ((last, _),) = rest
    assert last.labels.tolist() == found.labels.tolist()
    assert last.order[0, 0].tolist() == (first.order[0, 0].tolist() if order == "as granted" else order)


def test_the_last_search_takes_no_labels_of_an_attack_that_read_nothing(monkeypatch):
    plan, taken = Plan(algorithm="FedAvg", batch_size=1, local_images=2, learning_rate=0.1), []
    images, labels = smooth(2).view(1, 2, 1, 12, 12), torch.tensor([[2, 1]])
    network, noise = MLP((64, 64)).build((1, 12, 12), 3, 0), LaplaceNoise(1e-2)
    seen = scene(network, images, labels, plan, defense=noise, threat=ThreatModel(("labels",)))
    search = worst_case.Search.__call__

    def spied(self: worst_case.Search, seen: Observation, generator: torch.Generator) -> Reconstruction:
        taken.append(self.sequence)
        return search(self, seen, generator)

    monkeypatch.setattr(worst_case.Search, "__call__", spied)
    found = WorstCase(evaluations=120)(seen, generator())
    assert "Separation" in found.unread[0]
    first, last = taken
    assert first is None
    assert sorted(last[0].tolist()) == [1, 2]


@pytest.mark.parametrize(
    "plan", [Plan(batch_size=2, mode="train"), Plan("FedAvg", batch_size=1, local_images=2, epochs=2)]
)
def test_deep_networks_and_mixed_batches_are_searched_in_one_way(plan):
    network = ConvNet(width=4, depth=2, norm="batch") if plan.batch_size > 1 else MLP((16,) * 12)
    images, labels = smooth(2).view(1, 2, 1, 12, 12), torch.tensor([[0, 1]])
    seen = scene(network.build((1, 12, 12), 3, 0), images, labels, plan)
    assert not worst_case._searches(seen, 120)[1]
    WorstCase(evaluations=120)(seen, generator())


@pytest.mark.slow
def test_the_guess_is_the_first_candidate_and_the_likeliest():
    seen, found = searched(None)
    assert found.candidates is not None
    assert found.candidates.shape == (3, 2, 1, 1, 12, 12), "Posterior, and iDLG from its guess"
    assert torch.equal(found.candidates[:, 0], found.guesses)
    _, density = worst_case.judged(worst_case.with_noise(seen), found.candidates[:, 1], found.labels, *_posterior(seen))
    assert (found.loss <= density).all()


def _posterior(seen):
    search = worst_case.Posterior(floor=1e-3).matching(seen)
    return search.objective, search.prior


class Certain(RGAP):
    """Reads every image as a ramp, and says that it is certain, unless the image is gray."""

    level = 1.0

    def check(self, model, plans, image_shape):
        pass

    def __call__(self, seen, generator):
        ramp = torch.linspace(0, self.level, 144).view(1, 1, 1, 12, 12).expand(len(seen), -1, -1, -1, -1)
        count = torch.zeros(len(seen), dtype=torch.long)
        ended = ("stalled",) * len(seen)
        return Reconstruction(
            ramp, None, count.float(), count, count, ended, certificates=("by its zeros",) * len(seen)
        )


class Gray(Certain):
    level = 0.0


def test_a_certificate_comes_before_the_density(monkeypatch):
    monkeypatch.setattr(worst_case, "_SOLVERS", (Certain(),))
    found = WorstCase(evaluations=100)(convolutional(), generator())
    assert found.certificates == ("by its zeros",) * 3
    assert found.found_by == ("Certain()",) * 3
    assert found.guesses[0, 0, 0, -1, -1] == 1
    assert found.evaluations.tolist() == [0, 0, 0]


class Blind(Certain):
    """Reads nothing of the second update."""

    def __call__(self, seen, generator):
        made = super().__call__(seen, generator)
        told, gray = ("", "too much noise", ""), torch.tensor([1.0, 0.0, 1.0]).view(-1, 1, 1, 1, 1)
        return replace(made, guesses=made.guesses * gray, certificates=("sure", "", "sure"), unread=told)


def test_it_repeats_why_its_members_read_nothing_of_updates_that_no_guess_explains(monkeypatch):
    monkeypatch.setattr(worst_case, "_SOLVERS", (Blind(),))
    assert WorstCase(evaluations=0)(convolutional(), generator()).unread == ("", "Blind(): too much noise", "")
    monkeypatch.setattr(worst_case, "_SOLVERS", (Blind(), Certain()))
    assert WorstCase(evaluations=0)(convolutional(), generator()).unread == ("", "", ""), "another one read it"


@pytest.mark.slow
def test_a_certificate_of_a_gray_guess_certifies_no_image(monkeypatch):
    monkeypatch.setattr(worst_case, "_SOLVERS", (Gray(),))
    found = WorstCase(evaluations=100)(convolutional(), generator())
    assert (found.evaluations > 0).all()
    assert found.certificates == ("", "", "")
    assert set(found.found_by) <= {"Posterior()", "iDLG(), from the best guess"}


def test_a_budget_too_small_for_searches_is_no_failure_of_the_attack():
    seen = scene(tiny(), IMAGES, LABELS, Plan(), defense=LaplaceNoise(1e-2), threat=GRANTED)
    assert WorstCase(evaluations=0)(seen, generator()).ended == ("out_of_budget",) * 3
    with pytest.raises(InputError, match="evaluations is 99, but no analytic attack applies"):
        WorstCase(evaluations=99).check(convolutional().model, (Plan(),), (1, 12, 12))
    with pytest.raises(InputError, match="evaluations is -1"):
        WorstCase(evaluations=-1)


class Traced(Certain):
    """Keeps two iterates."""

    def __call__(self, seen, generator):
        made = super().__call__(seen, generator)
        return replace(made, engine="vmap", trace=made.guesses[:, None].expand(-1, 2, -1, -1, -1, -1) * 0.25)


def test_it_keeps_the_iterates_of_the_member_it_chose_and_names_the_engine(monkeypatch):
    monkeypatch.setattr(worst_case, "_SOLVERS", (Certain(), Traced()))
    found = WorstCase(evaluations=0)(convolutional(), generator())
    assert (found.engine, found.found_by) == ("vmap", ("Certain()",) * 3)
    assert found.trace is not None
    assert torch.equal(found.trace, found.guesses[:, None].expand(-1, 2, -1, -1, -1, -1)), "it has none: its guess"
    monkeypatch.setattr(worst_case, "_SOLVERS", (Traced(),))
    assert torch.equal(WorstCase(evaluations=0)(convolutional(), generator()).trace, found.trace * 0.25)


def test_an_analytic_attack_has_no_iterates_but_its_guess():
    with tracing(6):
        found = WorstCase()(scene(tiny(), IMAGES, LABELS, Plan()), generator())
    assert (found.engine, found.trace) == ("loop", None)


@pytest.mark.parametrize(
    ("mode", "batch", "name"),
    [
        ("train", 2, "GradInv(tv=0.1, rate=0.1)"),
        ("eval", 2, "Posterior()"),
        ("train", 1, "Posterior()"),
    ],
)
def test_batches_that_batch_norm_mixes_are_searched_on_the_cosine(mode, batch, name):
    network = ConvNet(width=4, depth=2, norm="batch").build((1, 12, 12), 3, 0)
    images, labels = smooth(2 * batch).view(2, batch, 1, 12, 12), torch.zeros(2, batch, dtype=torch.long)
    seen = scene(network, images, labels, Plan(batch_size=batch, mode=mode))
    assert [search.name for search in worst_case._searches(seen, 200)[0]] == [name]


def test_some_victims_of_an_observation_are_those_that_it_would_hold_alone():
    plan = Plan(algorithm="FedAvg", batch_size=1, local_images=2, epochs=1)
    images, labels = smooth(6).view(3, 2, 1, 12, 12), torch.tensor([[0, 1], [2, 0], [1, 1]])
    threat = ThreatModel(("defense", "labels", "order"))
    some = torch.tensor([2, 0])
    whole = scene(tiny(), images, labels, plan, threat=threat, defense=LaplaceNoise(1e-2)).of(some)
    assert whole.labels is not None
    assert whole.order is not None
    assert whole.labels.tolist() == [[1, 1], [0, 1]]
    assert len(whole) == len(whole.order) == 2
    (view,) = whole.views
    assert view.channel is not None
    assert view.channel.precision is not None
    assert {len(t) for t in (*view.update.tensors.values(), *view.channel.precision.values())} == {2}


@pytest.mark.parametrize(("images", "expected"), [(1, True), (2, False)])
def test_the_mean_of_a_batch_is_no_explanation(images, expected):
    """Of a batch, `APRIL` reads a mean. No other analytic attack takes a vision transformer's batch."""
    network, plans = ViT(4, depth=1, width=48).build((1, 12, 12), 3, 0), (Plan(batch_size=images),)
    assert type(worst_case.solvers_of(network, plans, (1, 12, 12))[-1]).__name__ == "APRIL"
    assert worst_case.may_explain(network, plans, (1, 12, 12)) is expected
