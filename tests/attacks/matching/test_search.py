import pytest
import torch

from medpfl.attacks import CPL, DLG, GradInv, Posterior, iDLG
from medpfl.attacks.gradinv import TRAINED, UNTRAINED
from medpfl.attacks.matching import GradientMatching
from medpfl.attacks.matching import problem as problem_module
from medpfl.attacks.matching.label_targets import label_vectors
from medpfl.attacks.matching.labels import Joint, LastLayer
from medpfl.attacks.matching.likelihood import Likelihood
from medpfl.attacks.matching.objectives import Cosine, SquaredDistance
from medpfl.attacks.matching.priors import NoPrior, TotalVariation
from medpfl.attacks.matching.problem import Matching
from medpfl.attacks.matching.stages import Stage
from medpfl.attacks.matching.starts import Normal
from medpfl.attacks.optimize.coordinates import Blocks, Pixels, Spectral
from medpfl.attacks.optimize.lbfgs import LBFGS
from medpfl.attacks.optimize.optimizer import SignedAdam
from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.threat import ThreatModel
from medpfl.core.types import Channel, Observation, View
from medpfl.defenses import Clipping, GaussianNoise
from medpfl.models import MLP, ConvNet, LeNet, ResNet
from tests.attacks.scenes import scene, smooth, tiny

LABELS = torch.tensor([[0], [2]])


def problems(seen, labels, objective=None, prior=None):
    vectors = None if labels is None else torch.nn.functional.one_hot(labels, seen.num_classes).to(seen_dtype(seen))
    return Matching(seen, vectors, objective or SquaredDistance(), prior or NoPrior())


def seen_dtype(seen):
    return next(iter(seen.views[0].update.tensors.values())).dtype


def double(network, plan, size, channels=1, labels=LABELS, **options):
    images = smooth(labels.numel(), channels, size).double().view(*labels.shape, channels, size, size)
    return images, scene(network.double(), images, labels, plan, **options)


