"""A foreign part that ends the program, at every moment it is called: an error, and never exit status 0."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import ClassVar

import pytest
from torch import nn

from medpfl import Attack, Cohort, Defense, InputError, Plan, Schedule, ThreatModel, Victims, audit, cli, train
from medpfl.cli import commands
from medpfl.core.roles import DataSource, Model
from medpfl.data.partition import IID
from medpfl.inspection.check import check_model
from tests.auditing.audit_cases import some_images
from tests.flat import flat

ENDS = {
    "exit": lambda: sys.exit(0),
    "SystemExit": lambda: _raise(SystemExit()),
    "GeneratorExit": lambda: _raise(GeneratorExit()),
    "KeyboardInterrupt": lambda: _raise(KeyboardInterrupt()),
    "BaseException": lambda: _raise(BaseException("odd")),
}
ENDED = r"it (ended the program|raised)"


def _raise(error):
    raise error


each_end = pytest.mark.parametrize("end", ENDS)


@dataclass(frozen=True, repr=False)
class Ending(Attack):
    moment: str = ""
    end: str = "exit"

    def _at(self, moment):
        if moment == self.moment:
            ENDS[self.end]()

    def check(self, model, plans, image_shape):
        self._at("check")

    def suited(self, model):
        self._at("suited")
        return ()

    def prepare(self, model):
        self._at("prepare")
        return model

    def __call__(self, seen, generator):
        from medpfl.attacks import iDLG

        self._at("call")
        return iDLG(steps=2)(seen, generator)


@each_end
@pytest.mark.parametrize("moment", ["check", "suited", "prepare", "call"])
def test_attacks(moment, end):
    threat = ThreatModel(("active",)) if moment == "prepare" else ThreatModel()
    with pytest.raises(InputError, match=f"Ending.*{ENDED}"):
        audit("MLP((4,))", some_images(8), attacks=[Ending(moment, end)], threat=threat, victims=Victims(images=2))


@dataclass(frozen=True, repr=False)
class Guarding(Defense):
    unit: ClassVar = "client"

    moment: str = ""
    end: str = "exit"

    def _at(self, moment):
        if moment == self.moment:
            ENDS[self.end]()

    def init(self):
        self._at("init")
        return {}

    def model(self, value, state, generator):
        self._at("model")
        return value, state

    def batch(self, value, state, generator):
        self._at("batch")
        return value, state

    def gradient(self, value, state, generator):
        self._at("gradient")
        return value, state

    def update(self, value, state, generator):
        self._at("update")
        return value, state

    def disclose(self, sent, plan=None, before=None):
        self._at("disclose")
        return super().disclose(sent, plan, before)

    def acts(self, moment):
        self._at("acts")
        return super().acts(moment)

    def settled(self, first):
        self._at("settled")
        return True

    def promises(self, plan, rounds, delta):
        self._at("promises")
        return


@each_end
@pytest.mark.parametrize("moment", ["init", "model", "batch", "gradient", "update", "disclose", "acts"])
def test_defenses_of_audits(moment, end):
    with pytest.raises(InputError, match=f"(Guarding|defense).*{ENDED}"):
        audit(
            "MLP((4,))",
            some_images(8),
            attacks=["iDLG(steps=2)"],
            defenses=[Guarding(moment, end)],
            victims=Victims(images=2),
        )


@pytest.mark.slow
@each_end
@pytest.mark.parametrize("moment", ["init", "model", "batch", "gradient", "update"])
def test_defenses_of_trainings(moment, end):
    with pytest.raises(InputError, match=ENDED):
        train(
            "MLP((4,))",
            some_images(16),
            defense=Guarding(moment, end),
            plan=Plan(batch_size=2),
            cohort=Cohort(clients=2),
            schedule=Schedule(rounds=1),
        )


def test_a_promise_that_ends_the_program_is_no_epsilon():
    result = train(
        "MLP((4,))",
        some_images(16),
        defense=Guarding("promises"),
        plan=Plan(),
        cohort=Cohort(clients=2),
        schedule=Schedule(rounds=1),
    )
    assert result.rows[-1].epsilon is None


class NoNetwork(Defense):
    def model(self, value, state, generator):
        return None, state

    def __repr__(self):
        return "NoNetwork()"


@dataclass(frozen=True, repr=False)
class NoModel(Ending):
    def prepare(self, model):
        return None


@pytest.mark.slow
def test_a_part_that_returns_no_network():
    message = "it returned a NoneType in place of the network, not a torch.nn.Module"
    with pytest.raises(InputError, match=rf"^NoNetwork\(\): {message}"):
        audit("MLP((4,))", some_images(8), attacks=["iDLG(steps=2)"], defenses=[NoNetwork()], victims=Victims(images=2))
    with pytest.raises(InputError, match=rf"^NoModel\(\): {message}"):
        audit(
            "MLP((4,))", some_images(8), attacks=[NoModel()], threat=ThreatModel(("active",)), victims=Victims(images=2)
        )


class Net(nn.Module):
    def __init__(self, moment="", end="exit", passes=0):
        super().__init__()
        self.fc, self.moment, self.end, self.passes = nn.Linear(256, 2), moment, end, passes

    def forward(self, x):
        self.passes -= 1
        if self.moment == "forward" and self.passes < 0:
            ENDS[self.end]()
        return self.fc(x.flatten(1))

    def train(self, mode=True):
        if getattr(self, "moment", "") == "train":
            ENDS[self.end]()
        return super().train(mode)

    def extra_repr(self):
        if self.moment == "repr":
            ENDS[self.end]()
        return ""

    def state_dict(self, *args, **kwargs):
        if self.moment == "state_dict":
            ENDS[self.end]()
        return super().state_dict(*args, **kwargs)


@pytest.mark.slow
@each_end
@pytest.mark.parametrize("moment", ["forward", "train", "repr"])
def test_networks(moment, end):
    options = {"rounds": 1, "clients": 2, "plan": Plan("FedAvg", batch_size=2)}
    for command in (
        lambda: check_model(Net(moment, end), (1, 16, 16)),
        lambda: audit(Net(moment, end), some_images(8), attacks=["iDLG(steps=2)"], victims=Victims(images=2)),
        lambda: flat(train, Net(moment, end), some_images(16), **options),
    ):
        with pytest.raises(InputError, match=ENDED):
            command()


def test_a_hook_that_ends_the_program():
    network = Net()
    network.fc.register_forward_hook(lambda *_: sys.exit(0))
    with pytest.raises(InputError, match=ENDED):
        audit(network, some_images(8), attacks=["iDLG(steps=2)"], victims=Victims(images=2))


class Own(Model):
    def build(self, image_shape, num_classes, seed):
        sys.exit(0)


@dataclass(frozen=True, repr=False)
class Source(DataSource):
    def load(self):
        sys.exit(0)


@dataclass(frozen=True, repr=False)
class Nothing(DataSource):
    def load(self):
        return None


@dataclass(frozen=True, repr=False)
class Dealing(IID):
    def deal(self, data, generator):
        sys.exit(0)


def test_models_sources_and_partitions():
    with pytest.raises(InputError, match=f"Own cannot be built: {ENDED}"):
        audit(Own(), some_images(8), attacks=["iDLG(steps=2)"], victims=Victims(images=2))
    with pytest.raises(InputError, match=f"the images cannot be read: {ENDED}"):
        audit("MLP((4,))", Source(), attacks=["iDLG(steps=2)"], victims=Victims(images=2))
    with pytest.raises(InputError, match=r"Nothing\(\): load\(\) returned a NoneType, not LabelledImages"):
        audit("MLP((4,))", Nothing(), attacks=["iDLG(steps=2)"], victims=Victims(images=2))
    for command in (
        lambda: audit(
            "MLP((4,))", some_images(8), attacks=["iDLG(steps=2)"], victims=Victims(images=2, partition=Dealing())
        ),
        lambda: train(
            "MLP((4,))", some_images(16), plan=Plan(), cohort=Cohort(partition=Dealing()), schedule=Schedule(rounds=1)
        ),
    ):
        with pytest.raises(InputError, match=f"the images cannot be distributed among clients: {ENDED}"):
            command()


FILE = """
import sys
from dataclasses import dataclass
from torch import nn
from medpfl import Attack, Defense
{}

