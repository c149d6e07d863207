"""Secure aggregation in an audit: sums over several clients, and masked messages."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from medpfl import Defense, InputError, Plan, ThreatModel
from medpfl.attacks.matching import GradientMatching
from medpfl.attacks.matching.labels import Joint
from medpfl.auditing.aggregation import Groups, aggregates, masks, staying
from medpfl.auditing.victims import draw_victims
from medpfl.core.verdicts import INCONCLUSIVE, LEAKS, MASKED, RANDOM_UPDATE, UNDEFENDED
from medpfl.data.partition import IID
from medpfl.defenses import GaussianNoise, SecAggPlus
from tests.auditing.audit_cases import Answers, some_images, tiny

FINE = "SecAggPlus(threshold=2, max_weight=8.0)"
"""Its rounding is far below what attacks need."""


def look(clients, images, attack=None, **options):
    attack = attack or Answers()
    options = {"defenses": [FINE], "images": images, "clients": clients, **options}
    return attack, tiny(some_images(max(2 * images, 12)), attacks=[attack], **options)


@dataclass(frozen=True, repr=False)
class Mean(Defense):
    """A user's own defense that gives the server a mean."""

    def aggregate(self, value, state, generator):
        first = value[0]
        mean = {k: torch.stack([u.tensors[k] for u in value]).mean(0) for k in first.tensors}
        return [first.replace(mean)], state


@pytest.mark.slow
@pytest.mark.parametrize(("algorithm", "more"), [("FedSGD", {}), ("FedAvg", {"local_images": 4, "epochs": 2})])
@pytest.mark.parametrize("clients", [2, 3])
def test_the_server_has_the_weighted_mean_and_all_plans(algorithm, more, clients):
    plan = Plan(algorithm, batch_size=2, **more)
    attack, report = look(clients, 2 * clients * plan.images, plan=plan)
    _, masked, bare, naive, told = attack.kept
    (view,) = told.views
    assert view.plans == (plan,) * clients
    assert (told.num_images, view.update.num_samples) == (clients * plan.images,) * 2
    assert (len(bare), len(masked), len(told)) == (2 * clients, 2, 2)
    assert naive.views[0].channel is None
    step = 8.0 * 16 / (2**22 * clients * plan.images)  # of the rounding in the mean
    for name, sent in bare.views[0].update.tensors.items():
        means = sent.view(2, clients, *sent.shape[1:]).mean(1)
        assert torch.allclose(view.update.tensors[name], means, atol=clients * step)
        assert torch.equal(view.update.tensors[name], naive.views[0].update.tensors[name])
    rows = [r for r in report.rows if r.defense == FINE and not r.control]
    assert len(rows) == 2 * 2 * clients * plan.images
    undefended = [r for r in report.rows if r.defense == UNDEFENDED and not r.control]
    assert {r.image for r in rows} == {r.image for r in undefended}
    assert any(f"the sum of {clients} clients' updates" in note for note in report.settings.notes)


def test_the_sum_is_of_different_clients():
    data, generator = some_images(12), torch.Generator().manual_seed(0)
    own = {i: c for c, part in enumerate(IID(3).deal(data, torch.Generator().manual_seed(0))) for i in part.tolist()}
    victims = draw_victims(data, 11, 1, IID(3), generator, together=3)
    assert len(victims) == 9
    for i in range(0, 9, 3):
        assert {own[int(v)] for v in victims[i : i + 3]} == {0, 1, 2}


@pytest.mark.slow
def test_what_is_granted_of_each_client():
    plan = Plan("FedAvg", batch_size=1, local_images=2, epochs=3)
    attack, report = look(2, 4, plan=plan, threat=ThreatModel(("labels", "order", "defense")))
    seen = attack.kept[-1]
    assert seen.order is not None
    assert seen.order.shape == (1, 2, 3, 2)
    assert seen.labels is not None
    rows = [r for r in report.rows if r.defense == FINE and not r.control]
    assert seen.labels[0].tolist() == [r.label for r in rows]


@pytest.mark.slow
@pytest.mark.parametrize(
    "plan",
    [Plan(), Plan(batch_size=2), Plan("FedAvg", batch_size=1, local_images=2, epochs=2)],
    ids=["FedSGD", "batch", "FedAvg"],
)
def test_matching_is_zero_at_the_truth_of_a_sum(plan):
    """The attacker's forward operator is the one that made the sum, for all clients together."""
    from medpfl.attacks.matching.objectives import SquaredDistance
    from medpfl.attacks.matching.problem import Matching

    data = some_images(24)
    attack, clients = Answers(), 3
    report = tiny(
        data, attacks=[attack], defenses=[FINE], images=3 * plan.images, clients=clients, plan=plan,
        threat=ThreatModel(("labels", "order", "defense")),
    )  # fmt: skip
    seen = attack.kept[-1]
    assert seen.labels is not None
    problem = Matching(seen, torch.nn.functional.one_hot(seen.labels, seen.num_classes).float(), SquaredDistance())
    rows = [r for r in report.rows if r.defense == FINE and not r.control]
    truth = truths_of(data, report, rows)
    right, _ = problem.evaluate(problem.join(truth[None], None), torch.tensor([0]))
    wrong, _ = problem.evaluate(problem.join(1 - truth[None], None), torch.tensor([0]))
    assert right < 1e-4 < wrong


