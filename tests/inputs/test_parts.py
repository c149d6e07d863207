"""A user's input, and small parts of the engine."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from medpfl import Cohort, InputError, Plan, Reading
from medpfl.attacks import DLG, iDLG
from medpfl.auditing.defense_parts import at_client, server_only, server_side
from medpfl.core.roles import Attack, Defense
from medpfl.data.partition import IID, Dirichlet
from medpfl.defenses import GaussianNoise, LaplaceNoise, NoDefense
from medpfl.inputs.network import check_network
from medpfl.inputs.parts import attacks_of, data_of, defenses_of, is_record, model_of, partition_of
from medpfl.inputs.spelling import check_words, is_pattern, names_a_source
from medpfl.models import MLP, ConvNet, LeNet
from medpfl.models.user import UserModel
from medpfl.runs.environment import (
    device_of,
    explained,
    free_memory,
    generator_of,
    seed_of,
    stack_size,
    versions,
    victim_size,
)
from medpfl.runs.progress_bar import name_skipped
from medpfl.training.splits import _source
from tests.auditing.audit_cases import Answers, some_images


def test_parts_come_from_specs_and_objects_in_their_order():
    assert attacks_of(["iDLG(steps=3)", DLG(), "iDLG(steps=lin(3, 5, 3))"]) == [
        iDLG(steps=3), DLG(), iDLG(steps=4), iDLG(steps=5),
    ]  # fmt: skip
    assert defenses_of([]) == [NoDefense()]
    assert defenses_of(["LaplaceNoise", NoDefense(), GaussianNoise(0.5)]) == [
        NoDefense(), LaplaceNoise(), GaussianNoise(0.5),
    ]  # fmt: skip
    assert repr(attacks_of("GradientMatching(prior=TotalVariation(weight=0.1))")[0]).startswith("GradientMatching(")


def test_models_come_from_specs_files_modules_and_networks():
    assert model_of("LeNet('cpl')") == LeNet("cpl")
    assert model_of("a/b.py:make(x=1)") == UserModel("a/b.py", "make(x=1)")
    assert model_of("package.module:Net") == UserModel("package.module", "Net")
    network = nn.Linear(3, 2)
    made = model_of(network).build((1, 3, 1), 2, 0)
    assert made is not network
    assert torch.equal(made.weight, network.weight)
    assert model_of(LeNet()) == LeNet()


SOURCE = """
from dataclasses import dataclass
import torch
from medpfl import DataSource
from medpfl.data.images import LabelledImages

@dataclass(frozen=True, repr=False)
class Mine(DataSource):
    number: int = 4
    limit: int = 7
    sides: tuple = (8, 8)
    def load(self):
        images, labels = torch.rand(self.number, 1, *self.sides), torch.arange(self.number) % 2
        return LabelledImages(images, labels, ("a", "b"), tuple(map(str, labels)), (None,) * self.number)

class Bare(DataSource):
    def load(self):
        return None

def number():
    return 3

@dataclass(frozen=True, repr=False)
class Dicom(Mine):
    pass
