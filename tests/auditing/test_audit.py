"""The whole audit, end to end, on every path."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from medpfl import Defense, InputError, Plan, ThreatModel, Update, Victims, audit
from medpfl import attacks as attack_package
from medpfl.attacks import GradInv, iDLG
from medpfl.core.verdicts import INCONCLUSIVE, LEAKS, RANDOM_UPDATE, UNDEFENDED
from medpfl.data import ImageFolder, Samples
from tests.auditing.audit_cases import Answers, draw_folder, plain, some_images, tiny


class Net(nn.Module):
    """A network from 16 x 16 gray pixels to two classes."""

    def __init__(self, classes: int = 2):
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.drop = nn.Dropout(0.2)
        self.last = nn.Linear(256, classes)

    def forward(self, x):
        return self.last(self.drop(self.norm(x)).flatten(1))


def cells(report):
    return [(cell.attack, cell.defense) for cell in report.summary]


# --- what runs ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_reads_images_back_and_says_so(folder):
    report = tiny(folder, attacks=["iDLG(steps=80)"])
    (cell,) = report.summary
    assert (cell.asr.value, cell.verdict, cell.label_accuracy.value) == (1.0, LEAKS, 1.0)
    assert cell.asr_random_update.value == 0.0
    assert str(report).startswith("Without a defense, a curious server reconstructed 4 of 4 images")


@pytest.mark.slow
def test_every_defense_runs_beside_the_undefended_control(folder):
    report = tiny(
        folder,
        attacks=["iDLG(steps=3)", "DLG(steps=3)"],
        defenses=["GaussianNoise(scale=0.1)", "LaplaceNoise(scale=geom(0.001, 0.1, 3))"],
    )
    defenses = [UNDEFENDED, "GaussianNoise(scale=0.1)", *(f"LaplaceNoise(scale={s})" for s in (0.001, 0.01, 0.1))]
    twice = [(a, d) for d in defenses for a in ("iDLG(steps=3)", "DLG(steps=3)") for _ in range(1 + (d != UNDEFENDED))]
    assert cells(report) == twice
    assert [cell.knows_defense for cell in report.summary] == [None, None, *[False, True] * 8]
    assert {cell.images for cell in report.summary} == {4}
    assert len(report.rows) == 2 * 4 + 2 * (1 + 2 * 4) * 4
    victims = {
        cell: [r.image for r in report.rows if (r.attack, r.defense, r.control) == (*cell, "")]
        for cell in cells(report)
    }
    assert len({tuple(dict.fromkeys(images)) for images in victims.values()}) == 1, "all attack the same images"


@pytest.mark.slow
def test_defenses_change_what_the_server_sees(folder):
    attack = Answers()
    tiny(folder, attacks=[attack], defenses=["LaplaceNoise(scale=5.0) | GaussianNoise(scale=0.1)", "NoDefense()"])
    _, bare, noisy, same = attack.kept
    assert all(torch.equal(t, same.views[0].update.tensors[k]) for k, t in noisy.views[0].update.tensors.items())
    gaps = [noisy.views[0].update.tensors[name] - raw for name, raw in bare.views[0].update.tensors.items()]
    assert torch.cat([gap.flatten() for gap in gaps]).abs().mean() == pytest.approx(5.0, rel=0.1)


@pytest.mark.slow
def test_a_sweep_or_a_name_given_twice_runs_once(folder):
    report = tiny(folder, attacks=["iDLG(steps=3)", "iDLG(steps=lin(3, 4, 2))"], defenses=["NoDefense", "NoDefense()"])
    assert cells(report) == [("iDLG(steps=3)", UNDEFENDED), ("iDLG(steps=4)", UNDEFENDED)]


@pytest.mark.slow
def test_one_spec_stands_for_a_list_of_one(folder):
    assert cells(tiny(folder, attacks="iDLG(steps=3)", defenses="LaplaceNoise"))[2][1] == "LaplaceNoise(scale=0.01)"


def test_batches(folder):
    report = tiny(folder, plan=Plan(batch_size=2), images=5)
    rows = [r for r in report.rows if not r.control]
    assert [(r.victim, r.position) for r in rows] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert len({r.image for r in rows}) == 4
    assert "Attacked 4 images, not 5: each update holds 2 images." in report.settings.notes
    assert report.settings.experiment["images_per_update"] == 2


@pytest.mark.slow
def test_fedavg(folder):
    plan = Plan("FedAvg", batch_size=2, local_images=4, epochs=2)
    attack = Answers()
    report = tiny(folder, plan=plan, images=8, attacks=["iDLG(steps=3)", attack])
    assert [c.images for c in report.summary] == [8, 8]
    view = attack.kept[-1].views[0]
    assert (view.update.kind, view.plan, view.update.num_samples) == ("difference", plan, 4)
    assert attack.kept[-1].num_images == 4


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_modes_of_a_users_network(folder, mode):
    torch.manual_seed(0)
    report = tiny(folder, model=Net(), plan=Plan(batch_size=2, mode=mode))
    assert report.summary[0].images == 4
    assert report.rows[0].plan == repr(Plan(batch_size=2, mode=mode))


@pytest.mark.slow
@pytest.mark.parametrize("grants", [(), ("labels",), ("order",), ("masks",), ("defense",), ("auxiliary",), ("active",)])
def test_every_grant_is_passed_on_and_printed(folder, grants):
    torch.manual_seed(0)
    attack = Answers()
    threat = ThreatModel(grants)  # with "defense" in it, only attacks that are told of it are run
    plan = Plan("FedAvg", batch_size=1, local_images=2)
    report = tiny(
        folder, model=Net(), attacks=[attack, "iDLG(steps=1)"], defenses=["LaplaceNoise"], threat=threat, plan=plan,
        naive="defense" not in grants,
    )  # fmt: skip
    seen = attack.kept[-1]
    given = {
        "labels": seen.labels is not None,
        "order": seen.order is not None,
        "masks": seen.masks is not None,
        "defense": seen.views[0].channel is not None,
        "auxiliary": seen.auxiliary is not None,
    }
    assert given == {name: name in grants for name in given}
    bare = tuple(g for g in grants if g != "defense")
    assert {row.grants for row in report.rows if row.defense == UNDEFENDED} == {bare}
    assert {row.grants for row in report.rows if row.defense != UNDEFENDED} == {grants}
    assert report.settings.grants == grants


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "told"),
    [({}, [False, True]), ({"naive": True}, [False]), ({"threat": ThreatModel(("defense",))}, [True])],
)
def test_a_defense_is_attacked_without_and_with_what_it_discloses(folder, options, told):
    attack = Answers()
    report = tiny(folder, attacks=[attack, "iDLG(steps=25)"], defenses=["LaplaceNoise(scale=50.0)"], **options)
    of_random, of_control, *of_defense = (seen.views[0].channel for seen in attack.kept)
    assert (of_random, of_control) == (None, None), "there is no defense to know"
    assert [channel is not None for channel in of_defense] == told
    assert report.settings.grants == (("defense",) if True in told else ())
    cells = [cell for cell in report.summary if cell.attack.startswith("iDLG") and cell.defense != UNDEFENDED]
    assert [cell.knows_defense for cell in cells] == told
    for cell in cells:
        assert ("naive-attack" in cell.flags) is not cell.knows_defense
        assert cell.verdict == INCONCLUSIVE, "four images are no evidence"
        assert ("too-few" in cell.flags) is cell.knows_defense
        assert (cell.false_security_ssim.value is not None) is (cell.knows_defense and len(told) == 2)
    assert ("these attacks failed, but they did not know the defense" in str(report)) is (told == [False])
    assert any("tested against two attackers" in note for note in report.settings.notes) is (len(told) == 2)


@pytest.mark.slow
def test_a_defense_that_discloses_nothing_is_attacked_once(folder):
    attack = Answers()
    report = tiny(folder, attacks=[attack], defenses=["Mixup()"], plan=Plan(batch_size=2))
    assert len(attack.kept) == 3
    assert [cell.knows_defense for cell in report.summary] == [None, False]
    assert "undisclosed" in report.summary[1].flags or "control-failed" in report.summary[1].flags
    assert not any("tested against two attackers" in note for note in report.settings.notes)


def test_without_a_defense_there_is_none_to_know(folder):
    attack = Answers()
    report = tiny(folder, attacks=[attack], defenses=["NoDefense()"])
    assert report.settings.grants == ()
    assert {row.grants for row in report.rows} == {()}
    assert [seen.views[0].channel for seen in attack.kept] == [None, None]


def test_a_grant_that_is_withheld_too(folder):
    with pytest.raises(InputError, match="naive withholds what the grant 'defense' gives"):
        tiny(folder, defenses=["LaplaceNoise"], threat=ThreatModel(("defense",)), naive=True)


@pytest.mark.slow
def test_granted_labels_are_right_and_used(folder):
    attack = Answers()
    report = tiny(folder, attacks=[attack, "iDLG(steps=2)"], threat=ThreatModel(("labels",)), plan=Plan(batch_size=2))
    rows = [r for r in report.rows if r.attack == "iDLG(steps=2)"]
    assert sorted(attack.kept[-1].labels.flatten().tolist()) == sorted(r.label for r in rows if not r.control)
    assert sum(r.label == r.label_guess for r in rows) >= len(rows) / 2


@pytest.mark.slow
def test_an_active_server_s_model_is_what_the_client_trains(folder):
    @dataclass(frozen=True, repr=False)
    class Active(Answers):
        def prepare(self, model):
            for parameter in model.parameters():
                nn.init.constant_(parameter, 0.25)
            return model

    for grants, expected in (((), False), (("active",), True)):
        attack = Active()
        tiny(folder, attacks=[attack], threat=ThreatModel(grants))
        weights = attack.kept[-1].views[0].weights.parameters.values()
        assert all((w == 0.25).all() for w in weights) is expected


def test_auxiliary_images_are_of_nobody_who_is_attacked(tmp_path):
    data = some_images(12, patients=[f"p{i // 2}" for i in range(12)])
    attack = Answers()
    report = tiny(data, attacks=[attack], threat=ThreatModel(("auxiliary",)))
    assert len(report.rows) == 8
    auxiliary = attack.kept[-1].auxiliary
    places = [i for i, image in enumerate(data.images) for other in auxiliary if torch.equal(image, other)]
    assert len(places) == len(auxiliary)
    assert 4 <= len(places) <= 8, "of twelve images four are attacked, and so are up to four patients"
    assert {data.patients[i] for i in places}.isdisjoint(patients_attacked(data))


def patients_attacked(data):
    from medpfl.auditing.victims import draw_victims
    from medpfl.data.partition import IID
    from medpfl.runs.environment import generator_of

    victims = draw_victims(data, 4, 1, IID(), generator_of(0, "victims"))
    return {data.patients[int(i)] for v in victims for i in v}


@pytest.mark.slow
def test_draws_attack_the_same_images_under_other_weights(folder):
    attack = Answers()
    report = tiny(folder, attacks=[attack], draws=3)
    found = {d: [r.image for r in report.rows if r.draw == d and not r.control] for d in range(3)}
    assert found[0] == found[1] == found[2]
    assert report.summary[0].images == 12
    weights = [next(iter(seen.views[0].weights.parameters.values())) for seen in attack.kept[1:]]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])


def test_draws_of_a_model_that_loads_its_own_weights_are_refused(folder, tmp_path, monkeypatch):
    """They would count one draw several times."""
    monkeypatch.setattr("medpfl.auditing.player.Player.__call__", lambda *_: pytest.fail("work was done"))
    torch.save(nn.Linear(256, 2).state_dict(), tmp_path / "own.pt")
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def make():\n"
        "    last = nn.Linear(256, 2)\n"
        f"    last.load_state_dict(torch.load({str(tmp_path / 'own.pt')!r}))\n"
        "    return nn.Sequential(nn.Flatten(), last)\n"
    )
    with pytest.raises(InputError, match=r"--draws 2 needs new weights .* but this model has the same in two draws"):
        tiny(folder, model=f"{tmp_path}/net.py:make", draws=2)


@pytest.mark.slow
@pytest.mark.parametrize("partition", ["IID(clients=3)", "Dirichlet(alpha=0.5, clients=3)"])
def test_partitions(folder, partition):
    assert tiny(folder, partition=partition).summary[0].images == 4


@pytest.mark.slow
def test_color_and_gray(tmp_path):
    color = draw_folder(tmp_path / "color", {"a": 2, "b": 2}, color=True)
    for channels, expected, attacks in (
        (None, 3, ["GradInv(steps=2)", "CPL(steps=2)"]),
        (1, 1, [Answers()]),
        (3, 3, [Answers()]),
    ):
        report = tiny(color, channels=channels, attacks=attacks)
        assert report.settings.data["shape"] == [expected, 16, 16]
        assert len(report.summary) == len(attacks)


@pytest.mark.slow
def test_a_resnet(folder):
    victims = Victims(images=1, size=16)
    report = audit("ResNet(18)", folder, attacks=["GradInv(steps=1)"], plan=Plan(mode="eval"), victims=victims)
    assert len(report.summary) == 1
    assert report.settings.model["parameters"] > 11_000_000
    assert report.rows[0].engine == "loop of 1"


@pytest.mark.slow
def test_sources_are_folders_samples_and_images(folder):
    for data in (
        folder,
        str(folder),
        ImageFolder(folder, size=16),
        Samples(size=16),
        some_images(6),
        "Samples(size=16)",
    ):
        assert tiny(data, attacks=[Answers()]).summary[0].images == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["brain_mri", "covid_xray", "melanoma"])
def test_all_four_attacks_run_on_the_real_sets(real_sets, name):
    data = ImageFolder(real_sets / name, size=16, limit=12)
    report = tiny(data, attacks=[f"{a}(steps=2)" for a in ("DLG", "iDLG", "CPL", "GradInv")], images=2)
    assert [cell.images for cell in report.summary] == [2] * 4
    assert report.settings.data["skipped"] == 0


def test_a_users_file_and_weights(folder, tmp_path):
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def make(num_classes, in_channels, width=3):\n"
        "    return nn.Sequential(nn.Conv2d(in_channels, width, 3), nn.Sigmoid(), nn.Flatten(),\n"
        "                         nn.Linear(width * 14 * 14, num_classes))\n"
    )
    torch.manual_seed(1)
    state = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(2 * 14 * 14, 2)).state_dict()
    torch.save(state, tmp_path / "weights.pt")
    attack = Answers()
    report = tiny(folder, model=f"{tmp_path}/net.py:make(width=2)", weights=tmp_path / "weights.pt", attacks=[attack])
    assert torch.equal(attack.kept[-1].views[0].weights.parameters["0.weight"], state["0.weight"])
    assert report.rows[0].model == "UserModel(call='make(width=2)')"
    assert report.settings.experiment["weights"] == "given"


# --- the same again -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_same_seed_gives_the_same_rows_and_another_one_others(folder):
    def run(seed):
        return tiny(
            folder, seed=seed, defenses=["LaplaceNoise"], attacks=["iDLG(steps=2)", "GradInv(steps=1, restarts=2)"],
            images=2, plan=Plan("FedAvg", batch_size=1, local_images=2), model="LeNet('idlg')", naive=True,
        )  # fmt: skip

    first, second, other = run(0), run(0), run(1)
    assert plain(first.rows, "image") == plain(second.rows, "image"), "to the bit"
    assert not {r.scores["ssim"] for r in first.rows} & {r.scores["ssim"] for r in other.rows}


@pytest.mark.slow
def test_what_else_is_audited_does_not_change_a_row(folder):
    """An attack's rows under a defense are the same when other cells run beside them."""
    alone = tiny(folder, defenses=["LaplaceNoise"])
    beside = tiny(
        folder, defenses=["GaussianNoise", "LaplaceNoise"], attacks=["DLG(steps=2)", "iDLG(steps=3)"], draws=2
    )
    mine = [
        r
        for r in beside.rows
        if r.attack == "iDLG(steps=3)" and r.defense != "GaussianNoise(scale=0.01)" and not r.draw
    ]
    assert plain(mine, "image") == plain(alone.rows, "image")