def truths_of(data, report, rows):
    """Return the target images behind rows, found by their baselines: the nearest image identifies each."""
    from medpfl.metrics.pixel import mse

    half = torch.full((1, *data.shape), 0.5)
    scores = mse(half.expand(len(data), *data.shape), data.images)
    return torch.stack([data.images[int((scores - row.scores["mse"]).abs().argmin())] for row in rows])


@pytest.mark.slow
def test_a_sum_is_read_back_and_a_masked_message_is_not():
    attack = GradientMatching(labels=Joint(), steps=60)
    _, report = look(2, 4, attack, model="LeNet('idlg')", threat=ThreatModel(("labels", "defense")))
    bare, cell = report.summary
    assert (bare.verdict, cell.verdict) == (LEAKS, LEAKS)
    assert cell.ssim.value > 0.5
    assert cell.ssim_masked_vector == pytest.approx(cell.ssim_random_update, abs=0.1)
    assert cell.asr_masked_vector.value == 0
    assert "masked-vector" not in cell.flags


@pytest.mark.slow
def test_a_masked_message_is_random_numbers_to_an_attack():
    attack, _ = look(2, 4)
    masked, bare = attack.kept[1], attack.kept[2]
    for victim in (0, 1):
        sent = torch.cat([t[2 * victim].flatten() for t in bare.views[0].update.tensors.values()])
        seen = torch.cat([t[victim].flatten() for t in masked.views[0].update.tensors.values()])
        assert abs(float(torch.corrcoef(torch.stack([sent, seen]))[0, 1])) < 4 / len(sent) ** 0.5
        ranks = (seen - seen.min()) / (seen.max() - seen.min())
        counts = torch.histc(ranks, bins=10) / len(ranks)
        assert (counts - 0.1).abs().max() < 5 * (0.09 / len(ranks)) ** 0.5, "uniform"
    assert masked.num_images == 1


@pytest.mark.slow
def test_a_mask_that_does_not_hide_is_flagged(monkeypatch):
    monkeypatch.setattr("medpfl.defenses.masking.Masks.of", lambda self, place: torch.zeros(self.size).long())
    monkeypatch.setattr("medpfl.defenses.masking.Masks.left", lambda self, stayed: torch.zeros(self.size).long())
    _, report = look(2, 8, GradientMatching(steps=25), threat=ThreatModel(("labels", "defense")))
    assert "masked-vector" in report.summary[1].flags
    assert {r.control for r in report.rows} == {"", RANDOM_UPDATE, MASKED}


@pytest.mark.slow
def test_clients_that_fall_silent_are_in_no_sum():
    attack, report = look(4, 8, defenses=["SecAggPlus(threshold=2, dropouts=1)"])
    assert attack.kept[-1].num_images == 3
    assert len(attack.kept[-1].views[0].plans) == 3
    assert report.summary[-1].images == 6


def test_too_many_that_fall_silent_are_said_before_any_work():
    attack = Answers()
    with pytest.raises(InputError, match="the round is lost"):
        look(4, 8, attack, defenses=["SecAggPlus(threshold=3, dropouts=2)"])
    assert not attack.kept


@pytest.mark.parametrize(
    ("clients", "options", "message"),
    [
        (None, {}, "needs two clients or more: set --clients 2"),
        (1, {}, "needs two clients or more"),
        (2, {"plan": Plan(sends=())}, "clients do not send: add it to --sends"),
        (2, {"defenses": [f"{FINE} | {FINE}"]}, "2 of its parts sum over clients"),
        (6, {"images": 4}, "a sum of 6 updates holds 6 images, but --images is 4"),
        (2, {"images": 12, "partition": "Dirichlet(alpha=0.1)"}, "and one has fewer"),
    ],
)
def test_bad_input(clients, options, message):
    with pytest.raises(InputError, match=message):
        tiny(some_images(12), **{"defenses": [FINE], "images": 4, "clients": clients, **options})


@pytest.mark.slow
def test_a_defense_of_ones_own_that_sums():
    attack, report = look(2, 4, defenses=[Mean()])
    assert not masks(Mean())
    assert aggregates(Mean())
    assert staying(Mean(), 3) == 3
    assert MASKED not in {r.control for r in report.rows}
    seen, bare = attack.kept[-1].views[0].update.tensors, attack.kept[1].views[0].update.tensors
    for name, value in seen.items():
        assert torch.allclose(value, bare[name].view(2, 2, *value.shape[1:]).mean(1))


