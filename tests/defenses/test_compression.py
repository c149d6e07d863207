"""Sparsification, quantization, clipping: against plain numpy, their moments, and error feedback."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medpfl.core.errors import InputError
from medpfl.core.types import Update
from medpfl.defenses import QSGD, Clipping, RandomK, Signs, TopK


def raw(seed=0, size=60):
    generator = torch.Generator().manual_seed(seed)
    return Update(
        {"w": torch.randn(size // 3, 2, generator=generator), "b": 3 * torch.randn(size // 3, generator=generator)}
    )


def numbers(update):
    return torch.cat([t.flatten() for t in update.tensors.values()]).numpy()


def send(defense, update, state=None, seed=0):
    return defense.update(update, defense.init() if state is None else state, torch.Generator().manual_seed(seed))


@given(keep=st.floats(0.001, 1), seed=st.integers(0, 99), size=st.integers(1, 30))
def test_topk_is_what_sorting_gives(keep, seed, size):
    update = raw(seed, 3 * size)
    sent, values = numbers(send(TopK(keep), update)[0]), numbers(update)
    count = max(1, round(keep * len(values)))
    expected = np.zeros_like(values)
    order = np.argsort(-np.abs(values), kind="stable")[:count]
    expected[order] = values[order]
    assert np.array_equal(sent, expected)


@pytest.mark.parametrize("make", [TopK, RandomK])
def test_by_layer_each_tensor_keeps_its_share(make):
    sent, _ = send(make(0.25, "layer"), raw())
    assert [int((t != 0).sum()) for t in sent.tensors.values()] == [10, 5]
    whole, _ = send(TopK(0.25), raw())
    assert int((whole.tensors["b"] != 0).sum()) > 8, "the large tensor gets more of the whole"


def test_ties_do_not_keep_more():
    sent, _ = send(TopK(0.5), Update({"w": torch.ones(8)}))
    assert int(sent.tensors["w"].sum()) == 4


def test_what_was_pruned_is_bounded_by_the_smallest_survivor():
    update = raw()
    sent, _ = send(TopK(0.2), update)
    bounds = TopK(0.2).disclose(sent).bounds
    kept = np.abs(numbers(sent))[numbers(sent) != 0]
    told = numbers(Update(bounds))
    assert set(told[numbers(sent) != 0]) == {0}
    assert set(told[numbers(sent) == 0]) == {kept.min()}
    assert (np.abs(numbers(update) - numbers(sent)) <= told).all()
    assert TopK(1.0).disclose(update).bounds["w"].max() == 0


def test_random_coordinates_are_uniform_and_say_which_they_are():
    update, counts = raw(), np.zeros(60)
    for seed in range(600):
        counts += numbers(send(RandomK(0.25), update, seed=seed)[0]) != 0
    assert counts.sum() == 600 * 15
    assert ((counts - 150) ** 2 / 150).sum() * 60 / 45 < 110, "chi square of 60 with negative dependence"
    sent, _ = send(RandomK(0.25), update)
    channel = RandomK(0.25).disclose(sent)
    assert ((numbers(Update(channel.precision)) > 0) == (numbers(sent) != 0)).all()
    kept = numbers(sent) != 0
    assert numbers(Update(channel(update.tensors)))[kept] == pytest.approx(numbers(sent)[kept])
    assert numbers(sent)[kept] == pytest.approx(4 * numbers(update)[kept])


def test_a_zero_says_nothing_even_where_few_coordinates_are_not_zero():
    update = Update({"w": torch.eye(1, 40)[0]})
    precision = RandomK(0.5).disclose(send(RandomK(0.5), update)[0]).precision["w"]
    assert int((precision > 0).sum()) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("levels", [1, 4, 64])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_qsgd_rounds_to_the_two_next_levels_with_the_right_odds(levels, scope):
    update = raw()
    sent = np.stack([numbers(send(QSGD(levels, scope), update, seed=s)[0]) for s in range(500)])
    for part, name in ((slice(40), "w"), (slice(40, 60), "b")):
        values = numbers(update)[part].astype(float)
        norm = np.linalg.norm(numbers(update)) if scope == "global" else update.tensors[name].norm().item()
        places, low = np.abs(values) / norm * levels, np.floor(np.abs(values) / norm * levels)
        got = np.abs(sent[:, part]) / norm * levels
        assert np.abs(got - got.round()).max() < 1e-3
        assert np.isin(got.round() - low, (0, 1)).all()
        up = (got.round() == low + 1).mean(0)
        assert np.abs(up - (places - low)).max() < 5 * 0.5 / math.sqrt(500)
        assert (np.sign(sent[:, part]) * np.sign(values) >= 0).all()


@pytest.mark.parametrize("levels", [2, 4, 32])
def test_qsgd_says_how_far_it_is_off(levels):
    """Fine levels, with a step below most coordinates, and coarse ones."""
    update = Update({"w": torch.randn(50, generator=torch.Generator().manual_seed(0))})
    sent = [send(QSGD(levels), update, seed=s)[0] for s in range(200)]
    real = torch.stack([s.tensors["w"] - update.tensors["w"] for s in sent]).square().mean().item()
    told = torch.stack([1 / QSGD(levels).disclose(s).precision["w"][0] for s in sent]).mean().item()
    assert told == pytest.approx(real, rel=0.3)


def test_qsgd_of_zeros_says_nothing():
    silent = QSGD(8).disclose(Update({"w": torch.zeros(3), "b": torch.ones(2)}))
    assert silent.precision["w"].tolist() == [0] * 3
    assert (silent.precision["b"] > 0).all()
    assert silent.bounds is None


def test_signs_are_scaled_by_the_mean_magnitude():
    for scope in ("layer", "global"):
        sent, _ = send(Signs(scope), raw())
        for name, tensor in raw().tensors.items():
            scale = tensor.abs().mean() if scope == "layer" else np.abs(numbers(raw())).mean()
            assert torch.allclose(sent.tensors[name], scale * tensor.sign())


def test_the_disclosed_sign_has_a_derivative():
    channel = Signs().disclose(send(Signs(), raw())[0])
    value = {k: t.clone().requires_grad_() for k, t in raw().tensors.items()}
    sum(t.square().sum() for t in channel(value).values()).backward()
    assert all(t.grad.isfinite().all() and t.grad.abs().max() > 0 for t in value.values())


def test_signs_of_a_given_magnitude_are_the_first_step_of_adam():
    weight = torch.nn.Parameter(torch.zeros(4, 3))
    weight.grad = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    weight.grad[0, 0] = 0.0
    torch.optim.Adam([weight], lr=0.01).step()
    sent, _ = send(Signs(magnitude=1.0), Update({"weight": weight.grad}))
    assert torch.allclose(-0.01 * sent.tensors["weight"], weight.detach(), rtol=1e-5)
    with pytest.raises(InputError, match="magnitude is 0"):
        Signs(magnitude=0)


@pytest.mark.parametrize("defense", [TopK(0.1, feedback=True), RandomK(0.1, feedback=True), Signs()], ids=repr)
def test_feedback_loses_nothing(defense):
    """The sum of all sent updates and the remaining error equals the sum of all raw updates."""
    state, total, sum_of_raw = defense.init(), np.zeros(60), np.zeros(60)
    for number in range(20):
        sent, after = send(defense, raw(number), state, seed=number)
        assert after is not state
        state, total = after, total + numbers(sent)
        sum_of_raw += numbers(raw(number))
    assert total + numbers(Update(state["owed"])) == pytest.approx(sum_of_raw, abs=1e-4)
    assert np.linalg.norm(total - sum_of_raw) < 1.2 * np.linalg.norm(numbers(raw())) * math.sqrt(60)


def test_without_feedback_nothing_is_remembered():
    for defense in (TopK(0.1), RandomK(0.1), Signs(feedback=False)):
        assert send(defense, raw())[1] == {}


def test_feedback_of_another_round_is_added_before_compression():
    update = Update({"w": torch.tensor([1.0, 0.0])})
    first, state = send(TopK(0.5, feedback=True), Update({"w": torch.tensor([5.0, 3.0])}))
    second, state = send(TopK(0.5, feedback=True), update, state)
    assert (first.tensors["w"].tolist(), second.tensors["w"].tolist()) == ([5, 0], [0, 3])
    assert state["owed"]["w"].tolist() == [1, 0]


@pytest.mark.slow
@given(norm=st.floats(1e-3, 1e3), seed=st.integers(0, 50))
def test_clipping_keeps_the_direction(norm, seed):
    update = raw(seed)
    sent = numbers(send(Clipping(norm), update)[0])
    size = np.linalg.norm(numbers(update))
    assert sent == pytest.approx(numbers(update) * min(1, norm / size), rel=1e-5)


def test_clipping_by_layer():
    sent, _ = send(Clipping(2.0, "layer"), Update({"w": torch.tensor([3.0, 4.0]), "b": torch.tensor([0.5])}))
    assert sent.tensors["w"].tolist() == pytest.approx([1.2, 1.6])
    assert sent.tensors["b"].tolist() == [0.5]


def test_clipping_has_a_derivative_at_zero():
    value = {"w": torch.zeros(3, requires_grad=True)}
    Clipping(1.0).disclose(Update({"w": torch.zeros(3)}))(value)["w"].sum().backward()
    assert value["w"].grad.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        *((lambda k=k, m=m: m(k), f"keep is {k}") for k in (0, -0.1, 1.1, math.nan, math.inf) for m in (TopK, RandomK)),
        *((lambda m=m: m(scope="row"), "choose 'global' or 'layer'") for m in (TopK, RandomK, QSGD, Signs, Clipping)),
        *((lambda n=n: Clipping(n), f"norm is {n}") for n in (0, -1.0, math.nan, math.inf)),
        *((lambda n=n: QSGD(n), f"levels is {n}") for n in (0, -1, 1.5, True)),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize("size", [0.02, 0.1, 10.0])
def test_a_small_tensor_is_told_its_own_rounding_error(size):
    """With one norm for all tensors, a tensor with small values has far less rounding error than the average."""
    defense = QSGD(4, "global")
    generator = torch.Generator().manual_seed(0)
    update = Update({"large": torch.randn(2000, generator=generator), "small": torch.randn(2000, generator=generator)})
    update = update.replace({"large": update.tensors["large"], "small": size * update.tensors["small"]})
    sent = [defense.update(update, {}, torch.Generator().manual_seed(seed))[0] for seed in range(30)]
    for name, raw_tensor in update.tensors.items():
        found = torch.stack([(s.tensors[name] - raw_tensor).square().mean() for s in sent]).mean()
        told = torch.stack([1 / defense.disclose(s).precision[name][0] for s in sent]).mean()
        assert 0.4 < float(found / told) < 1.5, name


def test_a_tensor_that_was_rounded_to_zeros_is_not_told_to_be_exact():
    sent = Update({"large": torch.tensor([3.0, -6.0]), "zeros": torch.zeros(50)})
    precision = QSGD(2, "global").disclose(sent).precision["zeros"]
    assert 0 < float(precision[0]) < 50 / 3.0**2 * 1.001