@pytest.mark.slow
def test_the_global_generator_is_left_alone(folder):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    tiny(folder)
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(77)
    other = tiny(folder)
    assert plain(other.rows, "image") == plain(tiny(folder).rows, "image")


@pytest.mark.slow
def test_memory_lays_out_the_stacks(folder):
    report = tiny(folder, memory=1e-6)
    assert [r.stack for r in report.rows if not r.control] == [0, 1, 2, 3]
    assert {r.engine for r in report.rows} == {"vmap of 1"}
    assert report.settings.experiment["victims_per_stack"] == 1
    assert {r.stack for r in tiny(folder).rows} == {0}


def test_an_update_that_no_memory_holds_is_refused_before_any_attack(monkeypatch):
    monkeypatch.setattr("medpfl.auditing.feasibility.free_memory", lambda device: 0.5)
    steps = Plan("FedAvg", batch_size=1, local_images=4, epochs=50)
    kept = Answers()
    large = {"model": "MLP((512, 512))", "attacks": [kept], "memory": 1e-3}
    with pytest.raises(
        InputError, match=r"takes about 1\.\d GiB, more than --memory \(0\.001\) and than the 0\.5 GiB"
    ) as told:
        tiny(some_images(4), plan=steps, **large)
    assert "keeps all 200 local steps, so fewer epochs or local images help" in str(told.value)
    assert str(told.value).endswith("state --memory 2")
    assert kept.kept == []
    monkeypatch.setattr("medpfl.auditing.feasibility.free_memory", lambda device: 1e-6)
    with pytest.raises(InputError, match="that are free: smaller batches or images help"):
        tiny(some_images(4), **large)


