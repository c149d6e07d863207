"""Leakage over a training's rounds, from made-up cells."""

from __future__ import annotations

import pytest
from rich.console import Console

from medpfl.core.verdicts import INCONCLUSIVE, LEAKS, NO_LEAK
from medpfl.reporting.leakage import RoundCell, _values, leakage_figure, leakage_table
from medpfl.reporting.leakage import sentence as sentence_of
from tests.reporting.made_up import LAPLACE, full, united

MODEL = {"balanced_accuracy": 0.8}
LONG = "GradientMatching(objective='cosine', restarts=4, steps=2000)"


def rounds(cells):
    whole = united(cells, by=("round", "defense"))
    return [RoundCell(one["round"], one["balanced_accuracy"], made) for one, made in zip(cells, whole, strict=True)]


def pairs(attack="iDLG()"):
    """Return a naive and an adaptive cell for each of two rounds; in round 0 their difference is unknown."""
    cells = []
    for number in (0, 5):
        cells.append({**MODEL, "round": number, **full(attack=attack, defense=LAPLACE, ssim=0.1, knows_defense=False)})
        more = {"false_security_ssim": 0.8 if number else None}
        cells.append(
            {**MODEL, "round": number, **full(attack=attack, defense=LAPLACE, ssim=0.9, knows_defense=True, **more)}
        )
    return cells


def test_naive_and_adaptive_attacks_are_lines_of_their_own():
    figure = leakage_figure(rounds(pairs()))
    assert "iDLG, naive, LaplaceNoise(scale=0.01): round 0: 0.10, round 5: 0.10" in figure
    assert "iDLG, adaptive, LaplaceNoise(scale=0.01): round 0: 0.90, round 5: 0.90" in figure


def test_the_accuracy_of_the_model_is_a_line_and_no_line_leaves_the_axes(monkeypatch):
    kept = []
    monkeypatch.setattr("medpfl.reporting.leakage.inline", lambda figure, *_: kept.append(figure) or "")
    cells = [cell | {"balanced_accuracy": 0.5 + cell["round"] / 10} for cell in pairs()]
    leakage_figure(rounds(cells), "asr")
    leakage_figure(rounds(at_rounds(0, 5)))
    accuracy = next(line for line in kept[0].axes[0].lines if line.get_label() == "balanced accuracy of the model")
    assert list(accuracy.get_ydata()) == [0.5, 1.0]
    assert all(figure.axes[0].get_ylim() == (0, 1.02) for figure in kept)
    for figure in kept:
        figure.canvas.draw()
        top = figure.axes[0].get_legend().get_window_extent().y1
        assert top <= figure.bbox.y1, "the legend is within the picture"
        assert figure.bbox.y1 - top < 0.15 * figure.dpi, "with no blank space above it"


def at_rounds(*numbers):
    return [at(number, NO_LEAK) | {"balanced_accuracy": None} for number in numbers]


def test_the_table_says_what_was_attacked_and_what_a_guess_without_the_update_scores():
    console = Console(width=200, record=True)
    console.print(leakage_table(rounds([at(5, LEAKS, read=9)])))
    text = console.export_text()
    assert "80 %" in text
    assert " 24 " in text
    assert list(_values(rounds([at(5, LEAKS, read=9)])[0])[6]) == ["0.91", "0.51 without the update"]


def test_a_narrow_terminal_cuts_nothing():
    console = Console(width=80, record=True)
    console.print(leakage_table(rounds([at(5, LEAKS, read=9), at(20, NO_LEAK)])))
    text = console.export_text()
    assert "\u2026" not in text
    assert "Re-identified" in text
    assert " ASR " in text


def test_long_names_still_tell_them_apart():
    spoken = leakage_figure(rounds(pairs(LONG)))
    assert ", naive, " in spoken
    assert ", adaptive, " in spoken


def test_the_table_names_them():
    console = Console(width=200, record=True)
    console.print(leakage_table(rounds(pairs())))
    text = console.export_text()
    assert text.count("iDLG, naive") == 2
    assert text.count("iDLG, adaptive") == 1


def sentence(cells):
    return sentence_of(rounds(cells))


def at(number, verdict, read=19, flags=(), **more):
    return {**MODEL, "round": number, **full(read=read, verdict=verdict, flags=list(flags), **more)}


def test_the_largest_leak_is_one_by_verdict():
    cells = [at(0, INCONCLUSIVE, read=24), at(1, LEAKS, read=3), at(2, LEAKS, read=9), at(3, NO_LEAK, read=0)]
    assert "Among the models of rounds 0, 1, 2, 3, that of round 2 leaks most: 38 % of 24 images" in sentence(cells)


def test_rounds_that_leak_alike_are_all_named():
    said = sentence([at(0, LEAKS, read=9), at(1, LEAKS, read=9), at(5, LEAKS, read=3)])
    assert "those of rounds 0, 1 leak most, equally: 38 % of 24 images" in said
    other = sentence([at(0, LEAKS, read=9), at(1, LEAKS, read=9, attack="DLG()")])
    assert "that of round 0 leaks most: 38 % of 24 images" in other, "one attack is named"


def test_the_leak_says_which_attacker():
    naive = at(0, LEAKS, read=9, knows_defense=False)
    assert "by iDLG, naive with no defense" in sentence([naive])


@pytest.mark.parametrize("read", [0, 24])
def test_an_inconclusive_audit_names_its_flags_and_no_leak(read):
    cells = [at(0, NO_LEAK, read=0), at(1, INCONCLUSIVE, read=read, flags=["control-failed"])]
    said = sentence(cells)
    assert "inconclusive for round 1: this attack fails" in said
    assert "(flags: control-failed)" in said
    assert "leaks most" not in said


def test_a_failed_attack_is_not_safety():
    said = sentence([at(0, NO_LEAK, read=0), at(0, INCONCLUSIVE, read=0, attack="DLG()"), at(1, NO_LEAK, read=0)])
    assert "no leak was found by these attacks. This does not mean that they are safe" in said
    assert "Nothing was audited" in sentence([])
