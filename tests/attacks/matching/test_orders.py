"""Local steps in an unknown order: which sequences are possible, which are likely, and what a search makes of them."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import pytest
import torch

from medpfl.attacks import DLG, GradInv, iDLG
from medpfl.attacks.matching import GradientMatching, Normal, Suited
from medpfl.attacks.matching import orders as orders_module
from medpfl.attacks.matching import problem as problem_module
from medpfl.attacks.matching.orders import likely_sequences, unknown_order
from medpfl.attacks.optimize.racing import Race
from medpfl.core import progress
from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.threat import ThreatModel
from medpfl.metrics import ssim
from medpfl.metrics.pairing import pair
from medpfl.models import LeNet
from tests.attacks.scenes import scene, smooth, tiny

STEPS = Plan("FedAvg", batch_size=1, local_images=3, learning_rate=0.05, mode="eval")
IMAGES, LABELS = smooth(6, size=16).view(2, 3, 1, 16, 16), torch.tensor([[2, 0, 2], [1, 1, 0]])


def seen(plan=STEPS, *grants, images=IMAGES, labels=LABELS):
    network = LeNet("idlg").build((1, 16, 16), 3, 0)
    return scene(network, images, labels, plan, threat=ThreatModel(grants))


def alone(observation, victim, **known):
    """Return one victim's observation, with what is known of it."""
    (view,) = observation.views
    tensors = {name: t[victim : victim + 1] for name, t in view.update.tensors.items()}
    return replace(observation, views=(replace(view, update=view.update.replace(tensors)),), **known)


def entered(plan=STEPS):
    """Return the labels (V, N) in the order in which they entered."""
    orders = seen(plan, "order").order
    return LABELS.gather(1, orders[:, 0])


def generator():
    return torch.Generator().manual_seed(0)


def likely(observation, count=8):
    return likely_sequences(
        observation, torch.zeros(len(observation), observation.num_images).long(), count, generator()
    )


@pytest.mark.parametrize(
    ("plan", "grants", "unknown"),
    [
        (STEPS, (), True),
        (STEPS, ("labels",), True),
        (STEPS, ("order",), True),
        (STEPS, ("labels", "order"), False),
        (Plan("FedAvg", batch_size=3, epochs=2, mode="eval"), (), False),
        (Plan("FedSGD", batch_size=3, mode="eval"), (), False),
        (Plan("FedAvg", batch_size=1, local_images=3, sampling="poisson", mode="eval"), (), False),
    ],
)
def test_an_order_is_unknown_if_labels_enter_at_steps_that_are_not_granted(plan, grants, unknown):
    assert unknown_order(seen(plan, *grants)) is unknown


def test_the_sequence_is_among_the_likeliest_whatever_was_inferred():
    found = likely(seen())
    assert found.labels.shape == (2, 8, 3)
    assert found.order is None
    for sequences, own in zip(found.labels.tolist(), entered().tolist(), strict=True):
        assert own in sequences[:3]
        assert len(set(map(tuple, sequences))) == 8


def test_granted_labels_are_only_exchanged():
    found = likely_sequences(seen(STEPS, "labels"), LABELS, 8, generator())
    for sequences, own in zip(found.labels.tolist(), LABELS.tolist(), strict=True):
        assert all(Counter(sequence) == Counter(own) for sequence in sequences)
        assert len(set(map(tuple, sequences))) == 3
        assert sequences[3:] == sequences[:1] * 5  # there are no more


def test_a_granted_order_is_kept():
    plan = Plan("FedAvg", batch_size=1, local_images=3, epochs=2, learning_rate=0.05, mode="eval")
    observation = seen(plan, "order")
    found = likely(observation)
    assert torch.equal(found.order, observation.order[:, None].expand(-1, 8, -1, -1))
    for sequences, own in zip(found.labels.tolist(), LABELS.tolist(), strict=True):
        assert own in sequences[:3]