@pytest.mark.parametrize("free", [8.0, None])
def test_an_update_that_takes_more_memory_than_stated_but_not_than_free_is_noted(monkeypatch, capsys, free):
    monkeypatch.setattr("medpfl.auditing.feasibility.free_memory", lambda device: free)
    tiny(some_images(4), memory=1e-6)
    assert "more than --memory (1e-06): updates are attacked one by one" in capsys.readouterr().err


@pytest.mark.slow
def test_a_users_network_is_left_as_it_was(folder, tmp_path):
    torch.manual_seed(0)
    network = Net().eval()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    first = tiny(folder, model=network, plan=Plan(batch_size=2), out=tmp_path / "runs" / "a")
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert not network.training
    assert all(p.grad is None for p in network.parameters())
    second = tiny(folder, model=network, plan=Plan(batch_size=2), out=tmp_path / "runs" / "a")
    assert [r.date for r in second.rows] == [r.date for r in first.rows], "the same experiment, continued"


# --- what rows and reports say --------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_random_update_control_runs_for_every_attack(folder):
    report = tiny(folder, attacks=["iDLG(steps=3)", "DLG(steps=3)"], draws=2, defenses=["LaplaceNoise"])
    control = [(r.attack, r.defense, r.draw) for r in report.rows if r.control]
    assert {r.control for r in report.rows} == {"", RANDOM_UPDATE}
    assert set(control) == {("iDLG(steps=3)", UNDEFENDED, 0), ("DLG(steps=3)", UNDEFENDED, 0)}
    assert all(cell.asr_random_update.value == 0.0 for cell in report.summary)