CASES = [
    ("LeNet", LBFGS()),
    ("LeNet", SignedAdam(0.05)),
    ("batch norm", SignedAdam(0.05)),
    ("batch norm in train mode", SignedAdam(0.05)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("case", "optimizer"), CASES, ids=str)
def test_stacked_and_one_by_one_agree(case, optimizer, monkeypatch):
    if case == "LeNet":
        _, seen = double(LeNet("idlg").build((1, 16, 16), 3, 0), Plan(), 16)
    else:
        plan = Plan(mode="eval") if case == "batch norm" else Plan(batch_size=4)
        labels = LABELS if plan.images == 1 else torch.tensor([[0, 1, 2, 0], [2, 0, 1, 1]])
        _, seen = double(ConvNet(8, 2, norm="batch").build((1, 16, 16), 3, 0), plan, 16, labels=labels)
    attack = GradientMatching(Cosine(), TotalVariation(1e-3), optimizer, steps=10)
    results = []
    for stacked in (True, False):
        monkeypatch.setattr(problem_module, "stacks", lambda weights, stacked=stacked: stacked)
        torch.set_default_dtype(torch.float64)
        try:
            results.append(attack(seen, torch.Generator().manual_seed(0)))
        finally:
            torch.set_default_dtype(torch.float32)
    assert torch.allclose(results[0].loss, results[1].loss, rtol=1e-6)
    assert torch.allclose(results[0].guesses, results[1].guesses, atol=1e-5)


@pytest.mark.parametrize("plan", [Plan(), Plan(algorithm="FedAvg", epochs=3, momentum=0.5)], ids=["FedSGD", "FedAvg"])
@pytest.mark.parametrize("labels", [None, LABELS], ids=["joint", "known"])
def test_gradient_is_that_of_plain_double_backward(plan, labels):
    network = LeNet("idlg").build((1, 16, 16), 3, 0)
    _, seen = double(network, plan, 16)
    problem = problems(seen, labels, SquaredDistance("none"), TotalVariation(0.3))
    z = torch.randn(2, 256 + (0 if labels is not None else 3), dtype=torch.float64)
    value, slope = problem.evaluate(z, torch.arange(2))

    for v in range(2):
        point = z[v].clone().requires_grad_()
        image = point[:256].view(1, 1, 16, 16)
        free = point[256:]
        if labels is not None:
            target = torch.nn.functional.one_hot(labels[v], 3).double()
        elif plan.steps == 1:
            scale = seen.views[0].update.tensors[list(seen.views[0].update.tensors)[-1]][v].abs().max()
            target = problem_module.LABEL_UNIT * scale * (free - free.mean())[None]
        else:
            target = free.softmax(0)[None]
        old = [p.detach() for p in network.parameters()]
        weights, velocity = [p.detach().clone().requires_grad_() for p in old], None
        for step in range(plan.steps):
            logits = torch.func.functional_call(
                network, dict(zip(dict(network.named_parameters()), weights, strict=True)), image
            )
            loss = -(target * logits.log_softmax(1)).sum()
            gradient = torch.autograd.grad(loss, weights, create_graph=True)
            velocity = gradient if step == 0 else [0.5 * a + b for a, b in zip(velocity, gradient, strict=True)]
            weights = [w - plan.learning_rate * d for w, d in zip(weights, velocity, strict=True)]
        fake = gradient if plan.algorithm == "FedSGD" else [w - o for w, o in zip(weights, old, strict=True)]
        sent = [t[v] for t in seen.views[0].update.tensors.values()]
        distance = sum((f - s).square().sum() for f, s in zip(fake, sent, strict=True))
        distance = distance / sum(s.square().sum() for s in sent)
        tv = 0.3 * (image.diff(dim=2).abs().mean() + image.diff(dim=3).abs().mean())
        (expected,) = torch.autograd.grad(distance + tv, point)
        assert value[v].item() == pytest.approx((distance + tv).item())
        assert torch.allclose(slope[v], expected, rtol=1e-7, atol=1e-10)


def test_several_rounds_of_the_same_images_are_matched_each_against_its_weights():
    images = smooth(1).view(1, 1, 1, 12, 12)
    label = torch.tensor([[1]])
    rounds = [scene(tiny(seed=s), images, label, Plan()) for s in (0, 1)]
    both = Observation(rounds[0].model, (rounds[0].views[0], rounds[1].views[0]), (1, 12, 12), 3)
    problem = problems(both, label)
    at_truth, _ = problem.evaluate(images.flatten(1), torch.tensor([0]))
    assert at_truth.item() < 1e-10
    swapped = Observation(
        rounds[0].model,
        tuple(View(rounds[i].views[0].weights, (Plan(),), rounds[1 - i].views[0].update) for i in (0, 1)),
        (1, 12, 12),
        3,
    )
    at_truth, _ = problems(swapped, label).evaluate(images.flatten(1), torch.tensor([0]))
    assert at_truth.item() > 1e-3


def test_the_known_part_of_a_channel_is_applied_to_the_guess():
    images, label = smooth(1).view(1, 1, 1, 12, 12), torch.tensor([[1]])
    seen = scene(tiny(), images, label, Plan())
    view = seen.views[0]

    def signs(tensors):
        return {k: t.sign() for k, t in tensors.items()}

    sent = view.update.replace(signs(view.update.tensors))
    known = View(view.weights, view.plans, sent, Channel(apply=signs))
    for channel, small in ((known, True), (View(view.weights, view.plans, sent), False)):
        problem = problems(Observation(seen.model, (channel,), (1, 12, 12), 3), label)
        value, _ = problem.evaluate(images.flatten(1), torch.tensor([0]))
        assert (value.item() < 1e-6) is small


def test_a_granted_channel_reaches_the_objective():
    images, label = smooth(2).view(2, 1, 1, 12, 12), torch.tensor([[1], [0]])
    seen = scene(tiny(), images, label, Plan(), threat=ThreatModel(("defense",)), defense=GaussianNoise(0.01))
    weight = problems(seen, label).known["targets"][0]["weight"]
    assert weight["0.weight"].shape == (2, 6, 1, 3, 3)
    # The same noise everywhere: within a layer all count alike, and the plain distance takes all layers alike too.
    assert all(torch.allclose(t[0], t[0].flatten()[0].expand_as(t[0])) for t in weight.values())
    plain = problems(seen, label, SquaredDistance("none")).known["targets"][0]["weight"]
    assert torch.allclose(plain["0.weight"][0, 0, 0, 0, 0], plain["3.weight"][0, 0, 0])
    guess = GradientMatching(steps=5)(seen, torch.Generator().manual_seed(0))
    assert guess.loss.isfinite().all()


def test_granted_order_is_used():
    plan = Plan(algorithm="FedAvg", local_images=4, batch_size=2, epochs=3)
    images, labels = smooth(8).view(2, 4, 1, 12, 12), torch.tensor([[0, 1, 2, 0], [1, 1, 0, 2]])
    told = scene(tiny(), images, labels, plan, threat=ThreatModel(("labels", "order")))
    untold = scene(tiny(), images, labels, plan, threat=ThreatModel(("labels",)))
    losses = [problems(seen, labels).evaluate(images.flatten(1), torch.arange(2))[0] for seen in (told, untold)]
    assert (losses[0] < 1e-9).all()
    assert (losses[1] > 1e-7).all()


@pytest.mark.slow
def test_the_least_objective_wins_and_candidates_are_in_its_order():
    images, label = smooth(2).view(2, 1, 1, 12, 12), torch.tensor([[1], [0]])
    seen = scene(tiny(), images, label, Plan())
    attack = GradientMatching(restarts=4, steps=200, start=Normal(0.5, 0.1), warmup=(), enough=0)
    guess = attack(seen, torch.Generator().manual_seed(0))
    values = [problems(seen, label).evaluate(guess.candidates[:, r].flatten(1), torch.arange(2))[0] for r in range(4)]
    assert guess.candidates.shape == (2, 4, 1, 1, 12, 12)
    assert torch.equal(guess.candidates[:, 0], guess.guesses)
    assert (torch.stack(values[1:]) >= values[0] - 1e-6).all()


def test_bad_settings():
    for bad in ({"restarts": 0}, {"steps": 0}):
        with pytest.raises(InputError, match="at least 1"):
            GradientMatching(**bad)
    with pytest.raises(InputError, match="weighting"):
        SquaredDistance("some")


@pytest.mark.slow
def test_only_victims_that_failed_get_another_start():
    images, label = smooth(3).view(3, 1, 1, 12, 12), torch.tensor([[1], [0], [2]])
    seen = scene(tiny(), images, label, Plan())
    view = seen.views[0]
    noise = {k: t.clone() for k, t in view.update.tensors.items()}
    for tensor in noise.values():
        tensor[1] = torch.randn(tensor[1].shape, generator=torch.Generator().manual_seed(0))
    hard = Observation(seen.model, (View(view.weights, view.plans, view.update.replace(noise)),), (1, 12, 12), 3)
    guess = GradientMatching(restarts=3, steps=40, enough=1e-3)(hard, torch.Generator().manual_seed(0))
    once = GradientMatching(steps=40)(hard, torch.Generator().manual_seed(0))
    assert guess.loss[1] > 1e-3 > guess.loss[[0, 2]].max()
    assert torch.equal(guess.evaluations[[0, 2]], once.evaluations[[0, 2]])
    assert guess.evaluations[1] > 2 * once.evaluations[1]


@pytest.mark.slow
def test_a_saturated_softmax_is_read_through():
    """The model is sure of its label: p - 1 has lost most digits, but the update still contains y - p."""
    network = tiny()
    with torch.no_grad():
        network[-1].weight.mul_(30)
    images = smooth(4).view(4, 1, 1, 12, 12)
    with torch.no_grad():
        label = network(images.flatten(0, 1)).argmax(1)[:, None]
    seen = scene(network, images, label, Plan())
    assert seen.views[0].update.tensors["3.bias"].norm(dim=1).max() < 0.1
    guess = GradientMatching(steps=400)(seen, torch.Generator().manual_seed(0))
    assert torch.equal(guess.labels, label)
    assert ((guess.guesses - images).square().flatten(1).mean(1) < 1e-3).all()


@pytest.mark.slow
def test_an_update_whose_squares_vanish_is_read_back_all_the_same():
    images, label = smooth(2).view(2, 1, 1, 12, 12), torch.tensor([[1], [0]])
    seen = scene(tiny(), images, label, Plan())
    view = seen.views[0]
    faint = view.update.replace({k: 1e-26 * t for k, t in view.update.tensors.items()})
    low = Observation(seen.model, (View(view.weights, view.plans, faint),), (1, 12, 12), 3)
    guess = GradientMatching(steps=300)(low, torch.Generator().manual_seed(0))
    assert ((guess.guesses - images).square().flatten(1).mean(1) < 1e-3).all()


def test_the_last_layer_alone_is_matched_by_its_own_update_and_no_other():
    images, label = smooth(2).view(2, 1, 1, 12, 12), torch.tensor([[1], [0]])
    seen = scene(tiny(), images, label, Plan())
    whole = problems(seen, label, SquaredDistance("none"))
    head = whole.head_only()
    assert sorted(head.known["targets"][0]["sent"]) == ["3.bias", "3.weight"]
    assert whole.told_by_head()
    z = torch.rand(2, 144)
    spoiled = {k: (t if k.startswith("3") else torch.randn(t.shape)) for k, t in seen.views[0].update.tensors.items()}
    view = seen.views[0]
    other = Observation(seen.model, (View(view.weights, view.plans, view.update.replace(spoiled)),), (1, 12, 12), 3)
    same = problems(other, label, SquaredDistance("none")).head_only()
    rows = torch.arange(2)
    assert torch.allclose(head.evaluate(z, rows)[1], same.evaluate(z, rows)[1], rtol=1e-4, atol=1e-9)
    assert head.evaluate(images.flatten(1), rows)[0].max() < 1e-10


def test_the_deep_layers_are_left_out_but_for_the_last():
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 6, 3, 1, 1), tiny(6))
    images, label = smooth(2).view(2, 1, 1, 12, 12), torch.tensor([[1], [0]])
    whole = problems(scene(network, images, label, Plan()), label)
    part = whole.up_to(60)  # numbers: 54 and 6, 324 and 6, 2592 and 3
    assert sorted(part.known["targets"][0]["sent"]) == ["0.bias", "0.weight", "1.3.bias", "1.3.weight"]
    assert part.evaluate(images.flatten(1), torch.arange(2))[0].max() < 1e-10
    assert whole.up_to(324) is whole
    mixed = problems(scene(network, images, label, Plan(algorithm="FedAvg", epochs=2)), label)
    assert mixed.up_to(60) is mixed


