"""An honest attack finds the same in a process of its own, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from medpfl import Plan, ThreatModel
from tests.isolation.isolated_cases import HONEST, audited, file_of, plain

DEFENSE = """
from medpfl import Channel, Defense

@dataclass(frozen=True, repr=False)
class Halved(Defense):
    by: float = 2.0
    def update(self, value, state, generator):
        return value.replace({k: t / self.by for k, t in value.tensors.items()}), state
    def disclose(self, sent, plan=None, before=None):
        return (before or Channel()).then(lambda raw: {k: t / self.by for k, t in raw.items()}, gain=1 / self.by)
"""

MODEL = """
from torch import nn

def make(num_classes, width=4):
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.Sigmoid(), nn.Dropout(0.2), nn.Flatten(),
                         nn.Linear(width * 14 * 14, num_classes))
"""

SERVER = """
@dataclass(frozen=True, repr=False)
class Active(Attack):
    def prepare(self, model):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.5)
        return model
    def __call__(self, seen, generator):
        return iDLG(steps=3)(seen, generator)
"""

NORM = """
@dataclass(frozen=True, repr=False)
class Norm(Attack):
    def __call__(self, seen, generator):
        tensors = seen.views[0].update.tensors.values()
        size = sum(t.flatten(1).square().sum(1) for t in tensors).sqrt()
        told = tuple(f"<{float(one):.3f}>" for one in size)
        return answer(seen, loss=size, certificates=told, found_by=told, unread=told)
"""

FEDAVG = Plan("FedAvg", batch_size=1, local_images=2, epochs=2)
ALL = ThreatModel(("labels", "order", "masks", "auxiliary"))
SCENES = {
    "no defense": {},
    "disclosed noise": {"defenses": ["GaussianNoise(scale=0.01)"]},
    "pruning": {"defenses": ["TopK(keep=0.3)"]},
    "PRECODE": {"defenses": ["PRECODE(width=8)"]},
    "secure aggregation": {"defenses": ["SecAggPlus()"], "clients": 2, "images": 4},
    "FedAvg with grants": {"plan": FEDAVG, "threat": ALL, "images": 4},
    "iterates": {"iterates": True},
    "own model and defense": {
        "model": "{folder}/model.py:make(width=3)",
        "defenses": ["{folder}/defense.py:Halved(by=4.0) | TopK(keep=0.5)"],
        "threat": ALL,
        "plan": Plan(batch_size=2),
        "images": 4,
    },
    "certificates": {"attack": "Norm"},
    "active server": {"attack": "Active", "threat": ThreatModel(("active",))},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    file_of(tmp_path, "honest", HONEST, SERVER, NORM)
    file_of(tmp_path, "defense", DEFENSE)
    file_of(tmp_path, "model", MODEL)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("scene", SCENES.values(), ids=SCENES.keys())
def test_rows_are_equal_with_and_without_isolation(folder, shared, scene):
    options = {**scene}
    attack = f"{folder}/honest.py:{options.pop('attack', 'Honest')}"
    for name in ("model", "defenses"):
        if name in options:
            given = options[name]
            placed = [one.format(folder=folder) for one in ([given] if isinstance(given, str) else given)]
            options[name] = placed[0] if isinstance(given, str) else placed
    apart = audited([attack], out=folder / "runs" / "apart", **options)
    here = audited([attack], out=folder / "runs" / "here", isolate=False, **options)
    assert apart.settings.isolation["in a process of their own"]
    assert not here.settings.isolation["in a process of their own"]
    assert plain(apart) == plain(here)
    assert len(apart.rows) > 2
    # And so are the identities: the same directory is continued, and nothing is played again.
    again = audited([attack], out=folder / "runs" / "apart", isolate=False, **options)
    assert again.rows == apart.rows


@pytest.mark.slow
def test_certificates_come_from_the_attack_s_process(folder, shared):
    rows = audited([f"{folder}/honest.py:Norm"], out=folder / "runs" / "a").rows
    assert [row.certificate for row in rows] == [f"<{row.loss:.3f}>" for row in rows]
    assert [(row.found_by, row.unread) for row in rows] == [(row.certificate,) * 2 for row in rows]
    assert len({row.certificate for row in rows if not row.control}) == 2


@pytest.mark.slow
def test_so_are_those_of_attacks_of_ours_under_isolate(folder, shared):
    options = {"attacks": ["DLG(steps=2)", "RGAP"], "model": "LeNet('idlg')"}
    apart = audited(out=folder / "runs" / "apart", isolate=True, **options)
    here = audited(out=folder / "runs" / "here", **options)
    assert apart.settings.isolation["in a process of their own"] == ["DLG(steps=2)", "RGAP()"]
    assert here.settings.isolation is None
    assert plain(apart) == plain(here)


@pytest.mark.slow
def test_what_a_defense_of_the_user_s_own_is_told_of_reaches_the_attack(folder, shared):
    """With the channel, the attack sees the original update; without it, half the update."""
    report = audited([f"{folder}/honest.py:Norm"], defenses=[f"{folder}/defense.py:Halved"])
    told, untold, raw = (
        [row.loss for row in report.rows if not row.control and (row.defense, row.knows_defense) == of]
        for of in (("Halved()", True), ("Halved()", False), ("NoDefense()", False))
    )
    assert told == pytest.approx(raw)
    assert told == pytest.approx([2 * loss for loss in untold])


@pytest.mark.slow
def test_an_attack_that_suits_the_model_or_refuses_it_says_so_from_its_process(folder, shared):
    from medpfl import InputError

    attack = f"{folder}/honest.py:Honest"
    report = audited([attack])
    assert any("Honest(steps=4)" in spec for spec in report.settings.not_run["suited"])
    with pytest.raises(InputError, match="this takes too long"):
        audited([f"{attack}(steps=101)"])
