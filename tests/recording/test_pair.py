"""Records before and after a client's filters."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from medpfl.cli import main
from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.records.record import Record
from medpfl.core.types import Update, Weights
from medpfl.defenses import Clipping, GaussianNoise, LaplaceNoise, TopK
from medpfl.recording.pair import compared_records


def record():
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (50, 60), "b": (40,)}
    weights = Weights({n: torch.randn(s, generator=generator) for n, s in shapes.items()}, {"mean": torch.zeros(3)})
    update = Update(
        {n: torch.randn(s, generator=generator) for n, s in shapes.items()}, "difference", {"mean": torch.ones(3)}
    )
    return Record(update, Plan("FedAvg", 4, 18), weights)


def after(defense, raw):
    made, _ = defense.update(raw.update, defense.init(), torch.Generator().manual_seed(1))
    return dataclasses.replace(raw, update=made)


def test_nothing_changed():
    raw = record()
    pair = compared_records(raw, raw)
    assert (pair.change, pair.sent, pair.noise, pair.buffers) == (0, 1, 0, ())
    assert pair.cosine == pytest.approx(1)
    assert list(pair.lines()) == ["the filters left the update as it was"]


def test_clipping_scales_and_leaves_no_rest():
    raw = record()
    pair = compared_records(raw, after(Clipping(1.0), raw))
    assert pair.scale == pytest.approx(1 / float(raw.update.norm()), rel=1e-4)
    assert pair.cosine == pytest.approx(1)
    assert (pair.noise, pair.law, pair.sent) == (0, "", 1)


@pytest.mark.parametrize(("defense", "law"), [(GaussianNoise(0.3), "normal"), (LaplaceNoise(0.3), "Laplace")])
def test_noise_is_named_with_its_size(defense, law):
    raw = record()
    pair = compared_records(raw, after(defense, raw))
    spread = 0.3 if law == "normal" else 0.3 * 2**0.5
    assert pair.law == law
    assert pair.noise == pytest.approx(spread, rel=0.05)
    told = {"normal": "it is normally distributed", "Laplace": "it is Laplace-distributed"}[law]
    assert told in " ".join(pair.lines())


def test_sparse_updates():
    raw = record()
    pair = compared_records(raw, after(TopK(0.1), raw))
    assert pair.sent == pytest.approx(0.1, abs=1e-3)
    assert pair.scale == pytest.approx(1)
    assert pair.noise == 0
    assert "10.0% of the coordinates were sent" in " ".join(pair.lines())


def test_changed_buffers_are_named():
    raw = record()
    sent = dataclasses.replace(raw, update=dataclasses.replace(raw.update, buffers={"mean": torch.zeros(3)}))
    assert compared_records(raw, sent).buffers == ("mean",)


def test_records_of_other_updates_are_refused():
    raw = record()
    moved = Weights({n: t + 1 for n, t in raw.weights.parameters.items()}, raw.weights.buffers)
    with pytest.raises(InputError, match="start from other weights"):
        compared_records(raw, dataclasses.replace(raw, weights=moved))
    less = Weights({"a": raw.weights.parameters["a"]}, {})
    with pytest.raises(InputError, match="other names or shapes"):
        compared_records(raw, dataclasses.replace(raw, weights=less))
    with pytest.raises(InputError, match="a gradient"):
        compared_records(raw, dataclasses.replace(raw, update=dataclasses.replace(raw.update, kind="gradient")))


def test_inspect_shows_what_the_filters_changed(tmp_path, capsys):
    raw = record()
    for name, one in (("raw", raw), ("sent", after(TopK(0.1), raw))):
        one.save(tmp_path / f"{name}.safetensors")
    assert main(["inspect", str(tmp_path / "sent.safetensors"), "--raw", str(tmp_path / "raw.safetensors")]) == 0
    assert "10.0% of the coordinates were sent" in " ".join(capsys.readouterr().out.split())