def make(num_classes):
    sys.exit(0)

class Network(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.fc = nn.Linear(256, num_classes)
    def forward(self, x):
        sys.exit(0)

@dataclass(frozen=True, repr=False)
class Mine(Attack):
    def __post_init__(self):
        sys.exit(0)

@dataclass(frozen=True, repr=False)
class Ours(Defense):
    def __repr__(self):
        sys.exit(0)
"""
SIZE = ["--size", "16", "--channels", "1"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["check-model", "{}:make", *SIZE],
        ["check-model", "{}:Network", *SIZE],
        ["audit", "samples", "--model", "{}:make", *SIZE],
        ["audit", "samples", "--attack", "{}:Mine", *SIZE],
        ["audit", "samples", "--defense", "{}:Ours", *SIZE],
        ["train", "samples", "--model", "{}:Network", *SIZE],
        ["train", "samples", "--defense", "{}:Ours", *SIZE],
        ["frontier", "samples", "--model", "{}:make", "--defense", "TopK(keep=lin(0.2, 0.4, 2))", *SIZE],
    ],
    ids=lambda words: f"{words[0]} {next(w for w in words if '{}' in w)[3:]}",
)
@pytest.mark.parametrize("line", ["", "sys.exit(0)"], ids=["called", "imported"])
def test_the_command_line_never_ends_with_0(capsys, tmp_path, words, line):
    (tmp_path / "ending.py").write_text(FILE.format(line))
    out = ["--out", str(tmp_path / "out")] if words[0] == "frontier" else []
    assert cli.main([word.format(tmp_path / "ending.py") for word in words] + out) == 2
    assert "it ended the program (SystemExit: 0)" in capsys.readouterr().err


def test_code_that_ends_the_program_where_nobody_expects_it(capsys, monkeypatch):
    monkeypatch.setitem(commands.RUN, "demo", lambda *_: sys.exit(0))
    assert cli.main(["demo"]) == 2
    assert "code called by the experiment ended the program (SystemExit: 0)" in capsys.readouterr().err
    assert cli.main(["--version"]) == 0