@pytest.mark.slow
def test_random_updates_have_the_norm_of_the_true_ones(folder):
    attack = Answers()
    tiny(folder, attacks=[attack])
    random, true = (seen.views[0].update.tensors for seen in attack.kept)
    for name in true:
        torch.testing.assert_close(random[name].flatten(1).norm(dim=1), true[name].flatten(1).norm(dim=1))
        assert not torch.allclose(random[name], true[name])


@pytest.mark.slow
def test_rows_say_what_made_them(folder):
    row = tiny(folder, seed=7, attacks=["iDLG(steps=3)"]).rows[-1]
    assert (row.model, row.data, row.seed, row.device) == ("MLP(hidden=(6,))", "ImageFolder(size=16)", 7, "cpu")
    assert {"medpfl", "torch", "python"} <= row.versions.keys()
    assert row.versions["torch"] == torch.__version__.partition("+")[0]
    assert row.seconds > 0
    assert row.date.startswith("20")


@pytest.mark.slow
def test_left_out_images_are_noted(folder):
    report = tiny(ImageFolder(folder, size=16, limit=6))
    assert "Did not open 4 files above the data source's limit; set limit= to use more." in report.settings.notes


# --- attacks, defenses and models that misbehave --------------------------------------------------------------


@pytest.mark.slow
def test_guesses_that_are_no_numbers_are_nonfinite_and_inconclusive(folder, tmp_path):
    attack, out = Answers(float("nan"), "nonfinite"), tmp_path / "runs" / "a"
    report = tiny(folder, attacks=[attack], defenses=["LaplaceNoise"], out=out)
    for cell in report.summary:
        assert "nonfinite" in cell.flags
        assert (cell.verdict, cell.nonfinite, cell.asr.value) == (INCONCLUSIVE, 1.0, 0.0)
    assert "NaN" not in (out / "share/findings.jsonl").read_text()