def test_a_record_is_of_no_sum(tmp_path):
    from medpfl.auditing.records.run import _stated_defense

    with pytest.raises(InputError, match="a record holds one client's update"):
        _stated_defense(type("R", (), {"defense": None, "filters": (), "clients": 1})(), tmp_path, [SecAggPlus()])  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_run_resumes(tmp_path):
    data = some_images(12)
    options = {"defenses": [FINE], "clients": 2, "images": 8, "memory": 1e-6, "out": tmp_path / "runs" / "a"}
    first = tiny(data, **options)
    path = tmp_path / "runs" / "a" / "share/findings.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-3]))
    again = tiny(data, **options)
    pick = lambda report: [(r.image, r.knows_defense, r.control, r.scores) for r in report.rows]  # noqa: E731
    assert pick(again) == pick(first)


def test_the_channel_of_a_sum_is_its_rounding():
    generator = torch.Generator().manual_seed(0)
    from medpfl.core.types import Update

    sent = [Update({"w": torch.randn(4000, generator=generator) / 50}, num_samples=3) for _ in range(4)]
    defense = SecAggPlus()
    mean = defense.exchange(sent, generator).mean
    exact = torch.stack([u.tensors["w"] for u in sent]).mean(0)
    channel = defense.disclose(mean, Plan(batch_size=3))
    assert channel.precision is not None
    assert float((mean.tensors["w"] - exact).var() * channel.precision["w"][0]) == pytest.approx(1, rel=0.1)
    noisy = (GaussianNoise(0.5) | defense).disclose(mean, Plan(batch_size=3))
    assert noisy.precision is not None
    assert float(1 / noisy.precision["w"][0]) == pytest.approx(0.25 / 4, rel=1e-2), "the noise of four is averaged"
    assert noisy.bounds is None


@pytest.mark.parametrize("spec", ["LaplaceNoise", "GaussianNoise", "TopK", "RandomK", "QSGD", "Signs", "Outpost"])
def test_what_is_read_off_one_update_is_not_told_of_a_sum(spec):
    from medpfl import defenses
    from medpfl.auditing.defense_parts import discloses
    from medpfl.core.types import Update

    generator = torch.Generator().manual_seed(0)
    raw = [Update({"w": torch.randn(4000, generator=generator) / 50}, num_samples=3) for _ in range(4)]
    part = getattr(defenses, spec)()
    defense = part | SecAggPlus()
    mean = SecAggPlus().exchange([part.update(u, part.init(), generator)[0] for u in raw], generator).mean
    channel = defense.disclose(mean, Plan(batch_size=3))
    assert discloses(defense) == spec.endswith("Noise")
    if spec.endswith("Noise"):
        error = mean.tensors["w"] - torch.stack([u.tensors["w"] for u in raw]).mean(0)
        assert float((channel.precision["w"] * error**2).mean()) == pytest.approx(1, rel=0.15)
    else:
        assert channel.precision is None
        assert channel.bounds is None
        assert channel(mean.tensors)["w"] is mean.tensors["w"]


@pytest.mark.slow
@pytest.mark.parametrize("threat", [ThreatModel(), ThreatModel(("defense",))])
def test_an_attack_on_a_sum_of_which_nothing_is_told_is_not_called_adaptive(threat):
    """Only the clients know what pruning did to single updates: the attack's failure is inconclusive."""
    pruned, noised = f"TopK(keep=0.1) | {FINE}", f"GaussianNoise(scale=0.01) | {FINE}"
    attack, report = look(2, 4, defenses=[pruned, noised], threat=threat)
    told = {spec: [c.knows_defense for c in report.summary if c.defense == spec] for spec in (pruned, noised)}
    assert told == {pruned: [False], noised: [True] if "defense" in threat else [False, True]}
    untold = next(seen for seen in attack.kept if len(seen.views[0].plans) == 2)
    assert untold.views[0].channel is None
    (cell,) = [cell for cell in report.summary if cell.defense == pruned]
    assert cell.verdict == INCONCLUSIVE


@pytest.mark.slow
def test_outpost_and_mixup_disclose_nothing_and_are_attacked_without_knowledge():
    _, report = look(1, 4, defenses=["Outpost(scale=0.8)", "Mixup(alpha=1.0)"], plan=Plan(batch_size=2))
    told = {cell.defense.split("(")[0]: (cell.knows_defense, cell.verdict) for cell in report.summary}
    assert told["Outpost"] == (False, INCONCLUSIVE)
    assert told["Mixup"] == (False, INCONCLUSIVE)


@pytest.mark.parametrize("together", [1, 2, 3])
def test_groups_are_made_when_they_are_used(together):
    victims = torch.arange(24).view(12, 2)
    groups = Groups(victims, range(len(victims)), together)
    numbers = [[number for number, _ in group] for group in groups]
    assert numbers == [list(range(i, i + together)) for i in range(0, 12, together)]
    assert all(torch.equal(own, victims[number]) for group in groups for number, own in group)
    for part in (slice(1, 3), slice(0, 1), slice(2, 99), slice(3, 3)):
        assert [[number for number, _ in group] for group in groups[part]] == numbers[part]
        assert [[number for number, _ in group] for group in groups[1:][part]] == numbers[1:][part]
