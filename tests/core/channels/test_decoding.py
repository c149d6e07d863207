"""The rest of an update after a public map is undone: the raw coordinates, their noise and their bounds."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medpfl.core.channels.channel import Channel
from medpfl.core.channels.decoding import decoded, decoded_all
from medpfl.core.types import Update
from medpfl.defenses import Clipping, GaussianNoise, LaplaceNoise, RandomK, Signs, TopK

SHAPES = {"a.weight": (3, 4), "a.bias": (3,), "b.weight": (2, 3), "b.bias": (2,)}
SIZE = sum(math.prod(shape) for shape in SHAPES.values())


def shaped(values):
    parts = values.split([math.prod(shape) for shape in SHAPES.values()])
    return {k: part.view(shape) for part, (k, shape) in zip(parts, SHAPES.items(), strict=True)}


def flat(tensors):
    return torch.cat([tensors[k].flatten() for k in SHAPES])


def on_flat(function):
    return lambda tensors: shaped(function(flat(tensors)))


def draw(seed):
    return torch.Generator().manual_seed(seed)


def raw(seed=0, size=1e-3):
    return size * torch.randn(SIZE, generator=draw(seed))


def order(seed):
    return torch.randperm(SIZE, generator=draw(seed))


def permutation(seed):
    places = order(seed)
    return on_flat(lambda x: x[places])


def signs(seed):
    flips = 2.0 * torch.randint(2, (SIZE,), generator=draw(seed)) - 1
    return on_flat(lambda x: x * flips.to(x))


def scaling(seed):
    factors = torch.randn(SIZE, generator=draw(seed)).exp()
    return on_flat(lambda x: x * factors.to(x))


def shift(seed):
    constants = 0.1 * torch.randn(SIZE, generator=draw(seed))
    return on_flat(lambda x: x + constants.to(x))


def mask(seed):
    kept = torch.rand(SIZE, generator=draw(seed)) < 0.7
    return on_flat(lambda x: x * kept.to(x))


KINDS = {"permutation": permutation, "signs": signs, "scaling": scaling, "shift": shift, "mask": mask}
MAPS = st.lists(st.tuples(st.sampled_from(sorted(KINDS)), st.integers(0, 99)), min_size=1, max_size=5)


def chained(maps, start=None):
    channel = start or Channel()
    for kind, seed in maps:
        channel = channel.then(KINDS[kind](seed))
    return channel


def update_of(values):
    return Update(shaped(values), num_samples=3, buffers={"m": torch.ones(2)})


def reader(maps):
    """Return, for each raw coordinate, the sent one that reveals it (or -1) and its factor, worked out by hand."""
    places, factor = torch.arange(SIZE), torch.ones(SIZE, dtype=torch.float64)
    for kind, seed in maps:
        unit = flat(KINDS[kind](seed)(shaped(torch.ones(SIZE, dtype=torch.float64))))
        none = flat(KINDS[kind](seed)(shaped(torch.zeros(SIZE, dtype=torch.float64))))
        if kind == "permutation":
            places, factor = places[order(seed)], factor[order(seed)]
        else:
            factor = factor * (unit - none)
    back = torch.full((SIZE,), -1)
    kept = factor != 0
    back[places[kept]] = torch.arange(SIZE)[kept]
    return back, factor


@pytest.mark.slow
@given(MAPS)
@settings(deadline=None, max_examples=40)
def test_any_composition_of_permutations_signs_scalings_shifts_and_masks_is_undone(maps):
    channel, values = chained(maps), raw()
    sent = flat(channel(shaped(values)))
    found, left = decoded(update_of(sent), channel)
    told, _ = reader(maps)
    known = told >= 0
    size = 1 + 10 * ("shift" in dict(maps)) * 1e2 * 10
    assert torch.allclose(flat(found.tensors)[known], values[known], rtol=1e-4, atol=1e-6 * size)
    assert (flat(found.tensors)[~known] == 0).all()
    assert left.additive
    if known.all():
        assert left.precision is None
    else:
        assert ((flat(left.precision) > 0) == known).all()
    assert (found.num_samples, found.buffers["m"].tolist()) == (3, [1, 1])


@pytest.mark.slow
@given(st.lists(st.tuples(st.sampled_from(["permutation", "signs"]), st.integers(0, 99)), min_size=1, max_size=6))
@settings(deadline=None, max_examples=30)
def test_orders_and_signs_are_undone_to_the_last_bit(maps):
    channel, values = chained(maps), raw()
    found, left = decoded(update_of(flat(channel(shaped(values)))), channel)
    assert torch.equal(flat(found.tensors), values)
    assert left.silent
    assert decoded_all([update_of(values)], [channel])[1] is None


@pytest.mark.slow
@given(MAPS, MAPS, st.booleans())
@settings(deadline=None, max_examples=40)
def test_noise_and_bounds_between_maps_end_at_the_coordinates_that_have_them(before, after, noise):
    """Maps after the noise carry it forward. Undoing them brings all of it back, divided by the factor before it."""
    told = (1 + torch.arange(SIZE)).double()
    own = {"precision" if noise else "bounds": shaped(told.float())}
    channel = chained(after, chained(before).then(**own))
    sent = flat(channel(shaped(raw())))
    _, left = decoded(update_of(sent), channel)
    whole, _ = reader([*before, *after])
    first, factor = reader(before)
    known = whole >= 0
    place = first[known]
    if noise:
        expected = told[place] * factor[place].square()
        assert torch.allclose(flat(left.precision).double()[known], expected, rtol=1e-4)
        assert (flat(left.precision)[~known] == 0).all()
    else:
        assert torch.allclose(flat(left.bounds).double()[known], told[place] / factor[place].abs(), rtol=1e-4)


@pytest.mark.parametrize("first", ["noise", "permutation"])
def test_noise_of_each_coordinate_is_the_same_before_and_after_an_order_but_for_its_place(first):
    precision = shaped(1.0 + torch.arange(SIZE))
    channel = Channel()
    channel = channel.then(precision=precision) if first == "noise" else channel
    channel = channel.then(permutation(4))
    channel = channel.then(precision=precision) if first == "permutation" else channel
    _, left = decoded(update_of(flat(channel(shaped(raw())))), channel)
    if first == "noise":
        assert torch.equal(flat(left.precision), flat(precision))
    else:
        assert torch.equal(flat(left.precision)[order(4)], flat(precision))


@pytest.mark.parametrize("pruned_first", [True, False])
def test_top_k_and_an_order_in_either_order(pruned_first):
    from dataclasses import dataclass

    from medpfl.core.roles import Defense

    @dataclass(frozen=True, repr=False)
    class Order(Defense):
        def update(self, value, state, generator):
            return value.replace(permutation(4)(value.tensors)), state

        def disclose(self, sent, plan=None, before=None):
            return (before or Channel()).then(permutation(4))

    defense = TopK(0.3) | Order() if pruned_first else Order() | TopK(0.3)
    values = raw()
    sent, _ = defense.update(update_of(values), defense.init(), draw(0))
    found, left = decoded(sent, defense.disclose(sent))
    survivors = flat(found.tensors) != 0
    assert survivors.sum() == round(0.3 * SIZE)
    assert torch.equal(flat(found.tensors)[survivors], values[survivors])
    assert torch.equal(flat(left.bounds) == 0, survivors)
    assert (values[~survivors].abs() <= flat(left.bounds)[~survivors]).all()


def test_a_dense_rotation_is_undone_and_its_noise_is_of_the_same_size():
    matrix = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=draw(1), dtype=torch.float64))[0]
    for dtype in (torch.float64, torch.float32):  # of a matrix that does not mix with float64, too
        channel = Channel().then(on_flat(partial(torch.mv, matrix.to(dtype))))
        sent = (matrix @ raw().double()).float()
        found, left = decoded(update_of(sent), channel)
        assert torch.allclose(flat(found.tensors), raw(), atol=1e-8)
        assert left.silent
        noisy = channel.then(precision=shaped(torch.full((SIZE,), 4e6)))
        _, left = decoded(update_of(sent), noisy)
        assert flat(left.precision).mean().item() == pytest.approx(4e6, rel=0.7)


def test_noise_before_a_rotation_has_its_mean_variance_and_what_is_unknown_makes_all_unknown():
    matrix = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=draw(1), dtype=torch.float64))[0]
    turn = on_flat(lambda x: matrix.to(x) @ x)
    channel = Channel(precision=shaped(torch.full((SIZE,), 4.0))).then(turn)
    assert flat(channel.precision).mean().item() == pytest.approx(4, rel=0.5)
    lost = torch.full((SIZE,), 4.0).index_fill(0, torch.tensor([3]), 0.0)
    assert not flat(Channel(precision=shaped(lost)).then(turn).precision).any()
    bound = Channel(bounds=shaped(torch.ones(SIZE))).then(turn)
    assert bound.bounds is None
    assert 1 / flat(bound.precision).mean().item() == pytest.approx(1 / 3, rel=0.6)


def test_a_projection_is_left_to_gradient_matching():
    matrix = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=draw(1), dtype=torch.float64))[0][:, :5]
    channel = Channel().then(on_flat(lambda x: (matrix @ (matrix.T @ x.double())).to(x)))
    update = update_of(flat(channel(shaped(raw()))))
    assert decoded(update, channel) == (update, channel)


@pytest.mark.parametrize("defense", [Clipping(1e-3), Signs(feedback=False), Clipping(1e-3, scope="layer")], ids=repr)
def test_what_is_not_linear_stays_as_it_is(defense):
    sent, _ = defense.update(update_of(raw()), defense.init(), draw(0))
    channel = defense.disclose(sent)
    assert decoded(sent, channel) == (sent, channel)


@pytest.mark.parametrize("norm", [1e-3, 10.0])
@pytest.mark.parametrize("kind", ["permutation", "signs", "scaling"])
def test_a_map_before_clipping_is_undone_and_the_clipping_is_that_of_the_raw_update(kind, norm):
    defense = Clipping(norm)
    channel = defense.disclose(update_of(raw()), before=Channel().then(KINDS[kind](3)))
    sent = update_of(flat(channel(shaped(raw()))))
    found, left = decoded(sent, channel)
    factor = flat(sent.tensors).norm() / flat(KINDS[kind](3)(shaped(raw()))).norm()
    assert torch.allclose(flat(found.tensors), factor * raw(), rtol=1e-4)
    assert torch.allclose(flat(left(shaped(raw()))), flat(found.tensors), rtol=1e-4)
    assert not left.additive
    slope = torch.func.grad(lambda x: flat(left(shaped(x)))[0])(raw())
    assert slope.isfinite().all()
    stacked = torch.func.vmap(lambda x: flat(left(shaped(x))))(torch.stack([raw(), raw(1)]))
    assert torch.allclose(stacked[0], flat(found.tensors), rtol=1e-4)


def test_a_copied_coordinate_is_the_mean_by_precision():
    def twice(tensors):
        x = flat(tensors)
        return shaped(torch.cat([x[:1], 2 * x[:1], x[2:]]))

    channel = Channel().then(twice, precision=shaped(torch.ones(SIZE)))
    sent = flat(twice(shaped(raw(size=1.0))))
    sent[0] += 1
    found, left = decoded(update_of(sent), channel)
    assert flat(found.tensors)[0].item() == pytest.approx(raw(size=1.0)[0].item() + 1 / 5, rel=1e-5)
    assert flat(left.precision)[:3].tolist() == [5, 0, 1]
    assert flat(found.tensors)[1] == 0


def test_what_does_not_explain_the_update_is_not_believed():
    channel = Channel().then(mask(3))
    update = update_of(raw())  # it was not masked at all
    assert decoded(update, channel) == (update, channel)
    noisy = Channel().then(mask(3)).then(precision=shaped(torch.full((SIZE,), 1e6)))
    assert decoded(update, noisy)[1].additive, "noise of that size explains it"


def test_random_k_is_divided_by_its_factor_and_the_lost_ones_say_nothing():
    defense = RandomK(0.5)
    sent, _ = defense.update(update_of(raw()), defense.init(), draw(0))
    found, left = decoded(sent, defense.disclose(sent))
    kept = flat(sent.tensors) != 0
    assert torch.allclose(flat(found.tensors)[kept], raw()[kept])
    assert ((flat(left.precision) > 0) == kept).all()
    assert left.additive


def test_laplace_noise_stays_laplace_and_its_variance_is_of_the_raw_coordinates():
    channel = LaplaceNoise(0.5).disclose(update_of(raw()), before=Channel().then(scaling(2)))
    _, left = decoded(update_of(raw()), channel)
    assert left.laplace
    factor = flat(scaling(2)(shaped(torch.ones(SIZE))))
    assert torch.allclose(flat(left.precision), factor.square() * 2, rtol=1e-4)


def test_what_differs_between_victims_is_undone_for_each():
    def flipped(tensors, known):
        return {k: t * known[k] for k, t in tensors.items()}

    ways = [shaped(2.0 * torch.randint(2, (SIZE,), generator=draw(v)) - 1) for v in range(2)]
    channels = [Channel().then(flipped, known=way) for way in ways]
    sent = [update_of(flat(flipped(shaped(raw(v)), way))) for v, way in enumerate(ways)]
    found, left = decoded_all(sent, channels)
    assert left is None
    for v in range(2):
        assert torch.equal(flat({k: t[v] for k, t in found.tensors.items()}), raw(v))


def test_what_cannot_be_undone_for_one_victim_is_not_for_any():
    channels = [Channel().then(mask(3)) for _ in range(2)]
    honest = update_of(flat(mask(3)(shaped(raw()))))
    found, left = decoded_all([honest, update_of(raw())], channels)
    assert torch.equal(flat({k: t[0] for k, t in found.tensors.items()}), flat(honest.tensors))
    assert left.apply is channels[0].apply


def test_noise_alone_is_handed_on_as_it_is():
    defense = GaussianNoise(0.1)
    sent = update_of(raw())
    channel = defense.disclose(sent)
    assert decoded(sent, channel) == (sent, channel)
    assert decoded_all([sent], [Channel()])[1] is None