def test_guesses_that_are_no_numbers_and_are_not_said_to_be_are_an_error(folder):
    with pytest.raises(InputError, match=r"^Answers\(value=nan\) returned guesses that are not finite"):
        tiny(folder, attacks=[Answers(float("nan"))])


@pytest.mark.slow
@pytest.mark.parametrize("error", [RuntimeError, ValueError, TypeError, IndexError, AssertionError])
def test_an_attack_that_raises_is_named(folder, error):
    @dataclass(frozen=True, repr=False)
    class Broken(Answers):
        def __call__(self, seen, generator):
            raise error("boo\nmore")

    with pytest.raises(
        InputError, match=r"^Broken\(\) cannot attack this model: boo \(test_audit.py, line \d+\)$"
    ) as caught:
        tiny(folder, attacks=[Broken()])
    assert isinstance(caught.value.__cause__, error)


def test_a_defense_that_raises_is_an_error_of_the_input(folder):
    class Broken(Defense):
        def __repr__(self):
            return "Broken()"

        def update(self, value, state, generator):
            raise KeyError("no such layer")

    with pytest.raises(InputError, match=r"Broken\(\): the defense failed in the probe: KeyError: 'no such layer'"):
        tiny(folder, defenses=[Broken()])


@pytest.mark.slow
def test_a_server_side_defense_does_not_protect_from_the_server(folder):
    class AtServer(Defense):
        where = "server"

        def __repr__(self):
            return "AtServer()"

        def update(self, value: Update, state, generator):
            return value.replace({k: t * 0 for k, t in value.tensors.items()}), state

    attack = Answers()
    defenses = [AtServer(), AtServer() | AtServer()]
    report = tiny(folder, attacks=[attack, "iDLG(steps=60)"], defenses=defenses, images=2)
    _, bare, *defended = attack.kept
    for seen in defended:
        for name, value in bare.views[0].update.tensors.items():
            assert torch.equal(value, seen.views[0].update.tensors[name]), "the server saw it before"
    assert [c.verdict for c in report.summary if c.attack == "iDLG(steps=60)"] == [LEAKS] * 3
    assert ["server-side" in c.flags for c in report.summary] == [False] * 2 + [True] * 4