@pytest.mark.slow
def test_gradinv_leaves_out_what_it_is_told_to():
    front = torch.nn.Conv2d(1, 6, 3, 1, 1), torch.nn.Sigmoid(), torch.nn.Conv2d(6, 6, 3, 1, 1), torch.nn.AvgPool2d(2)
    network = torch.nn.Sequential(*front, torch.nn.Flatten(), torch.nn.Linear(216, 3))
    images, label = smooth(2).view(2, 1, 1, 12, 12), torch.tensor([[1], [0]])
    seen = scene(network, images, label, Plan())
    spoiled = {k: (torch.randn(t.shape) if k.startswith("2.") else t) for k, t in seen.views[0].update.tensors.items()}
    view = seen.views[0]
    other = Observation(seen.model, (View(view.weights, view.plans, view.update.replace(spoiled)),), (1, 12, 12), 3)
    guesses = {}
    for largest in (0, 60):
        attack = GradInv(steps=5, largest=largest)
        guesses[largest] = [attack(s, torch.Generator().manual_seed(0)).guesses for s in (seen, other)]
    assert torch.allclose(*guesses[60], atol=1e-4)
    assert not torch.allclose(*guesses[0], atol=1e-4)


@pytest.mark.slow
def test_a_stage_of_blocks_hands_its_images_to_the_next():
    images, label = smooth(2).view(2, 1, 1, 12, 12), torch.tensor([[1], [0]])
    seen = scene(tiny(), images, label, Plan())
    stage = Stage(NoPrior(), block=4, share=0.8)

    def guess(basis, warmup):
        near = SignedAdam(1e-4), Normal(0.5, 0.1)
        attack = GradientMatching(Cosine(), NoPrior(), *near, basis=basis, warmup=warmup, steps=5)
        return attack(seen, torch.Generator().manual_seed(0)).guesses

    for basis in (Pixels(), Spectral()):
        blocky = guess(basis, (stage,))
        plain = Blocks(4).images(Blocks(4).coordinates(guess(basis, ()), 3), 3)
        assert torch.allclose(blocky, plain, atol=0.01)


