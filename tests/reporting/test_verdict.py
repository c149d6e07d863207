"""The two sentences, word by word, for every case that they have to tell apart."""

import pytest
from made_up import LAPLACE, cell, full

from medpfl.core.verdicts import INCONCLUSIVE, LEAKS, NO_LEAK
from medpfl.reporting import FLAGS, verdict_sentences
from medpfl.reporting.verdict import verdict_states

TOPK, SIGN, NOISE = "TopK(keep=0.1)", "Sign()", "GaussianNoise(scale=0.1)"
DASH = "\u2013"
FIRST = f"Without a defense, a curious server read back 19 of 24 images (79 %, 95 % interval 58{DASH}93 %) with iDLG."
NO_DEFENSE = "No defense was audited, so what one would hold back is not known."
DO_NOT_WORK = "these attacks do not work here even without a defense."
FAILED = "Without a defense, these attacks read back none of 24 images: they do not work here, so nothing can be said."
LEAK = cell()
SAFE = {"read": 0, "verdict": NO_LEAK}
UNSURE = {"read": 0, "verdict": INCONCLUSIVE, "flags": ["control-failed"]}
NAIVE = [("iDLG()", "naive-attack"), ("DLG()", "control-failed")]

CASES = {
    "empty": (
        [],
        {},
        "Nothing was audited: no attack has finished.",
        "So nothing can be said about these images.",
    ),
    "leaks, no defense": (
        [LEAK],
        {},
        FIRST,
        NO_DEFENSE,
    ),
    "the strongest attack is named": (
        [cell("DLG()", read=3), LEAK, cell("CPL()", read=0, verdict=NO_LEAK)],
        {},
        FIRST.replace("with iDLG", "with the strongest of these attacks (iDLG)"),
        NO_DEFENSE,
    ),
    "no leak, no defense": (
        [cell(**SAFE)],
        {},
        "Without a defense, none of 24 images was read back, which shows only that these attacks failed "
        "(at most 14 % with 95 % confidence), not that the images are safe.",
        NO_DEFENSE,
    ),
    "a few read back, but no leak": (
        [cell(read=1, verdict=NO_LEAK)],
        {},
        f"Without a defense, no more than 1 of 24 images was read back (4 %, 95 % interval "
        f"0{DASH}21 %), which shows "
        "only that these attacks failed, not that the images are safe.",
        NO_DEFENSE,
    ),
    "the defense holds": (
        [LEAK, cell(defense=LAPLACE, **SAFE)],
        {},
        FIRST,
        "With LaplaceNoise(scale=0.01) none of 24 was read back, which shows only that these attacks failed "
        "(at most 14 % with 95 % confidence), not that the defense is safe.",
    ),
    "the defense leaks": (
        [LEAK, cell(defense=LAPLACE, read=12), cell("DLG()", defense=LAPLACE, **SAFE)],
        {},
        FIRST,
        f"With LaplaceNoise(scale=0.01), a curious server still read back 12 of 24 images (50 %, 95 "
        f"% interval "
        f"29{DASH}71 %) with the strongest of these attacks (iDLG), so this defense does not "
        f"protect these images.",
    ),
    "the control failed": (
        [cell(**UNSURE), cell(defense=LAPLACE, **UNSURE)],
        {},
        FAILED,
        f"Nothing can be said about the defense LaplaceNoise(scale=0.01): {DO_NOT_WORK}",
    ),
    "attacks that did not know the defense": (
        [LEAK, cell("DLG()", **UNSURE), *(cell(a, LAPLACE, read=0, verdict=INCONCLUSIVE, flags=[f]) for a, f in NAIVE)],
        {},
        FIRST.replace("with iDLG", "with the strongest of these attacks (iDLG)"),
        "Nothing can be said about the defense LaplaceNoise(scale=0.01): these attacks were not told of the defense "
        "that they failed against.",
    ),
    "no better than the prior": (
        [cell(read=5, verdict=INCONCLUSIVE, flags=["prior-only"])],
        {},
        "Without a defense, nothing can be said: a guess made without the update does as well as these attacks.",
        NO_DEFENSE,
    ),
    "no update": (
        [{"attack": "DLG()", "defense": "NoDefense()", "images": 0, "asr": None, "flags": ["zero-gradient"]}],
        {},
        "Without a defense, nothing can be said: the update of every image is exactly zero.",
        NO_DEFENSE,
    ),
    "no image": (
        [{"attack": "DLG()", "defense": "NoDefense()", "images": 0, "verdict": INCONCLUSIVE}],
        {},
        "Without a defense, nothing can be said: no image was scored.",
        NO_DEFENSE,
    ),
    "inconclusive without a flag": (
        [cell(read=2, verdict=INCONCLUSIVE)],
        {},
        "Without a defense, nothing can be said: what was measured is too little to tell a leak from a failed attack.",
        NO_DEFENSE,
    ),
    "a control that is only known by its rate": (
        [cell(defense=LAPLACE, control_asr=0.79, **SAFE)],
        {},
        "Without a defense, iDLG reads back 79 % of the images.",
        "With LaplaceNoise(scale=0.01) none of 24 was read back, which shows only that these attacks failed "
        "(at most 14 % with 95 % confidence), not that the defense is safe.",
    ),
    "no control at all": (
        [cell(defense=LAPLACE, read=24)],
        {},
        "No attack was run without a defense, so whether these attacks work here at all is not known.",
        "With LaplaceNoise(scale=0.01), a curious server still read back 24 of 24 images (100 %, 95 "
        "% interval "
        f"86{DASH}100 %) with iDLG, so this defense does not protect these images.",
    ),
    "a leak that shows in the identification": (
        [full(read=0)],
        {},
        "Without a defense, a curious server recognized 22 of 24 images among others (92 %, 95 % interval "
        f"73{DASH}99 %; by chance 4 %), though it read back none, with iDLG.",
        NO_DEFENSE,
    ),
    "one image": (
        [cell(read=1, images=1)],
        {},
        f"Without a defense, a curious server read back 1 of 1 image (100 %, 95 % interval 2{DASH}100 %) with iDLG.",
        NO_DEFENSE,
    ),
    "a recorded update": (
        [LEAK, {**LEAK, "defense": "Recorded()"}],
        {"record": {"difference": 1e-7}},
        FIRST,
        FIRST.replace("Without a defense", "From the recorded update"),
    ),
    "an active server": (
        [LEAK],
        {"grants": ["active"]},
        FIRST.replace("curious", "malicious"),
        NO_DEFENSE,
    ),
    "many: all hold": (
        [
            LEAK,
            cell(defense=LAPLACE, **SAFE),
            cell(defense=TOPK, read=1, verdict=NO_LEAK),
            cell(defense=SIGN, **SAFE),
        ],
        {},
        FIRST,
        "With the 3 defenses no leak was found, at best with LaplaceNoise(scale=0.01) (none of 24 "
        "images, at most 14 % "
        "with 95 % confidence), which shows only that these attacks failed, not that the defenses are safe.",
    ),
    "many: all leak": (
        [LEAK, cell(defense=LAPLACE, read=4), cell(defense=TOPK, read=18), cell(defense=SIGN, read=9)],
        {},
        FIRST,
        "All 3 defenses still leak, most with TopK(keep=0.1) (18 of 24 images, 75 %, by iDLG), least with "
        "LaplaceNoise(scale=0.01) (4 of 24 images, 17 %, by iDLG).",
    ),
    "many: all unsure": (
        [cell(**UNSURE), cell(defense=LAPLACE, **UNSURE), cell(defense=TOPK, **UNSURE)],
        {},
        FAILED,
        "Nothing can be said about the 2 defenses: these attacks do not work here even without a defense.",
    ),
    "many: of each kind": (
        [
            LEAK,
            cell(defense=LAPLACE, read=12),
            cell(defense=TOPK, **SAFE),
            cell(defense=SIGN, **UNSURE),
            cell(defense=NOISE, read=18),
        ],
        {},
        FIRST,
        "2 of 4 defenses still leak, most with GaussianNoise(scale=0.1) (18 of 24 images, 75 %, by "
        "iDLG), least with "
        "LaplaceNoise(scale=0.01) (12 of 24 images, 50 %, by iDLG); with TopK(keep=0.1) (none of 24 "
        "images, at most "
        "14 % with 95 % confidence) no leak was found, which does not show that it is safe; nothing "
        "can be said about "
        "Sign: these attacks do not work here even without a defense.",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_sentences(case):
    summary, settings, first, second = CASES[case]
    assert verdict_sentences(summary, settings) == (first, second)


@pytest.mark.parametrize("case", CASES)
def test_no_case_calls_anything_safe_or_leaves_a_gap(case):
    summary, settings, *_ = CASES[case]
    text = " ".join(verdict_sentences(summary, settings))
    assert "None" not in text
    assert "nan" not in text.split()
    assert "()" not in text
    assert text.count("safe") == sum(text.count(f"not {w} safe") for w in _NOT_SAFE)


_NOT_SAFE = ("that the images are", "that the defense is", "that the defenses are", "show that it is")


def test_long_specs_are_named_by_their_heads_unless_that_is_ambiguous():
    spec = "GradientMatching(objective='cosine', prior=TotalVariation(weight={}), restarts=4)"
    one = verdict_sentences([cell(spec.format(0.1))], {})[0]
    assert one.endswith("with GradientMatching(\u2026).")
    two = verdict_sentences([cell(spec.format(0.1)), cell(spec.format(0.2), read=3)], {})[0]
    assert two.endswith(f"({spec.format(0.1)}).")


def test_states_are_of_the_strongest_attack_and_the_weakest_defense():
    assert verdict_states([]) == (None, None)
    assert verdict_states([LEAK, cell("DLG()", **UNSURE)]) == (LEAKS, None)
    assert verdict_states([LEAK, cell(defense=LAPLACE, **SAFE), cell(defense=SIGN, **UNSURE)]) == (
        LEAKS,
        INCONCLUSIVE,
    )
    assert verdict_states([cell("A()", defense=LAPLACE, **SAFE), cell("B()", defense=LAPLACE, **UNSURE)])[1] == NO_LEAK
    assert verdict_states([cell(defense=LAPLACE), cell(defense=SIGN, **SAFE)])[1] == LEAKS


def test_every_flag_is_explained():
    assert set(FLAGS) == {
        "control-failed",
        "control-weak",
        "masked-vector",
        "naive-attack",
        "nonfinite",
        "not-converged",
        "prior-only",
        "record-mismatch",
        "server-side",
        "too-few",
        "wrong-derivative",
        "zero-gradient",
    }
    assert all(flag.raised and flag.means.endswith(".") for flag in FLAGS.values())


def test_the_best_defense_is_the_one_that_is_known_best():
    few, many = cell(defense=LAPLACE, images=8, **SAFE), cell(defense=TOPK, images=96, **SAFE)
    assert "at best with TopK(keep=0.1) (none of 96 images, " in verdict_sentences([LEAK, few, many], {})[1]


def test_what_only_attacks_that_know_the_defense_read_is_said():
    naive = cell(defense=LAPLACE, read=0, verdict="inconclusive", flags=["naive-attack"], knows_defense=False)
    told = cell(defense=LAPLACE, read=12, knows_defense=True, false_security_asr=0.5)
    _, second = verdict_sentences([cell(), naive, told], {})
    assert "(iDLG, adaptive)" in second
    assert second.endswith("; attacks that were not told of it seemed to fail.")
    _, second = verdict_sentences([cell(), {**naive, "verdict": "leaks", "read": 5}, told], {})
    assert "seemed to fail" not in second
    other = "TopK(keep=0.1)"
    _, second = verdict_sentences([cell(), naive, told, cell(defense=other, read=10)], {})
    assert f"seemed to fail against {LAPLACE}" in second
    held = {**told, "verdict": "no leak found by these attacks", "flags": []}
    assert "no more than" in verdict_sentences([cell(), naive, held], {})[1], "the adaptive attack has the word"