class Nothing(Net):
    """A model whose update is exactly zero."""

    def forward(self, x):
        return super().forward(x) * 0


@pytest.mark.slow
def test_a_model_whose_update_is_zero(folder):
    report = tiny(folder, model=Nothing(), defenses=["LaplaceNoise"])
    for cell in report.summary:
        assert (cell.images, cell.zero_gradient, cell.verdict) == (0, 1.0, INCONCLUSIVE)
        assert "zero-gradient" in cell.flags


@pytest.mark.slow
def test_networks_that_cannot_be_audited(folder):
    class Frozen(Net):
        def __init__(self):
            super().__init__()
            self.requires_grad_(False)

    class Lazy(Net):
        def __init__(self):
            super().__init__()
            self.idle = nn.LazyLinear(2)

    class Pair(Net):
        def forward(self, x):
            return super().forward(x), x

    class Flat(Net):
        def forward(self, x):
            return super().forward(x).flatten()

    class Infinite(Net):
        def forward(self, x):
            return super().forward(x) / 0

    class Raises(Net):
        def forward(self, x):
            raise KeyError("layer")

    class RaisesLater(Net):
        def forward(self, x):
            if torch.is_grad_enabled():
                raise ValueError("not twice")
            return super().forward(x)

    bad = Net()
    with torch.no_grad():
        bad.last.bias[0] = float("nan")
    for network, message in [
        (Frozen(), "no trainable parameter"),
        (nn.Flatten(), "no trainable parameter"),
        (Lazy(), "does not use its lazy layers idle"),
        (Pair(), r"must return logits of shape \(1, classes\), but it returned tuple"),
        (Flat(), r"must return logits of shape \(1, classes\), but it returned \(2,\)"),
        (Net(1), "the model has 1 outputs for 2 classes"),
        (Infinite(), "outputs are not finite"),
        (Raises(), r"does not take images of shape \(1, 1, 16, 16\): KeyError: 'layer'"),
        (RaisesLater(), "not twice"),
        (nn.Sequential(nn.Flatten(), nn.Linear(99, 2)), r"does not take images of shape \(1, 1, 16, 16\)"),
        (nn.Sequential(nn.Flatten(), nn.Linear(256, 2).double()), "does not take images"),
        (bad, "'last.bias' holds values that are not finite"),
    ]:
        with pytest.raises(InputError, match=message):
            tiny(folder, model=network)


def test_batch_norm_on_one_value_says_what_to_do(folder):
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(256), nn.Linear(256, 2))
    with pytest.raises(InputError, match="try mode eval"):
        tiny(folder, model=network)


@pytest.mark.slow
def test_more_outputs_than_classes_are_welcome(folder):
    assert tiny(folder, model=Net(5)).settings.model["outputs"] == 5