def test_steps_of_stages():
    assert [Stage(steps=30).within(n) for n in (1000, 40)] == [30, 10]
    assert Stage(share=1 / 3).within(600) == 200
    assert Stage(steps=0).within(10) == 0
    for bad in ({"block": 0}, {"steps": -1}, {"share": 1.0}, {"share": 0.0}):
        with pytest.raises(InputError, match="share"):
            Stage(**bad)


def test_what_was_mixed_has_no_last_layer_of_its_own():
    images, label = smooth(2).view(1, 2, 1, 12, 12), torch.tensor([[1, 0]])
    local = scene(tiny(), images, label, Plan(algorithm="FedAvg", batch_size=1, local_images=2))
    clipped = scene(
        tiny(), images[:, :1], label[:, :1], Plan(), threat=ThreatModel(("defense",)), defense=Clipping(0.1)
    )
    for seen in (local, clipped):
        assert problems(seen, label[:, : seen.num_images]).head_only() is None


def test_under_noise_the_last_layer_has_its_own_precision_but_does_not_tell_alone():
    images, label = smooth(2).view(2, 1, 1, 12, 12), torch.tensor([[1], [0]])
    threat = ThreatModel(("defense",))
    seen = scene(tiny(), images, label, Plan(), threat=threat, defense=GaussianNoise(0.1, "layer"))
    whole = problems(seen, label, Likelihood())
    head = whole.head_only()
    assert not whole.told_by_head()
    for name, weight in head.known["targets"][0]["weight"].items():
        ratio = weight / whole.known["targets"][0]["weight"][name]
        assert torch.allclose(ratio, ratio.flatten()[0].expand_as(ratio), rtol=1e-4)
    assert sorted(head.known["targets"][0]["weight"]) == ["3.bias", "3.weight"]


