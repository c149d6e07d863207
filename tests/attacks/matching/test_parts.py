import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.func import grad

from medpfl.attacks import DLG, iDLG
from medpfl.attacks.matching.constraints import Box
from medpfl.attacks.matching.label_targets import free_labels, label_scale, label_vectors, linear_loss, rounded
from medpfl.attacks.matching.labels import LastLayer, bias_gradient
from medpfl.attacks.matching.objectives import Cosine, SquaredDistance
from medpfl.attacks.matching.priors import Smoothness, TotalVariation
from medpfl.attacks.matching.starts import Normal, Patterned
from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.threat import ThreatModel
from medpfl.defenses import GaussianNoise
from tests.attacks.scenes import scene, smooth, tiny

OBJECTIVES = [SquaredDistance(), SquaredDistance("none"), Cosine(), Cosine("layer"), Cosine(top=1)]


def updates(seed):
    g = torch.Generator().manual_seed(seed)
    return {k: torch.randn(s, generator=g, dtype=torch.float64) for k, s in (("a", (3, 4)), ("b", (5,)))}


def positive(seed):
    return {k: v.square() for k, v in updates(seed).items()}


def distance(objective, fake, sent, precision=None, bounds=None):
    known = {"sent": sent, "precision": precision, "bounds": bounds}
    return objective.value_and_direction(fake, objective.prepare({k: v for k, v in known.items() if v is not None}))


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
@pytest.mark.parametrize("known", [(None, None), (positive(2), None), (None, positive(3)), (positive(2), positive(3))])
def test_direction_is_the_derivative(objective, known):
    fake, sent = updates(0), updates(1)
    _, direction = distance(objective, fake, sent, *known)
    auto = grad(lambda f: distance(objective, f, sent, *known)[0])(fake)
    for name in sent:
        assert torch.allclose(direction[name], auto[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_zero_at_a_match_one_at_nothing(objective):
    sent = updates(1)
    nothing = {k: torch.zeros_like(v) for k, v in sent.items()}
    assert distance(objective, sent, sent, None, None)[0].item() == pytest.approx(0, abs=1e-12)
    assert distance(objective, nothing, sent, None, None)[0].item() == pytest.approx(1)


def test_squared_distance_is_the_paper_s_when_not_weighted():
    fake, sent = updates(0), updates(1)
    plain = sum((fake[k] - sent[k]).square().sum() for k in sent) / sum(v.square().sum() for v in sent.values())
    assert distance(SquaredDistance("none"), fake, sent, None, None)[0].item() == pytest.approx(plain.item())


def test_cosine_is_torch_s_and_knows_no_length():
    fake, sent = updates(0), updates(1)
    flat = [torch.cat([v.flatten() for v in u.values()]) for u in (fake, sent)]
    value = distance(Cosine(), fake, sent, None, None)[0]
    assert value.item() == pytest.approx(1 - torch.cosine_similarity(*flat, dim=0).item())
    longer = {k: 7 * v for k, v in fake.items()}
    assert distance(Cosine(), longer, sent, None, None)[0].item() == pytest.approx(value.item())


def test_cosine_by_layer_is_the_mean_of_torch_s_over_tensors_that_are_not_zero():
    fake, sent = updates(0) | {"c": torch.ones(2, dtype=torch.float64)}, updates(1)
    sent["c"] = torch.zeros(2, dtype=torch.float64)
    each = [1 - torch.cosine_similarity(fake[k].flatten(), sent[k].flatten(), dim=0).item() for k in "ab"]
    value, direction = distance(Cosine("layer"), fake, sent)
    assert value.item() == pytest.approx(sum(each) / 2)
    assert not direction["c"].any()
    shorter = {**sent, "a": 1e-3 * sent["a"]}
    assert distance(Cosine("layer"), fake, shorter)[0].item() == pytest.approx(value.item())
    with pytest.raises(InputError, match="scope"):
        Cosine("tensor")  # type: ignore[arg-type]


def test_cosine_of_the_tensors_of_largest_norm_leaves_the_others_out():
    fake, sent = updates(0) | {"c": updates(2)["b"]}, updates(1) | {"c": 9 * updates(1)["b"]}
    kept = sorted(sent, key=lambda k: -sent[k].norm())[:2]
    pair = [torch.cat([u[k].flatten() for k in kept]) for u in (fake, sent)]
    value, direction = distance(Cosine(top=2), fake, sent)
    assert value.item() == pytest.approx(1 - torch.cosine_similarity(*pair, dim=0).item())
    assert {k for k, d in direction.items() if d.any()} == set(kept) != set(sent)
    assert distance(Cosine(top=9), fake, sent)[0] == distance(Cosine(), fake, sent)[0]
    precise = distance(Cosine(top=2), fake, sent, positive(3) | {"c": positive(3)["b"]})[1]
    assert {k for k, d in precise.items() if d.any()} == set(kept)
    with pytest.raises(InputError, match="top is -1"):
        Cosine(top=-1)


def test_a_cosine_leaves_out_coordinates_whose_error_may_be_as_large_as_their_value():
    fake, sent = updates(0), updates(1)
    sent["a"][0] = 0.0
    bounds = {"a": torch.zeros_like(sent["a"]), "b": sent["b"].abs() / 2}
    bounds["a"][0] = 0.7  # pruned below this threshold
    bounds["b"][0] = sent["b"][0].abs()
    kept = [torch.cat([u["a"][1:].flatten(), u["b"][1:]]) for u in (fake, sent)]
    value, direction = distance(Cosine(), fake, sent, None, bounds)
    assert value.item() == pytest.approx(1 - torch.cosine_similarity(*kept, dim=0).item())
    assert not direction["a"][0].any()
    assert not direction["b"][0].any()
    exact = {k: torch.zeros_like(v) for k, v in sent.items()}
    assert distance(Cosine(), fake, sent, None, exact)[0] == distance(Cosine(), fake, sent)[0]
    precise = distance(Cosine(), fake, sent, positive(3), bounds)[1]
    assert not precise["a"][0].any()
    assert precise["a"][1:].all()


def test_the_length_of_many_numbers_keeps_its_digits():
    fake = {"a": torch.rand(1500, 1500, generator=torch.Generator().manual_seed(0))}
    value, _ = distance(Cosine(), fake, fake)
    assert abs(value.item()) < 3e-7


def test_what_lies_within_the_bounds_costs_nothing():
    sent = updates(1)
    fake = {k: v + 0.5 for k, v in sent.items()}
    bounds = {k: torch.full_like(v, 0.6) for k, v in sent.items()}
    value, direction = distance(SquaredDistance(), fake, sent, None, bounds)
    assert value.item() == 0
    assert all((d == 0).all() for d in direction.values())


def test_coordinates_without_precision_do_not_count():
    sent, fake = updates(1), updates(0)
    precision = {k: torch.ones_like(v) for k, v in sent.items()}
    precision["b"] = torch.zeros_like(sent["b"])
    for objective in OBJECTIVES[1:]:
        far = {**fake, "b": fake["b"] + 100}
        near = distance(objective, fake, sent, precision, None)[0]
        assert distance(objective, far, sent, precision, None)[0].item() == pytest.approx(near.item())


def test_total_variation_by_hand():
    image = torch.tensor([[0.0, 1.0], [0.5, 0.5]]).view(1, 1, 2, 2)
    assert TotalVariation(2.0)(image).item() == pytest.approx(2 * ((0.5 + 0.5) / 2 + (1.0 + 0.0) / 2))
    assert TotalVariation(1.0)(torch.full((2, 3, 4, 4), 0.3)).item() == 0
    with pytest.raises(InputError, match="weight"):
        TotalVariation(-1.0)


def test_patterned_start_repeats_one_tile_an_image():
    start = Patterned(16)((2, 3, 40, 32), torch.Generator().manual_seed(0))
    assert torch.equal(start[..., :16, :16], start[..., 16:32, 16:32])
    assert torch.equal(start[..., :8, :16], start[..., 32:, :16])
    assert not torch.equal(start[0], start[1])
    assert start.min() >= 0
    assert start.max() <= 1
    assert Patterned(16)((1, 1, 12, 12), torch.Generator()).shape == (1, 1, 12, 12)


def test_normal_start_has_its_moments():
    start = Normal(0.5, 0.25)((4, 3, 64, 64), torch.Generator().manual_seed(0))
    assert start.mean().item() == pytest.approx(0.5, abs=0.01)
    assert start.std().item() == pytest.approx(0.25, abs=0.01)


def test_median_filter_is_scipy_s():
    images = torch.rand(2, 1, 3, 9, 7, generator=torch.Generator().manual_seed(0))
    filtered = Box(median_every=5)(images, 10)
    for ours, image in zip(filtered.flatten(0, 2), images.flatten(0, 2), strict=True):
        assert np.allclose(ours.numpy(), ndimage.median_filter(image.numpy(), 3, mode="mirror"))
    assert torch.equal(Box(median_every=5)(images, 9), images)
    assert Box()(images * 3 - 1, 1).aminmax() == (0, 1)


LABELS = torch.tensor([[0, 0, 0, 0], [2, 1, 0, 2], [1, 1, 1, 2]])


@pytest.mark.parametrize(
    "plan", [Plan(batch_size=4), Plan(algorithm="FedAvg", local_images=4, batch_size=2, epochs=2, learning_rate=0.001)]
)
@pytest.mark.parametrize("bias", [True, False])
def test_label_counts_of_a_batch(plan, bias):
    network = tiny()
    if not bias:
        network[-1] = torch.nn.Linear(network[-1].in_features, 3, bias=False)
    seen = scene(network, smooth(12).view(3, 4, 1, 12, 12), LABELS, plan)
    found = LastLayer().infer(seen, smooth(16, seed=9))
    assert torch.equal(found, LABELS.sort(1).values)


@pytest.mark.parametrize("bias", [True, False])
def test_label_counts_under_momentum_and_weight_decay(bias):
    plan = Plan(algorithm="FedAvg", batch_size=4, epochs=3, learning_rate=1e-3, momentum=0.9, weight_decay=0.5)
    network = tiny()
    network[-1] = torch.nn.Linear(network[-1].in_features, 3, bias=bias)
    with torch.no_grad():  # decay alone must not be taken for labels
        network[-1].weight.add_(torch.tensor([[0.0], [0.05], [-0.05]]))
    seen = scene(network, smooth(12).view(3, 4, 1, 12, 12), LABELS, plan)
    assert torch.equal(LastLayer().infer(seen, smooth(16, seed=9)), LABELS.sort(1).values)


@pytest.mark.parametrize("epochs", [1, 3])
def test_the_mean_gradient_of_a_round_is_that_of_its_steps(epochs):
    plan = Plan(algorithm="FedAvg", batch_size=4, epochs=epochs, learning_rate=1e-5, momentum=0.9, weight_decay=5.0)
    images = smooth(12).view(3, 4, 1, 12, 12)
    one = bias_gradient(scene(tiny(), images, LABELS, Plan(batch_size=4)))
    assert torch.allclose(bias_gradient(scene(tiny(), images, LABELS, plan)), one, atol=5e-3)


def test_precision_weighs_within_a_tensor_and_what_is_noise_alone_hardly_counts():
    sent = updates(1)
    ones = {k: torch.ones_like(v) for k, v in sent.items()}
    high = {"a": 1e9 * ones["a"], "b": 1e12 * ones["b"]}
    exact = SquaredDistance().prepare({"sent": sent, "precision": high})["weight"]
    plain = SquaredDistance().prepare({"sent": sent})["weight"]
    assert all(torch.allclose(exact[k], plain[k].expand_as(exact[k])) for k in sent)
    drowned = {"a": 1e9 * ones["a"], "b": 1e-3 * ones["b"]}
    weight = SquaredDistance().prepare({"sent": sent, "precision": drowned})["weight"]
    assert (weight["b"] < 0.01 * weight["a"].mean()).all()
    plain_none = SquaredDistance("none").prepare({"sent": sent, "precision": positive(2)})["weight"]
    ratio = plain_none["a"] / positive(2)["a"]
    assert torch.allclose(ratio, ratio.flatten()[0].expand_as(ratio))


def test_label_of_one_image_under_noise():
    seen = scene(tiny(), smooth(3).view(3, 1, 1, 12, 12), LABELS[:, 1:2], Plan(), defense=GaussianNoise(0.05))
    assert torch.equal(LastLayer().infer(seen, smooth(4)), LABELS[:, 1:2])


def test_labels_that_cannot_be_inferred():
    seen = scene(tiny(), smooth(3).view(3, 1, 1, 12, 12), LABELS[:, :1], Plan(), classes=17)
    with pytest.raises(InputError, match="grant the labels"):
        LastLayer().infer(seen, smooth(2))


def test_label_vectors_are_y_minus_p_where_the_wire_says_so():
    network, images = tiny(), smooth(3).view(3, 1, 1, 12, 12)
    seen = scene(network, images, LABELS[:, :1], Plan())
    vectors = label_vectors(seen, LABELS[:, :1], smooth(1))
    with torch.no_grad():
        p = network(images.flatten(0, 1)).softmax(1)
    y = torch.nn.functional.one_hot(LABELS[:, 0], 3)
    assert torch.allclose(vectors[:, 0], y - p, atol=1e-6)
    assert vectors.sum(2).abs().max() < 1e-6
    assert not rounded(seen).any()


def test_where_rounding_has_spoiled_y_minus_p_a_spare_entry_completes_what_was_sent():
    """Two images; rounding has left one gradient with a sum far from zero, relative to its size."""
    seen = scene(tiny(), smooth(2).view(2, 1, 1, 12, 12), LABELS[:2, :1], Plan())
    bias, label = seen.views[0].update.tensors["3.bias"], int(LABELS[0, 0])
    bias[0] = torch.tensor([2e-9, 1e-9, 3e-9])
    bias[0, label] = -(2.0**-24)
    assert rounded(seen).tolist() == [True, False]
    vectors = label_vectors(seen, LABELS[:2, :1], smooth(1))
    assert vectors.shape == (2, 1, 4)
    assert torch.equal(vectors[0, 0, :3], -bias[0])
    assert abs(float(vectors[0].sum())) < 1e-14
    assert torch.allclose(vectors[1, 0, :3], -bias[1], atol=1e-6)
    assert vectors[1, 0, 3] == 0


@pytest.mark.parametrize("why", ["noise", "batch", "local steps", "scaled logits", "wrong class", "zero"])
def test_label_vectors_are_one_hot_where_it_does_not(why):
    network, images, plan, defense = tiny(), smooth(6).view(3, 2, 1, 12, 12), Plan(), None
    labels = LABELS[:, :1]
    if why == "noise":
        defense = GaussianNoise(0.1)
    if why == "batch":
        plan, labels = Plan(batch_size=2), LABELS[:, :2]
    if why == "local steps":
        plan = Plan(algorithm="FedAvg", epochs=2)
    if why == "scaled logits":
        network = torch.nn.Sequential(network, Halved())
    seen = scene(network, images[:, : plan.images], labels, plan, defense=defense)
    if why == "wrong class":
        labels = (labels + 1) % 3
    if why == "zero":
        for tensor in seen.views[0].update.tensors.values():
            tensor.zero_()
    vectors = label_vectors(seen, labels, smooth(1))
    assert torch.equal(vectors, torch.nn.functional.one_hot(labels, 3).float())


class Halved(torch.nn.Module):
    def forward(self, x):
        return x / 2


def test_linear_loss_means_one_gradient():
    images, labels = smooth(3).view(3, 1, 1, 12, 12), LABELS[:, :1]
    assert linear_loss(scene(tiny(), images, labels, Plan()))
    assert linear_loss(scene(tiny(), images, labels, Plan(algorithm="FedAvg")))
    assert not linear_loss(scene(tiny(), images, labels, Plan(algorithm="FedAvg", epochs=2)))
    assert not linear_loss(scene(tiny(), images, labels, Plan(algorithm="FedAvg", weight_decay=0.1)))


def test_free_labels_sum_to_zero_and_have_the_wire_s_scale():
    free = torch.randn(4, 5)
    assert free_labels(free, torch.tensor(1.0)).sum(1).abs().max() < 1e-6
    assert torch.equal(free_labels(free, torch.tensor(0.0)), free)  # rounding has left no sum of zero
    seen = scene(tiny(), smooth(3).view(3, 1, 1, 12, 12), LABELS[:, :1], Plan())
    assert torch.allclose(label_scale(seen), seen.views[0].update.tensors["3.bias"].abs().amax(1))


def test_smoothness_by_hand():
    image = torch.tensor([[0.0, 1.0], [0.5, 0.5]]).view(1, 1, 2, 2)
    assert Smoothness(2.0)(image).item() == pytest.approx(2 * ((0.25 + 0.25) / 2 + (1.0 + 0.0) / 2))


class Sliced(torch.nn.Module):
    """A network with four logits that returns three: no layer has one row per class."""

    def __init__(self):
        super().__init__()
        self.inner = tiny(classes=4)

    def forward(self, x):
        return self.inner(x)[:, :3]


@pytest.mark.slow
@pytest.mark.parametrize("attack", [iDLG(steps=30), DLG(steps=30)], ids=repr)
def test_granted_or_joint_labels_need_no_last_layer(attack):
    threat = ThreatModel(("labels",)) if isinstance(attack, iDLG) else None
    seen = scene(Sliced(), smooth(3).view(3, 1, 1, 12, 12), LABELS[:, :1], Plan(), threat=threat)
    assert attack(seen, torch.Generator().manual_seed(0)).loss.max() < 0.5


def test_layers_are_weighed_by_root_mean_squares():
    sent = {
        "large": torch.full((8, 10), 2.0),
        "bias": torch.full((4,), 0.5),
        "empty": torch.zeros(0),
        "last": torch.full((4, 5), 4.0),
    }
    weight = SquaredDistance(head=3.0).prepare({"sent": sent})["weight"]
    assert (weight["bias"] / weight["large"]).item() == pytest.approx(2.0 / 0.5)
    assert (weight["last"] / weight["large"]).item() == pytest.approx(3 * 2.0 / 4.0)
    value, _ = SquaredDistance().value_and_direction(
        {k: 0 * t for k, t in sent.items()}, {"sent": sent, "weight": weight}
    )
    assert value.item() == pytest.approx(1.0)
