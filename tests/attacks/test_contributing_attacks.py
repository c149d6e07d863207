"""The attacks in `CONTRIBUTING.md`, pasted unchanged: by path, and in three edits."""

from __future__ import annotations

import pytest
import torch

import medpfl
from benchmarks import matrix
from medpfl import InputError, Plan, attacks, cli
from medpfl.core.spec import registry
from medpfl.inputs.parts import attacks_of
from medpfl.inspection.check import check_model
from tests.attacks.attack_contract import EVERY, PLANS, taken
from tests.documents import pasted, row
from tests.flat import flat

NAMES = ("Yours", "FirstGradient")
SMALL = {"images": 2, "size": 16, "progress": False}

each = pytest.mark.parametrize("name", NAMES)


@pytest.fixture
def place(name, tmp_path):
    return pasted(name, tmp_path, attacks)


@pytest.fixture
def attack(name, place):
    (made,) = attacks_of([f"{place}:{name}"])
    return made


@pytest.mark.slow
@each
@pytest.mark.parametrize(("check", "rest"), EVERY)
def test_it_keeps_the_contract(attack, check, rest):
    check(attack, *rest)


@pytest.mark.parametrize(("name", "takes"), [("Yours", 4), ("FirstGradient", 2)])
def test_it_declares_what_it_takes(attack, takes):
    assert sum(taken(attack, plan) is not None for plan in PLANS.values()) == takes


@pytest.mark.slow
@pytest.mark.usefixtures("shared")
@each
def test_without_an_edit_it_is_audited_by_its_path(name, place):
    spec = f"{place}:{name}(steps=2)" if name == "Yours" else f"{place}:{name}"
    report = flat(medpfl.audit, "LeNet('idlg')", "samples", attacks=[spec], **SMALL)
    assert {row.attack.partition("(")[0] for row in report.rows} == {name}


@pytest.mark.slow
@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize("name", ["FirstGradient"])
def test_what_it_does_not_take_is_refused_before_any_work(name, place):
    with pytest.raises(InputError, match=r"FirstGradient.*needs the gradient of one image"):
        flat(medpfl.audit, "LeNet('idlg')", "samples", attacks=[f"{place}:{name}"], plan=Plan(batch_size=2), **SMALL)


@pytest.mark.slow
@each
def test_in_three_edits(name, attack, monkeypatch, capsys):
    """With its file and its line in `__all__`, the attack is available everywhere; its row is the one on the page."""
    kind = type(attack)
    monkeypatch.setattr(attacks, name, kind, raising=False)
    monkeypatch.setattr(attacks, "__all__", sorted([*attacks.__all__, name]))
    assert registry(attacks)[name] is kind
    shown = eval("{" + row("Yours").replace("Yours", name) + "}", {name: kind})
    assert shown == {name: attack}
    assert cli.main(["list", "attacks"]) == 0
    assert name in capsys.readouterr().out
    assert check_model("MLP((8,))", (1, 12, 12)).attacks[name] == ""
    assert list(matrix.missing(matrix.known(matrix.PAGE.read_text()))) == [name]
    spec = f"{name}(steps=2)" if hasattr(attack, "steps") else name
    rows = flat(medpfl.audit, "LeNet('idlg')", "samples", attacks=[spec], **SMALL).rows
    assert {row.attack.partition("(")[0] for row in rows} == {name}


@pytest.mark.parametrize("name", ["FirstGradient"])
def test_a_weak_attack_is_weak(attack):
    """The contract does not ask for strength."""
    from tests.attacks.attack_contract import seen_by

    images, seen = seen_by(attack, PLANS["FedSGD"])
    guess = attack(seen, torch.Generator().manual_seed(0)).guesses
    assert ((guess - images).square().flatten(1).mean(1) > 0.03).all()
