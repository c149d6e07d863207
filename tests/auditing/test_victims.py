"""The images behind each update."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from medpfl import InputError, Victims
from medpfl.auditing.victims import draw_victims, fitted
from medpfl.core.experiments.limits import USUAL_IMAGES
from medpfl.data.partition import IID, Dirichlet, Partition
from tests.auditing.audit_cases import some_images


def draw(data, images, per_update=1, partition: Partition | None = None, seed=0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [v.tolist() for v in draw_victims(data, images, per_update, partition or IID(), generator)]


def labels_of(data, victims) -> Counter[int]:
    return Counter(int(data.labels[i]) for victim in victims for i in victim)


@pytest.mark.parametrize("partition", [IID(), IID(clients=4), IID(clients=12), Dirichlet(alpha=0.5, clients=3)])
@pytest.mark.parametrize("per_update", [1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_even_over_classes_whatever_the_clients(partition, per_update, seed):
    data = some_images(60, classes=3)
    victims = draw(data, 12, per_update, partition, seed)
    if isinstance(partition, IID):
        assert set(labels_of(data, victims).values()) == {4}
    assert len(victims) == 12 // per_update


def test_a_rare_class_is_used_up_and_the_others_fill_in():
    data = some_images(20)
    data.labels[:] = 0
    data.labels[[3, 7]] = 1
    victims = draw(data, 10)
    assert labels_of(data, victims) == {0: 8, 1: 2}


@pytest.mark.parametrize("images", [1, 5, 12, 13, 23, 24])
@pytest.mark.parametrize("per_update", [1, 2, 5])
def test_whole_updates_and_no_image_twice(images, per_update):
    data = some_images(24, classes=3)
    if images < per_update:
        with pytest.raises(InputError, match="but one update holds"):
            draw(data, images, per_update)
        return
    victims = draw(data, images, per_update)
    flat = [i for victim in victims for i in victim]
    assert [len(v) for v in victims] == [per_update] * (images // per_update)
    assert len(set(flat)) == len(flat)
    assert set(flat) <= set(range(24))


@pytest.mark.parametrize("partition", [IID(clients=4), Dirichlet(alpha=0.3, clients=4)])
def test_an_update_is_of_one_client_and_a_patient_of_one_client(partition):
    data = some_images(40, patients=[f"p{i // 4}" for i in range(40)])
    clients = partition.deal(data, torch.Generator().manual_seed(3))
    owner = {int(i): c for c, client in enumerate(clients) for i in client}
    victims = draw(data, 18, 3, partition, seed=3)
    owners = [{owner[i] for i in victim} for victim in victims]
    assert all(len(o) == 1 for o in owners)
    assert {c for o in owners for c in o} == set(range(4)), "every client takes its turn"


def test_clients_take_turns():
    data = some_images(40)
    clients = IID(clients=4).deal(data, torch.Generator().manual_seed(0))
    owner = {int(i): c for c, client in enumerate(clients) for i in client}
    order = [owner[v[0]] for v in draw(data, 8, partition=IID(clients=4))]
    assert order[:4] == order[4:]
    assert sorted(order[:4]) == [0, 1, 2, 3]


def test_a_small_client_gives_what_it_has_and_the_others_more():
    data = some_images(10, patients=["big"] * 8 + ["small"] * 2)
    victims = draw(data, 10, 2, IID(clients=2))
    patients = [data.patients[v[0]] for v in victims]
    assert Counter(patients) == {"big": 4, "small": 1}


def test_the_seed_decides():
    data = some_images(40)
    assert draw(data, 8, 2, IID(clients=2), seed=1) == draw(data, 8, 2, IID(clients=2), seed=1)
    assert draw(data, 8, 2, IID(clients=2), seed=1) != draw(data, 8, 2, IID(clients=2), seed=2)


def test_batches_mix_classes():
    """An update's images do not all belong to the class that comes first."""
    data = some_images(40)
    mixed = [len({int(data.labels[i]) for i in v}) for v in draw(data, 40, 4)]
    assert sum(m == 2 for m in mixed) > 5


@pytest.mark.parametrize(
    ("images", "per_update", "partition", "message"),
    [
        (0, 1, IID(), "images is 0"),
        (11, 1, IID(), "--images is 11, but this data set has 10"),
        (10, 11, IID(), "an update holds 11 images, but this data set has 10"),
        (3, 4, IID(), "--images is 3, but one update holds 4"),
        (10, 5, IID(clients=4), "2 updates of 5 images were requested, but the clients have images for only 0"),
        (4, 1, IID(clients=11), "more clients"),
    ],
)
def test_what_cannot_be_drawn_is_said(images, per_update, partition, message):
    with pytest.raises(InputError, match=message):
        draw(some_images(10), images, per_update, partition)


def test_the_default_number_is_the_same_wherever_it_is_stated():
    assert f"``None``: {USUAL_IMAGES} " in Victims.__doc__
    assert fitted(Victims(), some_images(40), 1).images == USUAL_IMAGES
