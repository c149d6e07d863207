"""A training round's model and a recorded update reach an isolated attack as weights and settings."""

from __future__ import annotations

import pytest
import torch

from medpfl import Batch, Cohort, Plan, Record, Run, Schedule, Weights, audit_record, train
from medpfl.defenses import TopK
from medpfl.federated.client import client_round
from medpfl.federated.ready import prepare
from medpfl.models import LeNet
from tests.flat import flat
from tests.isolation.isolated_cases import HONEST, audited, file_of, plain, some_images


@pytest.mark.slow
def test_a_checkpoint(tmp_path, shared):
    attack, place = f"{file_of(tmp_path, 'honest', HONEST)}:Honest", tmp_path / "training"
    train(
        "MLP((4,))",
        some_images(12),
        defense="PRECODE(width=4)",
        cohort=Cohort(size=16),
        schedule=Schedule(rounds=1),
        run=Run(out=place),
    )
    options = {"model": str(place / "round-1")}
    apart = audited([attack], out=tmp_path / "runs" / "apart", **options)
    here = audited([attack], out=tmp_path / "runs" / "here", isolate=False, **options)
    assert apart.settings.isolation["in a process of their own"]
    assert plain(apart) == plain(here)


@pytest.mark.slow
def test_a_record(tmp_path, shared):
    attack = f"{file_of(tmp_path, 'honest', HONEST)}:Honest"
    plan, images = Plan(), some_images(1)
    model = LeNet("idlg").build((1, 16, 16), 2, 5)
    weights, batch = Weights.of(model), Batch(images.images, images.labels)
    played = client_round(prepare(model, plan), weights, batch, plan, TopK(0.9), {}, torch.Generator().manual_seed(0))
    Record(played.sent, plan, weights, (1, 16, 16), None, "TopK(keep=0.9)").save(tmp_path / "one.safetensors")
    given = {"record": str(tmp_path / "one.safetensors"), "truth": images, "model": "LeNet('idlg')"}
    apart = flat(audit_record, attacks=[attack], out=tmp_path / "runs" / "apart", **given)
    here = flat(audit_record, attacks=[attack], out=tmp_path / "runs" / "here", isolate=False, **given)
    assert apart.settings.isolation["in a process of their own"]
    assert plain(apart) == plain(here)
    assert {row.knows_defense for row in apart.rows if row.defense == "Recorded()"} == {False, True}
