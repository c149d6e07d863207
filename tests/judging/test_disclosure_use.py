"""Whether an attack uses what a defense discloses: compared with the same attack without it, if that was run."""

from __future__ import annotations

from dataclasses import replace

from medpfl.core.verdicts import INCONCLUSIVE, NO_LEAK
from medpfl.judging.summary import summarize
from tests.judging.test_summary import NOISE, rows


def test_a_failure_of_an_attack_that_made_no_use_of_the_disclosure_says_nothing():
    told, untold = rows(0, defense=NOISE), rows(0, defense=NOISE, grants=("labels",))
    judged = summarize([*rows(15), *told, *untold])[1:]
    assert {(cell.verdict, cell.union.verdict) for cell in judged} == {(INCONCLUSIVE, INCONCLUSIVE)}
    assert [set(cell.flags) & {"disclosure-unused", "naive-attack"} for cell in judged] == [
        {"disclosure-unused"},
        {"naive-attack"},
    ]
    moved = replace(untold[0], scores={**untold[0].scores, "ssim": 0.11})
    judged = summarize([*rows(15), *told, moved, *untold[1:]])[1:]
    assert judged[0].union.verdict == NO_LEAK, "one guess is another, so the attack uses what it was told"
    assert judged[0].flags == ("prior-only",)
    (lone,) = (cell for cell in summarize([*rows(15), *told]) if cell.defense == NOISE)
    assert (lone.verdict, lone.flags) == (NO_LEAK, ("prior-only", "disclosure-unchecked")), "nothing to compare with"
