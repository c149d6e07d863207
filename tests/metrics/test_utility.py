"""Classifier scores against torchmetrics, and against their definitions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import binary_auroc, multiclass_accuracy, multiclass_auroc

from medpfl.metrics.utility import auroc, balanced_accuracy, cross_entropy, utility


def scene(count: int, classes: int, seed: int, steps: int = 4):
    """Return logits with many ties, and labels in which every class occurs."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.arange(classes), torch.randint(classes, (count,), generator=generator)])
    logits = torch.randint(steps, (len(labels), classes), generator=generator) / steps
    return logits, labels


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 60), st.integers(2, 5), st.integers(0, 10**6))
def test_scores_are_those_of_torchmetrics(count, classes, seed):
    logits, labels = scene(count, classes, seed)
    scores = utility(logits, labels)
    kinds = {"accuracy": "micro", "balanced_accuracy": "macro"}
    for name, average in kinds.items():
        reference = multiclass_accuracy(logits.argmax(1), labels, classes, average)
        assert scores[name] == pytest.approx(float(reference), abs=1e-6)
    shares = logits.double().softmax(1)
    reference = binary_auroc(shares[:, 1], labels) if classes == 2 else multiclass_auroc(shares, labels, classes)
    assert scores["auroc"] == pytest.approx(float(reference), abs=1e-6)
    assert scores["loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), abs=1e-5)
    assert scores["images"] == len(labels)
    for name in kinds:
        assert 0 <= scores[f"{name}_low"] <= scores[name] <= scores[f"{name}_high"] <= 1


def test_the_commonest_class_is_not_enough():
    labels = torch.tensor([1] * 9 + [0])
    logits = torch.tensor([[0.0, 1.0]]).repeat(10, 1)
    scores = utility(logits, labels)
    assert (scores["accuracy"], scores["balanced_accuracy"], scores["auroc"]) == (0.9, 0.5, 0.5)


def test_one_class_has_no_auroc_and_the_rest_of_the_scores():
    scores = utility(torch.eye(2)[[0, 0, 1]], torch.zeros(3, dtype=torch.long))
    assert scores["auroc"] is None
    assert scores["accuracy"] == scores["balanced_accuracy"] == pytest.approx(2 / 3)


def test_classes_without_images_are_left_out():
    logits, labels = scene(30, 3, 0)
    wide = torch.cat([logits, torch.full((len(labels), 1), -50.0)], 1)
    assert auroc(wide, labels) == pytest.approx(auroc(logits, labels))
    assert balanced_accuracy(wide, labels) == balanced_accuracy(logits, labels)


def test_what_is_not_a_number_has_no_auroc():
    assert auroc(torch.tensor([[0.0, float("nan")], [0.0, 1.0]]), torch.tensor([0, 1])) is None


def test_images_of_one_patient_count_as_a_cluster():
    logits, labels = scene(60, 2, 1)
    order = labels.argsort()
    alone = utility(logits[order], labels[order])
    together = utility(logits[order], labels[order], [i // 8 for i in range(len(labels))])
    width = {name: s["accuracy_high"] - s["accuracy_low"] for name, s in (("alone", alone), ("together", together))}
    assert alone["accuracy"] == together["accuracy"]
    assert width["alone"] != width["together"]


@pytest.mark.slow
def test_the_interval_of_balanced_accuracy_covers():
    """At least 95 times in 100, with known recalls: 0.9 in a large class, 0.6 in a small one."""
    generator, hits = torch.Generator().manual_seed(0), 0
    labels = torch.tensor([0] * 20 + [1] * 80)
    chance = torch.where(labels == 0, 0.6, 0.9)
    for _ in range(200):
        right = torch.rand(100, generator=generator) < chance
        scores = utility(torch.nn.functional.one_hot(torch.where(right, labels, 1 - labels), 2).double(), labels)
        hits += scores["balanced_accuracy_low"] <= 0.75 <= scores["balanced_accuracy_high"]
    assert hits >= 190


def test_cross_entropy_is_in_nats():
    assert cross_entropy(torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])) == pytest.approx(1.0986, abs=1e-4)