def test_a_stage_may_have_an_objective_of_its_own():
    images, label = smooth(2).view(2, 1, 1, 12, 12), torch.tensor([[1], [0]])
    whole = problems(scene(tiny(), images, label, Plan(), defense=GaussianNoise(0.1)), label, Likelihood())
    z, rows = torch.rand(2, 144), torch.arange(2)
    easy = problems(whole.seen, label, SquaredDistance()).evaluate(z, rows)[0]
    assert torch.allclose(whole.under(NoPrior(), SquaredDistance()).evaluate(z, rows)[0], easy)
    assert not torch.allclose(whole.evaluate(z, rows)[0], easy)
    assert torch.equal(whole.under(NoPrior()).evaluate(z, rows)[0], whole.evaluate(z, rows)[0])


@pytest.mark.slow
@pytest.mark.parametrize("labels", [LastLayer(), Joint()], ids=repr)
def test_an_update_that_rounding_has_spoiled_is_read_back(labels):
    """The model is so sure of its label that p - 1 is exactly 0 in float32."""
    network = tiny()
    with torch.no_grad():
        network[-1].bias += torch.tensor([0.0, 40.0, 0.0])
    images, label = smooth(3).view(3, 1, 1, 12, 12), torch.tensor([[1], [1], [1]])
    seen = scene(network, images, label, Plan())
    bias = seen.views[0].update.tensors["3.bias"]
    assert (bias[:, 1] == 0).all()
    assert (bias.norm(dim=1) > 0).all()
    guess = GradientMatching(labels=labels, steps=300)(seen, torch.Generator().manual_seed(0))
    assert torch.equal(guess.labels, label)
    assert ((guess.guesses - images).square().flatten(1).mean(1) < 1e-7).all()


