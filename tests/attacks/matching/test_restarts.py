"""Pruned restarts: which stop, when, and that nothing else changes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medpfl.attacks import GradientMatching, GradInv
from medpfl.attacks.matching import Analytic
from medpfl.attacks.matching import problem as problem_module
from medpfl.attacks.matching.labels import Joint
from medpfl.attacks.matching.objectives import Cosine
from medpfl.attacks.matching.priors import NoPrior
from medpfl.attacks.matching.restarts import Starts, heats
from medpfl.attacks.matching.solved_start import Solved
from medpfl.attacks.matching.stages import Stage
from medpfl.attacks.matching.starts import Normal
from medpfl.attacks.optimize.coordinates import Pixels
from medpfl.attacks.optimize.lbfgs import LBFGS
from medpfl.attacks.optimize.optimizer import SignedAdam
from medpfl.attacks.optimize.racing import Race
from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.trace import tracing
from tests.attacks.optimize.test_optimizers import Problems
from tests.attacks.scenes import scene, smooth, tiny

IMAGES, LABELS = smooth(3).view(3, 1, 1, 12, 12), torch.tensor([[0], [2], [1]])


def seen(victims=slice(None)):
    return scene(tiny(), IMAGES[victims], LABELS[victims], Plan())


def guessed(attack, observation=None):
    return attack(observation or seen(), torch.Generator().manual_seed(0))


def search(**settings):
    parts = {"optimizer": SignedAdam(0.05), "start": Normal(0.5, 0.25), "basis": Pixels(), "warmup": (), "enough": 0.0}
    return GradientMatching(Cosine(), NoPrior(), **{**parts, "restarts": 4, "steps": 40, **settings})


@pytest.mark.slow
@settings(deadline=None)
@given(
    starts=st.integers(1, 9),
    victims=st.integers(1, 4),
    every=st.integers(1, 5),
    done=st.integers(0, 12),
    data=st.data(),
)
def test_each_victim_keeps_its_best_starts(starts, victims, every, done, data):
    values = data.draw(st.lists(st.integers(0, 5), min_size=starts * victims, max_size=starts * victims))
    loss, race = torch.tensor(values, dtype=torch.float32), Race(starts, every, done)
    for step in range(8):
        beaten, left = race.beaten(loss, step).view(starts, victims), starts
        if step and (done + step) % every:
            assert not beaten.any()
            continue
        for _ in range((done + step) // every):
            left = (left + 1) // 2
        for victim in range(victims):
            own = loss.view(starts, victims)[:, victim].tolist()
            best = sorted(range(starts), key=lambda start: (own[start], start))[:left]
            assert {start for start in range(starts) if not beaten[start, victim]} == set(best)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [LBFGS(history=5, tolerance=0), SignedAdam(0.01, tolerance=0)], ids=repr)
def test_a_race_is_what_runs_of_each_start_would_have_decided(optimizer):
    """Each restart also runs alone, up to every cut: the same ones are pruned, and the winner ends the same."""

    def hilly(z):
        return 2 + (z.square() + 3 * (4 * z).sin()).mean()

    starts, victims, steps, every = 5, 2, 16, 4
    z = 2 * torch.randn(starts * victims, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    problems = Problems(*[hilly] * len(z))
    found = optimizer.minimize(problems, z, steps, Race(starts, every))
    alone = [optimizer.minimize(Problems(hilly), row[None], steps) for row in z]
    for victim in range(victims):
        rows, left = [start * victims + victim for start in range(starts)], list(range(starts))
        for cut in range(every, 16, every):
            at_cut = {s: best_within(hilly, optimizer, z[rows[s]], steps, cut) for s in left}
            left = sorted(left, key=lambda s: at_cut[s])[: (len(left) + 1) // 2]
            gone = set(range(starts)) - set(left)
            assert all(found.ended[rows[s]] == "beaten" and found.steps[rows[s]] <= cut for s in gone)
        (winner,) = left
        torch.testing.assert_close(found.z[rows[winner]], alone[rows[winner]].z[0], rtol=1e-9, atol=1e-12)
        assert found.ended[rows[winner]] == alone[rows[winner]].ended[0] != "beaten"
        assert found.loss[rows].argmin() == winner


def best_within(function, optimizer, start, steps, cut):
    """Return the lowest loss of a run with `steps` steps by step `cut`, where it is left."""

    class Left(Exception):
        pass

    class Spy(Race):
        def beaten(self, loss, step):
            if step == cut:
                raise Left(loss[0].item())
            return torch.zeros_like(loss, dtype=torch.bool)

    with pytest.raises(Left) as left:
        optimizer.minimize(Problems(function), start[None], steps, Spy(1, 1))
    return left.value.args[0]


@pytest.mark.slow
def test_the_winner_is_one_of_the_starts_as_it_would_have_ended_and_the_steps_are_counted():
    whole, race = guessed(search()), guessed(search(halving=0.1))
    assert race.candidates.shape == whole.candidates.shape == (3, 4, 1, 1, 12, 12)
    assert torch.equal(race.candidates[:, 0], race.guesses)
    for victim in range(3):
        apart = (whole.candidates[victim] - race.guesses[victim]).abs().flatten(1).amax(1)
        assert apart.min() < 1e-4
    # Cuts after 4 and 8 steps; of n steps, n + 1 points are evaluated.
    assert race.evaluations.tolist() == [5 + 5 + 9 + 41] * 3
    assert whole.evaluations.tolist() == [4 * 41] * 3
    assert race.steps.tolist() == [40] * 3
    assert race.ended == ("max_steps",) * 3


@pytest.mark.slow
@pytest.mark.parametrize("stacked", [True, False], ids=["vmap", "loop"])
@pytest.mark.parametrize("victims", [slice(0, 1), slice(1, 3)], ids=["of 1", "of 2"])
def test_the_stack_of_a_victim_is_nothing_to_it(victims, stacked, monkeypatch):
    monkeypatch.setattr(problem_module, "stacks", lambda weights: stacked)
    attack = search(halving=0.2, steps=10, optimizer=SignedAdam(0.01, signed=False))

    def own(victims):
        turns = iter([[torch.Generator()], [torch.Generator().manual_seed(v) for v in range(3)][victims]])
        monkeypatch.setattr("medpfl.attacks.matching.search._spawn", lambda *_: next(turns))

    own(slice(None))
    whole = guessed(attack)
    own(victims)
    part = guessed(attack, seen(victims))
    torch.testing.assert_close(part.candidates, whole.candidates[victims], rtol=0, atol=1e-4)
    assert torch.equal(part.evaluations, whole.evaluations[victims])


@pytest.mark.parametrize("optimizer", [SignedAdam(0.05), LBFGS(history=3)], ids=["SignedAdam", "LBFGS"])
@pytest.mark.parametrize(("victims", "restarts"), [(1, 5), (3, 2), (3, 4), (7, 3)])
def test_no_more_rows_than_victims_are_evaluated_together(victims, restarts, optimizer, monkeypatch):
    sizes, one = [], problem_module.vmap

    def counting(function, **options):
        run = one(function, **options)
        return lambda z, known: sizes.append(len(z)) or run(z, known)

    monkeypatch.setattr(problem_module, "vmap", counting)
    images, labels = smooth(victims).view(victims, 1, 1, 12, 12), torch.arange(victims)[:, None] % 3
    found = guessed(
        search(restarts=restarts, halving=0.2, steps=4, optimizer=optimizer), scene(tiny(), images, labels, Plan())
    )
    assert max(sizes) <= victims
    assert found.candidates.shape[:2] == (victims, restarts)
    assert found.engine == "vmap"


@settings(deadline=None)
@given(victims=st.integers(1, 9), restarts=st.integers(1, 5), together=st.integers(0, 9))
def test_every_start_of_every_victim_is_run_once(victims, restarts, together):
    class Many:
        def __len__(self):
            return victims

    runs = [
        (victim, attempt)
        for some, attempts in heats(Starts(Many(), restarts), 0.0, together)
        for victim in some.tolist()
        for attempt in attempts
    ]
    assert sorted(runs) == [(v, a) for v in range(victims) for a in range(restarts)]


@pytest.mark.slow
def test_a_cut_in_a_coarse_stage_waits_for_the_attack_s_own_objective():
    stage, smooth_steps = Stage(NoPrior(), block=4, share=0.5), SignedAdam(0.01, signed=False)
    race = guessed(search(halving=0.1, warmup=(stage,), optimizer=smooth_steps))
    # All four take the 20 coarse steps, then one point each of the attack proper decides.
    assert race.evaluations.tolist() == [4 * 21 + 3 * 1 + 21] * 3
    assert race.steps.tolist() == [40] * 3
    whole = guessed(search(warmup=(stage,), optimizer=smooth_steps))
    for victim in range(3):
        apart = (whole.candidates[victim] - race.guesses[victim]).abs().flatten(1).amax(1)
        assert apart.min() < 1e-3


@pytest.mark.slow
def test_labels_that_are_searched_for_race_with_their_images():
    whole, race = (guessed(search(labels=Joint(), restarts=2, steps=20, halving=halving)) for halving in (0.0, 0.5))
    assert race.labels.shape == (3, 1)
    assert ((race.loss - whole.loss).abs() < 1e-4).all()


def test_iterates_are_those_of_all_starts():
    attack = search(halving=0.25, restarts=2, steps=8)
    with tracing(8):
        kept = guessed(attack)
    assert kept.trace.shape[1] == 3 + 9  # the loser leaves after its second step
    torch.testing.assert_close(kept.guesses, guessed(attack).guesses, rtol=0, atol=0)


def test_an_analytic_start_races_without_a_warm_up():
    solved = guessed(GradientMatching(start=Analytic(), steps=1)).loss
    found = guessed(GradientMatching(start=Analytic(), restarts=2, steps=8, halving=0.5))
    assert (found.loss <= solved).all()  # smooth images, which a warm-up begins with, are no solutions


@pytest.mark.parametrize("halving", [-0.1, 1.0])
def test_a_share_is_a_share(halving):
    with pytest.raises(InputError, match="halving"):
        GradientMatching(halving=halving)
    with pytest.raises(InputError, match="halving"):
        guessed(GradInv(halving=halving))


@pytest.mark.slow
def test_the_same_seed_gives_the_same_race():
    attack = GradInv(steps=12, restarts=3, halving=0.2, patience=3)
    one, same = guessed(attack), guessed(attack)
    assert torch.equal(one.candidates, same.candidates)
    assert torch.equal(one.evaluations, same.evaluations)


def test_a_search_tells_equal_images_of_a_batch_apart():
    found = torch.rand(3, 2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    found[1] = 0.3
    found[2, 0, 0, 0, 0] = torch.nan
    own = [torch.Generator().manual_seed(v) for v in range(3)]
    begun = Solved(found).images((2, 1, 4, 4), torch.arange(3), own)
    assert begun[0].equal(found[0])
    for batch, middle in ((begun[1], 0.3), (begun[2], 0.5)):
        assert not batch[0].equal(batch[1])
        assert 0 < (batch - middle).abs().max() < 0.1
    one = Solved(found[:, :1]).images((1, 1, 4, 4), torch.arange(2), own)
    assert one.equal(found[:2, :1])
