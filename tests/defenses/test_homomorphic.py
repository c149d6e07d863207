"""Homomorphic aggregation: the server adds ciphertexts it cannot read, and the sum is as exact as disclosed."""

from __future__ import annotations

import sys

import pytest
import torch

from medpfl import Victims, audit
from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.types import Update
from medpfl.defenses import GaussianNoise, HomomorphicAggregation
from medpfl.defenses.averaging import flattened
from medpfl.defenses.homomorphic import _keys


@pytest.fixture
def library():
    import tenseal

    return tenseal


def updates(samples=(2, 3, 5), size=5000, scale=0.1):
    draw = torch.Generator().manual_seed(0)

    def tensor(*shape):
        return scale * torch.randn(*shape, generator=draw, dtype=torch.float64)

    return [
        Update({"w": tensor(size), "b": tensor(3, 2)}, "difference", {"mean": tensor(2), "steps": torch.tensor(7)}, n)
        for n in samples
    ]


def mean_of(sent, scale_bits=40):
    (mean,), _ = HomomorphicAggregation(scale_bits).aggregate(sent, {}, torch.Generator())
    return mean


@pytest.mark.extra
@pytest.mark.parametrize("scale_bits", [25, 40])
def test_the_mean_is_weighted_and_its_error_is_what_is_disclosed(library, scale_bits):
    defense, sent = HomomorphicAggregation(scale_bits), updates()
    mean = mean_of(sent, scale_bits)
    truth = sum(u.num_samples * flattened(u) for u in sent) / 10
    error = flattened(mean) - truth
    alike = [Update(u.tensors, "difference", None, 2) for u in sent]
    channel = defense.disclose(mean_of(alike, scale_bits), Plan(batch_size=2))
    precision = channel.precision["w"][0] * (10 / 6) ** 2  # of the same clients with 10 samples
    assert float(error.square().mean() * precision) == pytest.approx(1, rel=0.15)
    assert (mean.num_samples, mean.kind, mean.buffers["steps"].item()) == (10, "difference", 7)
    assert [t.shape for t in mean.tensors.values()] == [(5000,), (3, 2)]


@pytest.mark.extra
def test_without_numbers_of_samples_all_count_alike(library):
    sent = [Update(u.tensors, "gradient") for u in updates()]
    mean = mean_of(sent)
    assert torch.allclose(flattened(mean), torch.stack([flattened(u) for u in sent]).mean(0), atol=1e-7)
    assert mean.num_samples is None


@pytest.mark.extra
def test_the_server_cannot_read_what_it_adds(library):
    _, clients, server = _keys(40)
    wire = library.ckks_vector(clients, [1.0, 2.0]).serialize()
    assert library.ckks_vector_from(clients, wire).decrypt() == pytest.approx([1, 2], abs=1e-6)
    assert not server.has_secret_key()
    with pytest.raises(ValueError, match="secret_key"):
        library.ckks_vector_from(server, wire).decrypt()


@pytest.mark.extra
def test_only_ciphertexts_reach_the_server(library, monkeypatch):
    """Every context that adds has no key, and only the sum of the ciphertexts is decrypted."""
    added, read = [], []
    vector = library.CKKSVector
    plus, decrypt = vector.__iadd__, vector.decrypt
    monkeypatch.setattr(vector, "__iadd__", lambda a, b: added.append(a.context().has_secret_key()) or plus(a, b))
    monkeypatch.setattr(vector, "decrypt", lambda a, *more: read.append(len(decrypt(a, *more))) or decrypt(a, *more))
    mean_of(updates())
    assert added == [False] * 4
    assert read == [4096, 5000 + 6 + 2 - 4096]


def test_noise_of_the_clients_is_averaged():
    mean = Update({"w": torch.zeros(4)}, num_samples=12)
    channel = (GaussianNoise(0.5) | HomomorphicAggregation()).disclose(mean, Plan(batch_size=3))
    assert float(1 / channel.precision["w"][0]) == pytest.approx(0.25 / 4, rel=1e-3)


@pytest.mark.extra
def test_an_audit_of_the_sum(library):
    report = audit(
        "LeNet('idlg')",
        attacks=["iDLG(steps=3)"],
        defenses=[HomomorphicAggregation()],
        victims=Victims(clients=2, images=4, size=16),
    )
    cells = [cell for cell in report.summary if cell.defense == "HomomorphicAggregation(scale_bits=40)"]
    assert [(cell.knows_defense, cell.images) for cell in cells] == [(False, 4), (True, 4)]
    assert all(cell.clusters == 2 for cell in cells)
    (assumed,) = report.settings.assumed
    assert assumed.startswith(
        "HomomorphicAggregation(scale_bits=40): we assume that the server gets the decrypted mean"
    )
    assert any("in clear, we assume" in note for note in report.settings.notes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        *((lambda v=v: HomomorphicAggregation(v), f"scale_bits is {v}") for v in (19, 51, 40.0)),
        (lambda: mean_of(updates((2,))), "two clients or more: there are 1"),
        (lambda: mean_of(updates((2, None))), r"num_samples of the clients are \[2, None\]"),
        (lambda: mean_of(updates((2, 0))), r"\[2, 0\]: each must be above 0"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.extra
@pytest.mark.parametrize("value", [float("nan"), 1e40])
def test_numbers_that_cannot_be_encrypted(library, value):
    sent = updates()
    sent[1].tensors["w"][3] = value
    with pytest.raises(InputError, match=r"cannot be encrypted \(.*\): clip it, or lower scale_bits"):
        mean_of(sent)


def test_without_tenseal_an_audit_says_what_to_install_before_any_work(monkeypatch):
    _keys.cache_clear()
    monkeypatch.setitem(sys.modules, "tenseal", None)
    with pytest.raises(InputError, match=r"needs TenSEAL: pip install 'medpfl\[he\]'"):
        audit(
            "LeNet('idlg')",
            attacks=["iDLG"],
            defenses=[HomomorphicAggregation()],
            victims=Victims(clients=2, images=40),
        )
