"""Clients get patients: disjoint, complete, reproducible, as similar or different as requested."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medpfl.core import spec
from medpfl.core.errors import InputError
from medpfl.data import partition
from medpfl.data.images import LabelledImages
from medpfl.data.partition import IID, Dirichlet, Partition


def images(labels: list[int], patients: list[str | None] | None = None, classes: int = 5) -> LabelledImages:
    count = len(labels)
    return LabelledImages(
        torch.zeros(count, 1, 8, 8),
        torch.tensor(labels, dtype=torch.int64),
        tuple(f"class{i}" for i in range(classes)),
        tuple(map(str, range(count))),
        tuple(patients or [None] * count),
    )


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@st.composite
def sets(draw) -> tuple[LabelledImages, int]:
    rows = draw(st.lists(st.tuples(st.integers(0, 4), st.sampled_from([None, *"abcdefgh"])), min_size=1, max_size=60))
    labels, patients = [r[0] for r in rows], [r[1] for r in rows]
    units = len({p for p in patients if p}) + patients.count(None)
    return images(labels, patients), draw(st.integers(1, min(units, 7)))


PARTITIONS = [IID, *(lambda c, a=a: Dirichlet(a, c) for a in (1e-3, 0.5, 100.0))]


@pytest.mark.slow
@given(sets(), st.sampled_from(PARTITIONS), st.integers(0, 2**40))
def test_every_image_goes_to_one_client_and_patients_stay_whole(given_set, make, seed):
    data, clients = given_set
    dealt = make(clients).deal(data, seeded(seed))
    assert len(dealt) == clients
    assert all(part.dtype == torch.int64 and len(part) and part.equal(part.sort().values) for part in dealt)
    assert sorted(torch.cat(dealt).tolist()) == list(range(len(data)))
    owners = {i: c for c, part in enumerate(dealt) for i in part.tolist()}
    for patient in {p for p in data.patients if p}:
        assert len({owners[i] for i, p in enumerate(data.patients) if p == patient}) == 1
    again = make(clients).deal(data, seeded(seed))
    assert all(a.equal(b) for a, b in zip(dealt, again, strict=True))


@pytest.mark.parametrize("part", [IID(4), Dirichlet(0.5, 4)])
def test_only_the_generator_decides(part: Partition):
    data = images([i % 5 for i in range(100)])
    state = torch.random.get_rng_state()
    first, other = part.deal(data, seeded(1)), part.deal(data, seeded(2))
    assert not all(a.equal(b) for a, b in zip(first, other, strict=True))
    assert torch.random.get_rng_state().equal(state)


@given(st.lists(st.integers(0, 4), min_size=7, max_size=100), st.integers(1, 7), st.integers(0, 999))
def test_iid_is_even_and_stratified_over_single_images(labels, clients, seed):
    dealt = IID(clients).deal(images(labels), seeded(seed))
    sizes = [len(part) for part in dealt]
    assert max(sizes) - min(sizes) <= 1
    for label in range(5):
        counts = [int((torch.tensor(labels)[part] == label).sum()) for part in dealt]
        assert max(counts) - min(counts) <= 1


@pytest.mark.slow
@given(sets(), st.integers(0, 999))
def test_iid_differs_at_most_by_the_largest_patient(given_set, seed):
    data, clients = given_set
    sizes = [len(part) for part in IID(clients).deal(data, seeded(seed))]
    known = [p for p in data.patients if p]
    assert max(sizes) - min(sizes) <= max([1, *(known.count(p) for p in known)])


def test_the_largest_patient_goes_to_anyone():
    data = images([0] * 12, ["big"] * 6 + list("abcdef"))
    homes = {next(c for c, p in enumerate(IID(3).deal(data, seeded(s))) if 0 in p) for s in range(40)}
    assert homes == {0, 1, 2}


def spread(alpha: float) -> float:
    """Return how much the clients' class mixtures differ: the mean standard deviation of a class's share."""
    data = images([i % 5 for i in range(500)])
    shares = []
    for seed in range(20):
        dealt = Dirichlet(alpha, 4).deal(data, seeded(seed))
        shares.append(torch.stack([data.labels[part].bincount(minlength=5) / 100 for part in dealt]))
    return float(torch.stack(shares).std(1, correction=0).mean())


@pytest.mark.slow
def test_alpha_has_the_spread_of_the_dirichlet_distribution():
    # A share of Dir(alpha) over K clients has the variance (K - 1) / (K^2 (K alpha + 1)).
    assert spread(100.0) == pytest.approx((3 / (16 * 401)) ** 0.5, abs=0.01)
    assert spread(1.0) == pytest.approx((3 / (16 * 5)) ** 0.5, rel=0.2)
    assert spread(0.05) > 0.35


def test_dirichlet_deals_a_patient_by_the_majority_of_its_labels():
    # With a tiny alpha a class goes to one client: all patients that are mostly 1 stay together.
    labels = [1, 1, 0, 1, 1, 2] + [0] * 6
    data = images(labels, ["a"] * 3 + ["b"] * 3 + list("cdefgh"))
    for seed in range(20):
        owners = [c for c, part in enumerate(Dirichlet(1e-6, 2).deal(data, seeded(seed))) for i in (0, 3) if i in part]
        assert owners[0] == owners[1]


@pytest.mark.parametrize("alpha", [1e-300, 1e300])
def test_extreme_alphas_deal_all(alpha):
    dealt = Dirichlet(alpha, 6).deal(images([i % 2 for i in range(20)]), seeded())
    assert sum(map(len, dealt)) == 20
    assert min(map(len, dealt)) >= 1


@pytest.mark.parametrize("make", [IID, lambda clients: Dirichlet(clients=clients)])
def test_more_clients_than_there_are(make):
    with pytest.raises(InputError, match=r"more clients \(9\) than patients \(2\): take at most 2"):
        make(9).deal(images([0] * 12, list("aaaaaabbbbbb")), seeded())
    with pytest.raises(InputError, match=r"more clients \(9\) than images \(8\)"):
        make(9).deal(images([0] * 8), seeded())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: IID(0), "clients=0"),
        (lambda: IID(2.0), "clients=2.0"),
        (lambda: IID(True), "clients=True"),
        (lambda: Dirichlet(0.5, -1), "clients=-1"),
        (lambda: Dirichlet(0), "alpha=0"),
        (lambda: Dirichlet(float("nan")), "alpha=nan"),
        (lambda: Dirichlet(float("inf")), "alpha=inf"),
        (lambda: Dirichlet("1"), "alpha='1'"),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_the_module_is_a_registry():
    known = spec.registry(partition)
    assert spec.build("Dirichlet(alpha=0.1, clients=3)", known) == Dirichlet(0.1, 3)
    assert repr(IID()) == "IID()"