def test_a_second_epoch_has_orders_of_its_own():
    plan = Plan("FedAvg", batch_size=1, local_images=2, epochs=2, learning_rate=0.05, mode="eval")
    images, labels = IMAGES[:, :2], torch.tensor([[2, 0], [1, 0]])
    found = likely(seen(plan, images=images, labels=labels))
    assert found.order.shape == (2, 8, 2, 2)
    assert (found.order[:, :, 0] == torch.arange(2)).all()
    truth = seen(plan, "order", images=images, labels=labels).order
    for v in range(2):
        place = truth[v, 0].argsort()  # an image's name is its place in the first epoch
        wanted = (labels[v, truth[v, 0]].tolist(), place[truth[v, 1]].tolist())
        guesses = list(zip(found.labels[v].tolist(), found.order[v, :, 1].tolist(), strict=True))
        assert wanted in guesses[:2]
        assert len(set(map(str, guesses))) == 8


def test_images_of_one_step_have_no_order():
    plan = Plan("FedAvg", batch_size=2, local_images=3, learning_rate=0.05, mode="eval")
    sequences = likely(seen(plan), 18).labels[0].tolist()
    assert len(set(map(tuple, sequences))) == 18 == 6 * 3
    assert all(first <= second for first, second, _ in sequences)


@pytest.mark.parametrize("small", [True, False])
def test_too_many_sequences_are_searched_from_the_inferred_labels(small, monkeypatch):
    every = likely(seen(), 27).labels.tolist()
    monkeypatch.setattr(orders_module, "PLAYED" if small else "_FEW", 25)
    monkeypatch.setattr(orders_module, "stacks", lambda weights: small)
    inferred = torch.tensor([[0, 1, 2], [0, 0, 2]])
    found = likely_sequences(seen(), inferred, 4, generator()).labels.tolist()
    for some, ranked in zip(found, every, strict=True):
        assert len(set(map(tuple, ranked))) == 27 == len(list(itertools.product(range(3), repeat=3)))
        assert ranked[0] == some[0]


def test_a_victim_has_the_same_sequences_alone():
    both, second = likely(seen()), likely(alone(seen(), 1))
    assert torch.equal(both.labels[1:], second.labels)


def test_guesses_of_a_problem_are_what_separate_problems_would_be():
    labels = torch.nn.functional.one_hot(torch.tensor([[[0, 1, 2], [2, 2, 1]], [[0, 0, 2], [1, 2, 0]]]), 3).float()
    order = torch.tensor([[[[0, 1, 2]], [[2, 1, 0]]], [[[1, 0, 2]], [[0, 2, 1]]]])
    observation = seen()
    search = GradientMatching()
    rows, guess = torch.tensor([0, 1, 1, 0]), torch.tensor([1, 0, 1, 0])

    def problem(own, labels):
        parts = (search.objective, search.prior, search.constraint, search.basis)
        return problem_module.Matching(own, labels, *parts)

    among = problem(observation, labels[:, 0]).among(labels, order).of(rows, guess)
    z = among.join(torch.rand(4, 3, 1, 16, 16, generator=generator()), None)
    found = [among.evaluate(z, torch.arange(4))]
    among.stacked = False
    found.append(among.evaluate(z, torch.arange(4)))
    for values, slopes in found:
        for i, (victim, choice) in enumerate(zip(rows.tolist(), guess.tolist(), strict=True)):
            own = alone(observation, victim, order=order[victim, choice][None])
            value, slope = problem(own, labels[victim, choice][None]).evaluate(z[i][None], torch.tensor([0]))
            torch.testing.assert_close(values[i], value[0], rtol=1e-4, atol=1e-7)
            torch.testing.assert_close(slopes[i], slope[0], rtol=1e-3, atol=1e-6)