"""


def test_a_data_source_of_ones_own_is_named_by_its_place(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(SOURCE)
    spec = f"{file}:Mine(number=6, sides=[4, 4])"
    assert not is_pattern(spec), "brackets are no pattern here"
    check_words(spec)
    found = data_of(spec, Reading())
    assert (found.source, found.place, found.images.shape) == ("Mine(number=6, sides=[4, 4])", "Mine", (1, 4, 4))
    assert _source(spec, Cohort()).limit == 7, "a spec states its own limit"
    for data, message in [
        (f"{file}:Bare", "Bare is not a dataclass, so its settings have no names"),
        (f"{file}:number", "3 is no data source: derive its class from medpfl.DataSource"),
        (f"{file}:Min", "has no function or class 'Min'; did you mean 'Mine'"),
        (f"{file}:Dicom", "calls its data source 'Dicom', but MedPFL already has that name"),
        (f"{tmp_path}/none.py:Mine", "there is no data source file"),
        ("data/site:1", "there is no folder or record"),
    ]:
        with pytest.raises(InputError, match=message):
            data_of(data, Reading())
    with pytest.raises(InputError, match="there is no folder or record"):
        check_words("data/site:1")
    folder = tmp_path / "mine.py:Mine"
    folder.mkdir()
    assert not names_a_source(str(folder)), "an existing folder is a folder"


def test_an_attack_that_cannot_be_called_is_refused_at_once():
    @dataclass(frozen=True, repr=False)
    class Mute(Attack):
        """It lacks what its role needs."""

    with pytest.raises(InputError, match=r"the class Mute does not define __call__\(self, seen, generator\)"):
        attacks_of([Mute()])


def test_partitions():
    assert partition_of("Dirichlet(alpha=0.1)") == Dirichlet(0.1)
    assert partition_of(IID(3)) == IID(3)


def test_images_of_ones_own_have_no_path():
    data = some_images(3)
    assert data_of(data, Reading())[:3] == (data, "images", "images")


def test_what_is_a_record(tmp_path):
    (tmp_path / "file").write_bytes(b"xx")
    assert not is_record(tmp_path / "file")
    assert not is_record(tmp_path)
    assert not is_record("samples")
    assert not is_record(some_images(1))


def test_seeds_are_named_and_far_apart():
    words = [(), ("a",), ("a", 0), ("a", 1), ("b", 1), ("a", "1")]
    seeds = {seed_of(s, *w) for s in (0, 1) for w in words}
    assert len(seeds) == 12
    assert all(0 <= seed < 2**62 for seed in seeds)
    assert seed_of(0, "victims") == seed_of(0, "victims") == 1038713089770930412
    assert torch.equal(torch.rand(3, generator=generator_of(0, "a")), torch.rand(3, generator=generator_of(0, "a")))


def test_stacks_are_fixed_by_memory_and_never_empty():
    network, images = LeNet("idlg").build((1, 16, 16), 2, 0), torch.rand(1, 1, 16, 16)
    sizes = [stack_size(network, images, Plan(), memory) for memory in (1e-9, 1e-3, 5e-3, 1e9, float("inf"))]
    assert sizes == sorted(sizes)
    assert sizes[0] == 1
    assert 1 < sizes[2] < 64
    assert sizes[-2:] == [64, 64]
    assert stack_size(network, images, Plan(batch_size=8), 5e-3) < sizes[2]
    assert not network._forward_hooks
    for wrong in (0, -1, float("nan")):
        with pytest.raises(InputError, match="it must be above 0"):
            stack_size(network, images, Plan(), wrong)


def test_a_victim_takes_memory_for_each_of_its_steps():
    images = torch.rand(2, 1, 16, 16)
    wide, convolutional = MLP((512,)).build((1, 16, 16), 2, 0), ConvNet(8, 2).build((1, 16, 16), 2, 0)

    def size(network, steps, clients=1):
        return victim_size(network, images, Plan("FedAvg", 2, 2, steps), clients)

    assert size(wide, 1) == victim_size(wide, images, Plan(batch_size=2))
    parameters = 4 * sum(p.numel() for p in wide.parameters()) / 2**30
    assert size(wide, 9) - size(wide, 1) == pytest.approx(8 * 6 * parameters, rel=0.05)
    assert size(convolutional, 9) > 4 * size(convolutional, 1), "activations are kept too"
    assert size(wide, 3, clients=4) == pytest.approx(4 * size(wide, 3))
    poisson = Plan("FedAvg", 2, 8, sampling="poisson")
    assert victim_size(convolutional, images, poisson) > 2 * victim_size(convolutional, images, Plan("FedAvg", 2, 8))


def test_free_memory_is_told_in_gib():
    free = free_memory(torch.device("cpu"))
    assert free is None or 0.01 < free < 1e6


def test_devices():
    assert device_of("cpu") == torch.device("cpu")
    for wrong in ("meta", "gpu", "cpu:x", ""):
        with pytest.raises(InputError, match="cannot be used here"):
            device_of(wrong)


def test_versions_are_those_installed():
    assert versions()["torch"] == torch.__version__.partition("+")[0]
    assert "unknown" not in versions().values()


def test_a_network_of_one_class_of_data():

    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    assert check_network(network, torch.rand(3, 1, 2, 2), 1, Plan()) == 2
    with pytest.raises(InputError, match="2 outputs for 3 classes: it needs at least 3"):
        check_network(network, torch.rand(3, 1, 2, 2), 3, Plan())


def test_what_strangers_raise_is_explained(ctrl_c):
    with (
        pytest.raises(InputError, match=r"^it broke: KeyError: 'a' \(test_parts.py, line \d+\)$"),
        explained("it broke"),
    ):
        raise KeyError("a")
    with (
        pytest.raises(InputError, match=r"^it broke: ValueError \(test_parts.py, line \d+\)$"),
        explained("it broke"),
    ):
        raise ValueError
    with pytest.raises(InputError, match=r"^as it is$"), explained("it broke"):
        raise InputError("as it is")
    for error in (MemoryError(), torch.OutOfMemoryError("CUDA"), RuntimeError("can't allocate memory: 9 GB")):
        with pytest.raises(InputError, match="lower --memory, --batch-size or --size"), explained("it broke"):
            raise error
    with pytest.raises(KeyboardInterrupt), explained("it broke"):
        ctrl_c()


def test_what_only_the_server_does_is_not_done_at_the_client():
    class Late(Defense):
        where = "server"

    noise, other = LaplaceNoise(), GaussianNoise()
    assert at_client(noise) is noise
    late = LaplaceNoise(where="server")
    parts = [noise, late, noise | late]
    assert server_side(parts) == [repr(d) for d in parts[1:]]
    assert server_only(parts) == [repr(parts[1])]
    assert at_client(Late()) == NoDefense()
    assert at_client(noise | Late()) is noise
    assert repr(at_client(noise | Late() | other)) == repr(noise | other)


def test_skipped_files_are_named_up_to_ten(capsys, monkeypatch):
    monkeypatch.setattr("medpfl.core.messages.may_show", lambda stream: True)
    name_skipped([])
    assert capsys.readouterr().err == ""
    name_skipped(["a.png: empty file"])
    assert capsys.readouterr().err == "skipped 1 file that could not be read:\n  a.png: empty file\n"
    name_skipped([f"{i}.png: not an image" for i in range(12)])
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "skipped 12 files that could not be read:"
    assert lines[1] == "  0.png: not an image"
    assert lines[10:] == ["  9.png: not an image", "  and 2 more"]


def test_an_attack_object_is_kept_as_it_is():
    attack = Answers()
    assert attacks_of([attack])[0] is attack


def test_a_part_without_a_spec_is_refused():
    class Mine(Defense):
        pass

    for given in (Mine(), GaussianNoise() | Mine()):
        with pytest.raises(InputError, match=r"Mine is not a dataclass, .* put @dataclass"):
            defenses_of([given])


@pytest.mark.slow
def test_what_private_defenses_spend():
    from medpfl.auditing.privacy.epsilon import spent
    from medpfl.core.plan import Plan
    from medpfl.defenses import DPSGD, ClientDP

    both = DPSGD(noise=3.0) | ClientDP(noise=4.0)
    found = spent([NoDefense(), GaussianNoise(), both, DPSGD(noise=0.001)], Plan(), 1e-4, nn.Linear(2, 2))
    assert list(found) == [repr(both), "DPSGD(clip=1.0, noise=0.001)"]
    image, client = found[repr(both)].split("; ")
    assert image.startswith(f"{DPSGD(noise=3.0).spent(Plan(), 1, 1e-4)}, for an image")
    assert client.startswith(f"{ClientDP(noise=4.0).spent(Plan(), 1, 1e-4)}, for the client")
    assert "epsilon is in the hundreds" in found["DPSGD(clip=1.0, noise=0.001)"]


@pytest.mark.slow
def test_no_epsilon_is_stated_where_something_else_leaves_the_client():
    from medpfl.auditing.privacy.epsilon import spent
    from medpfl.core.plan import Plan
    from medpfl.defenses import DPSGD, ClientDP, Mixup

    plain, norm = nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    assert "batch-norm statistics" in spent([ClientDP(noise=4.0)], Plan(), 1e-4, norm)["ClientDP(clip=1.0, noise=4.0)"]
    assert "for the client" in next(iter(spent([ClientDP(noise=4.0)], Plan(sends=()), 1e-4, norm).values()))
    mixed = spent([Mixup() | DPSGD(noise=3.0)], Plan(batch_size=2), 1e-4, plain)
    assert "another part changes the input of its steps" in next(iter(mixed.values()))
    three = Mixup() | DPSGD(noise=3.0) | ClientDP(noise=4.0)
    image, client = spent([three], Plan(batch_size=2), 1e-4, plain)[repr(three)].split("; ")
    assert image == "epsilon for an image is not stated: another part changes the input of its steps"
    assert "for the client" in client