# --- what is asked for and cannot be --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": 0}, "images is 0"),
        ({"images": 11}, "--images is 11, but this data set has 10: attack fewer images"),
        ({"plan": Plan(batch_size=11), "images": 11}, "an update holds 11 images, but this data set has 10"),
        ({"minutes": -1}, "minutes is -1"),
        ({"attacks": ["iDGL"]}, "there is no attack 'iDGL'; did you mean 'iDLG'"),
        ({"attacks": ["iDLG(step=3)"]}, "no argument 'step'; did you mean 'steps'"),
        ({"attacks": [3]}, "3 cannot be used as attack: give a spec or an object"),
        ({"attacks": 3}, "3 cannot be used as attack"),
        ({"defenses": [Answers()]}, r"Answers\(\) cannot be used as defense"),
        ({"defenses": ["LaplaceNose"]}, "did you mean 'LaplaceNoise'"),
        ({"defenses": ["LaplaceNoise(scale=-1)"]}, "scale is -1"),
        ({"draws": 0}, "draws is 0"),
        ({"draws": 2, "model": Net()}, "this model comes with weights"),
        ({"device": "nonsense"}, "device 'nonsense' cannot be used here"),
        ({"device": "meta"}, "device 'meta' cannot be used here"),
        ({"memory": 0}, "memory is 0"),
        ({"memory": float("nan")}, "memory is nan"),
        ({"size": 10}, "SSIM needs images of 11 x 11 pixels or more"),
        ({"partition": "ID"}, "there is no partition 'ID'; did you mean 'IID'"),
        ({"partition": "IID(clients=11)"}, "more clients"),
        ({"weights": "nowhere.pt"}, "there is no weights file 'nowhere.pt'"),
        ({"model": "LeNet('idgl')"}, "did you mean 'idlg'"),
        ({"model": "net.py"}, "add the function that makes it, as in net.py:make_model"),
    ],
)
def test_wrong_options_are_said_before_any_work(folder, tmp_path, options, message, monkeypatch):
    monkeypatch.setattr("medpfl.auditing.player.Player.__call__", lambda *_: pytest.fail("work was done"))
    with pytest.raises(InputError, match=message):
        tiny(folder, out=tmp_path / "runs" / "a", **options)
    assert not (tmp_path / "runs").exists(), "nothing was written"


def test_data_that_is_none(tmp_path):
    (tmp_path / "file.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    for data, message in [
        (tmp_path / "nowhere", "there is no folder or record"),
        ("sampels", "there is no folder or record 'sampels' here; did you mean 'samples'"),
        (tmp_path / "file.txt", "cannot read the file"),
        (tmp_path / "empty", "has no class folders"),
        ("ImageFoldr('x')", "did you mean 'ImageFolder'"),
    ]:
        with pytest.raises(InputError, match=message):
            tiny(data)


def test_out_must_not_lie_in_the_data(folder):
    for out in (folder / "run", folder / "benign" / "run", folder):
        with pytest.raises(InputError, match="lies in the data folder"):
            tiny(folder, out=out)
    assert {p.name for p in folder.iterdir()} == {"benign", "malignant"}
    with pytest.raises(InputError, match="lies in the data folder"):
        tiny(ImageFolder(folder, size=16), out=folder / "run")


def test_too_large_for_memory_is_said():
    with pytest.raises(InputError, match="size is 100000000: it must be a whole number, at least 1 and at most 4096"):
        tiny("samples", size=100_000_000)


@pytest.mark.slow
def test_iterates_are_scored_where_they_are_asked_for(folder, tmp_path):
    plain, kept = tiny(folder), tiny(folder, iterates=True, out=tmp_path / "out")
    assert not any("legacy_oracle_iterate" in row.scores for row in plain.rows)
    for row, other in zip(kept.rows, plain.rows, strict=True):
        assert row.scores["ssim"] == other.scores["ssim"]
        assert row.scores["legacy_oracle_iterate"] is not None
    with pytest.raises(InputError, match="holds another audit"):
        tiny(folder, out=tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"attacks": ["iDLG(steps=3)"]}, "RGAP"),
        ({"attacks": ["iDLG(steps=3)", "RGAP(steps=3)"]}, None),
        ({"attacks": ["iDLG(steps=3)"], "plan": Plan(batch_size=2)}, None),
        ({"attacks": ["GradInv(steps=3)"], "model": "ViT(4, 1, 24, 3)"}, "APRIL"),
    ],
)
def test_an_attack_that_is_made_for_the_model_and_is_not_run_is_named(folder, more, named, other_attacks):
    left = tiny(folder, **more).settings.not_run
    assert left["suited"] == ([f"{named}()"] if named else [])
    run = {text.partition("(")[0] for text in more["attacks"]}
    told = {spec.partition("(")[0] for specs in left.values() for spec in specs}
    assert told == set(attack_package.__all__) - run, "each attack is run, or said not to be"
    assert ("RGAP()" in left["unfit"]) == (more.get("plan", Plan()).images > 1 or "model" in more)