def test_the_truth_has_no_distance_from_an_update_that_rounding_has_spoiled():
    """The second is not spoiled, and the third is taken for another class: one-hot labels through the same model."""
    network = tiny()
    with torch.no_grad():
        network[-1].bias += torch.tensor([0.0, 40.0, 0.0])
    images, label = smooth(3).view(3, 1, 1, 12, 12), torch.tensor([[1], [0], [1]])
    seen, taken = scene(network, images, label, Plan()), torch.tensor([[1], [0], [2]])
    spoiled = Matching(seen, label_vectors(seen, taken, smooth(1)), SquaredDistance())
    assert spoiled.labels.shape == (3, 1, 4)
    value = spoiled.evaluate(images.flatten(1), torch.arange(3))[0]
    assert (value[:2] < 1e-9).all()
    plain = Matching(seen, torch.nn.functional.one_hot(taken, 3).float(), SquaredDistance())
    assert torch.allclose(value[2], plain.evaluate(images.flatten(1), torch.arange(3))[0][2])


class Branches(torch.nn.Module):
    """A network that depends on the data in a way that ``vmap`` cannot trace."""

    def forward(self, x):
        return x if x.sum() > 0 else -x


@pytest.mark.slow
def test_what_cannot_be_evaluated_together_is_evaluated_one_by_one_and_said():
    images, label = smooth(2).view(2, 1, 1, 12, 12), torch.tensor([[1], [0]])
    plain, branching = tiny(), torch.nn.Sequential(Branches(), tiny())
    attack, found = GradientMatching(steps=20), []
    for network in (plain, branching):
        found.append(attack(scene(network, images, label, Plan()), torch.Generator().manual_seed(0)))
    assert [f.engine for f in found] == ["vmap", "loop"]
    start, rows = 0.1 + images.flatten(1), torch.arange(2)
    together, alone = (problems(scene(n, images, label, Plan()), label) for n in (plain, branching))
    for one, other in zip(together.evaluate(start, rows), alone.evaluate(start, rows), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


def test_an_error_that_is_not_vmap_s_is_raised():
    seen = scene(tiny(), smooth(2).view(2, 1, 1, 12, 12), LABELS, Plan())
    problem = problems(seen, LABELS)
    with pytest.raises(RuntimeError):
        problem.evaluate(torch.zeros(2, 7), torch.arange(2))


def test_gradinv_has_settings_for_deep_networks_unless_they_were_chosen():
    deep, small = ResNet(18).build((3, 32, 32), 2, 0), LeNet("idlg").build((1, 16, 16), 3, 0)
    assert GradInv().suited(deep) == (UNTRAINED, TRAINED)
    assert GradInv().suited(small) == ()
    assert GradInv().suited(MLP((1024,)).build((3, 32, 32), 2, 0)) == (), "wide is not deep"
    assert GradInv(steps=3).suited(deep) == TRAINED.suited(deep) == ()


@pytest.mark.slow
def test_gradinv_s_scope_and_schedule_reach_its_parts():
    images = smooth(2, 1, 16)[:, None]
    seen = scene(LeNet("idlg").build((1, 16, 16), 3, 0), images, LABELS, Plan())
    plain = GradInv(steps=4)(seen, torch.Generator().manual_seed(0))
    for other in (GradInv(steps=4, scope="layer"), GradInv(steps=4, schedule="linear")):
        assert not torch.equal(other(seen, torch.Generator().manual_seed(0)).guesses, plain.guesses)
    for bad in ({"scope": "tensor"}, {"schedule": "cosine"}, {"schedule": "linear", "patience": 5}, {"rate": 0}):
        with pytest.raises(InputError, match=r"choose|must be"):
            GradInv(**bad)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "of_guess"), [(torch.float64, torch.float64), (torch.bfloat16, torch.float32)])
