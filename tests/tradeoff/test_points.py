"""A setting as a point: the strongest attack for each score, and accuracy over seeds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from scipy import stats

from medpfl.core.rounds import Epsilons, Round
from medpfl.core.verdicts import INCONCLUSIVE, LEAKS, NO_LEAK, UNDEFENDED
from medpfl.judging.types import Cell, Rate, Union
from medpfl.tradeoff.points import points_of


def cell(attack: str, defense: str, asr: float | None, ssim: float = 0.0, knows: bool = False, **more: Any) -> Cell:
    def rate(value: float | None) -> Rate:
        return Rate() if value is None else Rate(value, value - 0.1, value + 0.1)

    rates: dict[str, Any] = {"asr": rate(asr), "ssim": rate(ssim), "identified": rate(asr)}
    kept: dict[str, Any] = {"verdict": NO_LEAK, "label_verdict": NO_LEAK, **rates, **more}
    return Cell(attack=attack, defense=defense, knows_defense=knows, images=4, **kept)


def rounds(accuracy: float, epsilon: Epsilons | None = None, auroc: float | None = 0.9) -> list[Round]:
    scores: dict[str, Any] = {
        "balanced_accuracy": accuracy, "balanced_accuracy_low": accuracy - 0.2,
        "balanced_accuracy_high": accuracy + 0.05, "auroc": auroc,
    }  # fmt: skip
    bad = {**scores, "balanced_accuracy": 0.0}
    fixed = {"clients": (0,), "images": 1, "update_norm": 0.0, "sent_norm": 0.0, "bytes_sent": 0, "delta": 1e-4}
    kept: Any = {**fixed, "seed": 0, "device": "cpu", "versions": {}, "seconds": 0.0, "date": ""}
    return [
        Round(round=i, scores={"validation": bad, "test": own}, epsilon=epsilon, **kept)
        for i, own in enumerate((bad, scores))
    ]


def image(epsilon: float) -> Epsilons:
    return (("image", epsilon),)


def united(cells: list[Cell]) -> list[Cell]:
    """Return the cells, with the union over the attacks on each defense."""
    found = []
    for one in cells:
        own = [c for c in cells if c.defense == one.defense]
        top = max((c.asr.value for c in own if c.asr.value is not None), default=0.0)
        union = Union(
            verdict=own[0].verdict, updates_needed=17, flags=("too-few",), asr_excess=top + 0.3,
            identified=Rate(top, top - 0.1, top + 0.1), identified_floor=0.05, identified_excess=top + 0.2,
        )  # fmt: skip
        found.append(replace(one, union=union))
    return found


CELLS = united(
    [
        cell("A()", UNDEFENDED, 0.9, verdict=LEAKS, flags=("x",)),
        cell("B()", UNDEFENDED, 0.2, 0.95),
        cell("A()", "D()", 0.0, 0.3, label_verdict=LEAKS),
        cell("A()", "D()", 0.25, 0.2, knows=True, flags=("y",), verdict=INCONCLUSIVE),
        cell("B()", "D()", 0.1, 0.1),
    ]
)


def test_of_each_score_the_strongest_attack_counts():
    audits = {UNDEFENDED: CELLS, "D()": CELLS}
    bare, defended = points_of(audits, {UNDEFENDED: [rounds(0.9)], "D()": [rounds(0.7)]}, "test")
    assert (defended["asr"], defended["asr_low"], defended["asr_high"]) == (0.25, 0.15, 0.35)
    assert (bare["label_verdict"], defended["label_verdict"]) == (NO_LEAK, LEAKS)
    assert (defended["asr_attack"], defended["asr_knows_defense"]) == ("A()", True)
    assert (defended["ssim"], defended["ssim_attack"], defended["ssim_knows_defense"]) == (0.3, "A()", False)
    assert (bare["asr"], bare["ssim"], bare["ssim_attack"]) == (0.9, 0.95, "B()")
    assert defended["asr_control"] == bare["asr_low"] == pytest.approx(0.8)
    assert (bare["verdict"], defended["verdict"]) == (LEAKS, NO_LEAK)
    assert bare["control_works"]
    assert defended["control_works"]
    assert (bare["flags"], defended["flags"]) == (["too-few", "x"], ["too-few", "y"])
    assert (bare["loss"], defended["loss"]) == (0.0, pytest.approx(0.2))


def test_ends_are_of_all_attacks_together():
    found = points_of({"D()": CELLS}, {"D()": [rounds(0.7)]}, "test")[0]
    assert (found["asr_high"], found["asr_end"]) == (0.35, 0.55)
    assert (found["identified_end"], found["updates_needed"]) == (0.35, 17)
    assert (found["recognized"], found["recognized_end"]) == (pytest.approx(0.2), pytest.approx(0.45))
    assert found["recognized_control"] == pytest.approx(0.75)


def test_a_control_that_leaks_nothing_does_not_work():
    weak = united([cell("A()", UNDEFENDED, 0.0, verdict=INCONCLUSIVE), cell("A()", "D()", 0.0, verdict=LEAKS)])
    assert not points_of({"D()": weak}, {"D()": [rounds(0.7)]}, "test")[0]["control_works"]


def test_accuracy_of_one_training_has_the_interval_of_its_images():
    found = points_of({"D()": CELLS}, {"D()": [rounds(0.7, epsilon=image(3.0))]}, "test")[0]
    assert (found["accuracy"], found["interval"], found["accuracies"]) == (0.7, "images", [0.7])
    assert (found["accuracy_low"], found["accuracy_high"]) == (pytest.approx(0.5), pytest.approx(0.75))
    assert (found["epsilon"], found["delta"], found["auroc"]) == (image(3.0), 1e-4, 0.9)


def test_accuracy_over_seeds_has_students_interval():
    values = [0.7, 0.8, 0.75]
    found = points_of(
        {"D()": CELLS},
        {"D()": [rounds(v, e) for v, e in zip(values, map(image, (1.0, 3.0, 2.0)), strict=True)]},
        "test",
    )[0]
    low, high = stats.t.interval(0.95, 2, 0.75, stats.sem(values))
    assert found["accuracy"] == pytest.approx(0.75)
    assert (found["accuracy_low"], found["accuracy_high"]) == (pytest.approx(low), pytest.approx(high))
    assert (found["interval"], found["epsilon"]) == ("seeds", image(3.0))
    wide = points_of({"D()": CELLS}, {"D()": [rounds(0.1), rounds(1.0)]}, "test")[0]
    assert (wide["accuracy_low"], wide["accuracy_high"]) == (0.0, 1.0)


def test_the_largest_epsilon_of_each_privacy_unit_is_stated():
    seeds = [rounds(0.7, (("image", 3.0), ("client", 1.0))), rounds(0.7, (("image", 2.0), ("client", 4.0)))]
    found = points_of({"D()": CELLS}, {"D()": seeds}, "test")[0]
    assert found["epsilon"] == (("image", 3.0), ("client", 4.0))


def test_what_is_not_known_of_one_seed_is_not_known():
    mixed = [rounds(0.7, image(1.0), auroc=None), rounds(0.7, None)]
    found = points_of({"D()": CELLS}, {"D()": mixed}, "test")[0]
    assert (found["epsilon"], found["auroc"]) == (None, None)


def test_a_training_that_diverged_is_a_stated_gap():
    audits = {UNDEFENDED: CELLS, "D()": CELLS, "E()": []}
    trainings = {UNDEFENDED: [rounds(0.9)], "D()": [], "E()": []}
    _, audited, bare = points_of(audits, trainings, "test")
    assert (audited["accuracy"], audited["loss"], audited["gap"]) == (None, None, "the training diverged")
    assert audited["asr"] == 0.25
    assert (bare["asr"], bare["asr_end"], bare["verdict"], bare["images"]) == (None, None, INCONCLUSIVE, 0)
    assert set(audited) == set(bare) == set(points_of(audits, trainings, "test")[0])