def test_fewer_guesses_are_evaluated_together_where_steps_hold_many_weights(monkeypatch):
    observation, whole, sizes = alone(seen(), 0), problem_module.Matching._stack, []

    def counted(self, z, *known):
        sizes.append(len(z))
        return whole(self, z, *known)

    def largest():
        sizes.clear()
        found = GradientMatching(steps=8)(observation, generator())
        return max(sizes), found.guesses

    monkeypatch.setattr(problem_module.Matching, "_stack", counted)
    together, guesses = largest()
    assert together > 1
    weights = sum(t.numel() for t in observation.views[0].weights.parameters.values())
    monkeypatch.setattr(problem_module, "_WEIGHTS", 3 * weights)  # of one guess: three steps
    one, same = largest()
    assert one == 1
    torch.testing.assert_close(guesses, same, atol=1e-3, rtol=0)


@pytest.mark.parametrize("starts", range(1, 10))
def test_a_growing_race_leaves_one_and_each_round_costs_the_same(starts):
    race, loss, left = Race(starts, 3, growing=True), torch.arange(starts).float(), []
    rounds = (starts - 1).bit_length()
    for step in range(3 * (2**rounds - 1) + 1):
        beaten = race.beaten(loss, step)
        cut = step in {3 * (2**k - 1) for k in range(1, rounds + 1)}
        assert cut == bool(beaten.any()) or starts == 1
        left.append(int((~race.outranked(loss, step)).sum()))
    assert left[-1] == 1
    assert left[0] == starts


def test_a_race_goes_on_where_rows_have_left():
    loss = torch.tensor([4.0, 1.0, 2.0, 3.0, 0.5])
    race = Race(4, 2, done=2, victims=torch.tensor([1, 0, 1, 0, 1]))  # after a cut, two of four are left
    assert race.beaten(loss, 0).tolist() == [True, False, False, False, False]
    assert race.beaten(loss, 1).tolist() == [False] * 5
    assert race.beaten(loss, 2).tolist() == [True, False, True, True, False]


@pytest.mark.slow
def test_images_are_read_without_labels_and_order():
    observation, truth = alone(seen(), 1), IMAGES[1, seen(STEPS, "order").order[1, 0]]
    found = iDLG(steps=100)(observation, generator())
    assert found.labels[0].tolist() == entered()[1].tolist()
    assert pair(found.guesses[0], truth).tolist() == [0, 1, 2]
    assert ssim(found.guesses[0], truth).mean() > 0.8
    assert found.evaluations > 100


@pytest.mark.parametrize("attack", [GradInv(steps=4), GradientMatching(steps=4, orders=1), DLG(steps=4)], ids=repr)
def test_every_search_takes_unknown_orders(attack):
    found = attack(seen(), generator())
    assert found.guesses.shape == (2, 3, 1, 16, 16)
    assert found.loss.isfinite().all()
    assert (found.steps <= 4).all()


@pytest.mark.parametrize("attack", [iDLG(steps=12), iDLG(steps=8, restarts=2), GradInv(steps=8)], ids=repr)
def test_progress_never_steps_back_after_the_race(attack):
    told = []
    with progress.listening(lambda share, _: told.append(share)):
        attack(seen(), generator())
    assert told == sorted(told)
    assert 0 <= told[0] < told[-1] <= 1


def test_without_a_race_the_labels_stay_as_inferred():
    found = GradientMatching(steps=2, orders=0)(seen(), generator())
    assert torch.equal(found.labels, found.labels.sort().values)
    with pytest.raises(InputError, match="orders"):
        GradientMatching(orders=-1)


def test_a_search_begins_with_noise_for_one_gradient_and_near_gray_for_several_steps():
    one = scene(tiny(), smooth(1).view(1, 1, 1, 12, 12), torch.tensor([[0]]), Plan())
    assert Suited().of(one, generator()) == Normal()
    assert Suited().of(seen(), generator()) == Normal(0.5, 0.1)
    assert Suited(0.2).of(seen(), generator()) == Normal(0.5, 0.2)
    assert torch.equal(Suited()((1, 1, 4, 4), generator()), Normal()((1, 1, 4, 4), generator()))