class Picky(nn.Module):
    """A model with patches and positions that accepts two images at most."""

    def __init__(self):
        super().__init__()
        self.cut, self.places = nn.Conv2d(1, 32, 4, 4), nn.Parameter(torch.zeros(1, 16, 32))
        self.last = nn.Linear(512, 4)

    def forward(self, x):
        if len(x) > 2:
            raise ValueError("two images at most")
        return self.last((self.cut(x).flatten(2).mT + self.places).flatten(1))


@pytest.mark.slow
def test_one_attack_may_be_given_alone(folder):
    assert tiny(folder, attacks=iDLG(steps=3)).settings.experiment["attacks"] == ["iDLG(steps=3)"]


@pytest.mark.slow
def test_a_model_that_no_other_attack_can_look_at_is_audited_all_the_same(other_attacks):
    report = audit(Picky(), attacks=["iDLG(steps=2)"], victims=Victims(images=2, size=16))
    assert not report.settings.not_run["suited"]
    assert report.rows
    with pytest.raises(InputError, match=r"APRIL.*: it cannot check this model: two images at most"):
        audit(Picky(), attacks=["APRIL"], victims=Victims(images=2, size=16))


def test_settings_that_suit_a_deep_network_are_suggested(folder, monkeypatch):
    monkeypatch.setattr("medpfl.attacks.gradinv.UNTRAINED", GradInv(steps=2, tv=0.1))
    monkeypatch.setattr("medpfl.attacks.gradinv.TRAINED", GradInv(steps=2, scope="layer"))
    monkeypatch.setattr("medpfl.attacks.gradinv._DEEP", 10)
    monkeypatch.setattr("medpfl.attacks.gradinv._LAYERS", 1)
    plain = GradInv(steps=1)
    monkeypatch.setattr("medpfl.attacks.gradinv.GradInv", lambda: plain)
    plan = Plan(batch_size=2)  # for which there is no RGAP
    deep = ["GradInv(steps=2, tv=0.1)", "GradInv(steps=2, scope='layer')"]

    def told(*attacks):
        return tiny(folder, attacks=attacks, plan=plan).settings.not_run["suited"]

    assert told("GradInv(steps=1)") == deep
    assert told("GradInv(steps=1)", deep[0]) == [deep[1]]
    assert not told("GradInv(steps=3)"), "its settings were chosen"


@dataclass(frozen=True, repr=False)
class Unsure(iDLG):
    """An attack that fails when asked for the settings that suit a model."""

    def suited(self, model):
        raise ValueError("no such layer")


def test_an_attack_that_cannot_say_what_suits_a_model_is_named(folder):
    with pytest.raises(InputError, match="Unsure cannot say which settings suit this model: no such layer"):
        tiny(folder, attacks=[Unsure(steps=2)])


def evaluations_take(monkeypatch, seconds):
    """Make one evaluation for all victims seem to take so long."""
    monkeypatch.setattr("medpfl.auditing.forecast.budget._seconds", lambda _: seconds)


@pytest.mark.parametrize(
    ("seconds", "solved", "evaluations"), [(1.0, True, 120), (0.0117, True, 2000), (2.0, True, 0), (2.0, False, 100)]
)
def test_minutes_become_evaluations(folder, monkeypatch, seconds, solved, evaluations, other_attacks):
    """Two minutes; without an analytic attack, the shortest searches run however long they take."""
    evaluations_take(monkeypatch, seconds)
    monkeypatch.setattr("medpfl.attacks.worst_case._searches", lambda *_: ([], False))
    if not solved:
        monkeypatch.setattr("medpfl.attacks.worst_case._SOLVERS", ())
    report = tiny(folder, attacks=())
    assert report.settings.experiment["attacks"] == [f"WorstCase(evaluations={evaluations})"]
    assert any("larger budget" in note for note in report.settings.notes) == (evaluations < 2000)
    assert not any(note.startswith("Not tested") for note in report.settings.notes)


def test_a_run_keeps_its_budget(folder, monkeypatch, tmp_path):
    monkeypatch.setattr("medpfl.attacks.worst_case._searches", lambda *_: ([], False))
    evaluations_take(monkeypatch, 1.0)
    first = tiny(folder, attacks=(), out=tmp_path / "run")
    evaluations_take(monkeypatch, 0.5)
    again = tiny(folder, attacks=(), out=tmp_path / "run")
    assert again.rows == first.rows
    other = tiny(folder, attacks=(), out=tmp_path / "run", force=True)
    assert other.settings.experiment["attacks"] == ["WorstCase(evaluations=240)"]