def test_images_have_the_type_of_the_weights_but_no_less_than_float32(kind, of_guess):
    class Cast(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = tiny().to(kind)

        def forward(self, images):
            return self.inner(images.to(kind)).float()

    images = smooth(2)[:, None]
    seen = scene(Cast(), images, torch.tensor([[0], [1]]), Plan())
    attack = GradientMatching(optimizer=LBFGS(tolerance=1e-14), steps=80)
    guess = attack(seen, torch.Generator().manual_seed(0))
    assert guess.guesses.dtype == of_guess
    error = (guess.guesses - images).square().mean()
    assert error < (1e-9 if kind == torch.float64 else 0.02)


def sure(bias):
    network = tiny()
    with torch.no_grad():
        network[3].bias[0] = bias
    return network


@pytest.mark.slow
@pytest.mark.parametrize("bias", [0.0, 14.0, 25.0])
def test_rounding_of_a_model_that_is_sure_is_not_taken_for_noise(bias):
    images = smooth(3)[:, None]
    seen = scene(sure(bias), images, torch.zeros(3, 1, dtype=torch.long), Plan())
    guess = Posterior(steps=60)(seen, torch.Generator().manual_seed(0))
    assert ((guess.guesses - images).square().flatten(1).mean(1) < 1e-4).all()


@pytest.mark.slow
@pytest.mark.parametrize("attack", [GradInv(steps=12), iDLG(steps=30), CPL(steps=12), Posterior(steps=25)], ids=repr)
def test_a_batch_s_update_may_be_as_small_as_floats_are(attack):
    images, labels = smooth(4).view(2, 2, 1, 12, 12), torch.zeros(2, 2, dtype=torch.long)
    plan, threat = Plan(batch_size=2), ThreatModel(("labels",))
    found = [
        attack(scene(sure(bias), images, labels, plan, threat=threat), torch.Generator().manual_seed(0))
        for bias in (30.0, 38.0, 60.0)
    ]
    assert all(set(f.ended) == {"max_steps"} for f in found)
    for other in found[1:]:
        torch.testing.assert_close(other.loss, found[0].loss, rtol=0.3, atol=1e-6)


def test_an_update_of_nothing_is_no_match():
    seen = scene(tiny(), smooth(2)[:, None], torch.tensor([[0], [1]]), Plan())
    for tensor in seen.views[0].update.tensors.values():
        tensor.zero_()
    guess = GradInv(steps=5)(seen, torch.Generator().manual_seed(0))
    assert guess.ended == ("nonfinite", "nonfinite")


def test_memory_that_runs_out_does_not_change_the_way_of_evaluating(monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(problem_module, "vmap", full)
    seen = scene(tiny(), smooth(2)[:, None], torch.tensor([[0], [1]]), Plan())
    with pytest.raises(torch.OutOfMemoryError):
        GradientMatching(steps=3)(seen, torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "made",
    [
        lambda: CPL(tile=0),
        lambda: DLG(tolerance=-1.0),
        lambda: iDLG(steps=0),
        lambda: GradInv(median_every=-1),
        lambda: GradInv(largest=-4),
        lambda: Posterior(steps=0),
        lambda: Posterior(floor=0.0),
        lambda: Posterior(coarse=(0.3, 0.0)),
    ],
)
def test_settings_that_cannot_be_are_refused_when_they_are_given(made):
    with pytest.raises(InputError, match="must be"):
        made()
