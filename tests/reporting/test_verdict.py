"""The verdict's two sentences, word by word, in every case that they distinguish."""

import re

import pytest

from medpfl.core.experiments.settings import Settings
from medpfl.core.verdicts import INCONCLUSIVE, LEAKS, NO_LEAK
from medpfl.reporting import FLAGS, verdict_sentences
from tests.reporting.made_up import LAPLACE, cell, full, united

TOPK, SIGN, NOISE = "TopK(keep=0.1)", "Sign()", "GaussianNoise(scale=0.1)"
DASH = "\u2013"
FIRST = (
    f"Without a defense, a curious server reconstructed 19 of 24 images (79 %, 95 % interval 58{DASH}93 %) with iDLG."
)
NO_DEFENSE = "No defense was tested. Add one with --defense."
LEAK = cell()
SAFE = {"read": 0, "verdict": NO_LEAK}
UNSURE = {"read": 0, "verdict": INCONCLUSIVE, "flags": ["control-failed"]}
NAIVE = [("iDLG()", "naive-attack"), ("DLG()", "control-failed")]

CASES = {
    "empty": (
        [],
        {},
        "No attack has finished.",
        "There is no result for these images yet.",
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
        f"Without a defense, a curious server reconstructed 19 of 24 images (79 %, 95 % interval 58{DASH}93 %) "
        "with 3 attacks (the strongest: iDLG).",
        NO_DEFENSE,
    ),
    "no leak, no defense": (
        [cell(**SAFE)],
        {},
        f"Without a defense, a curious server reconstructed none of 24 images (0 %, 95 % interval 0{DASH}14 %). "
        "This is inconclusive: these results cannot tell a leak from a failed attack.",
        NO_DEFENSE,
    ),
    "a few read back, but no leak": (
        [cell(read=1, verdict=NO_LEAK)],
        {},
        f"Without a defense, a curious server reconstructed 1 of 24 images (4 %, 95 % interval 0{DASH}21 %). "
        "This is inconclusive: these results cannot tell a leak from a failed attack.",
        NO_DEFENSE,
    ),
    "the defense holds": (
        [LEAK, cell(defense=LAPLACE, **SAFE)],
        {},
        FIRST,
        "With LaplaceNoise(scale=0.01), no leak was found: with 95 % confidence, this attack reconstructs "
        "fewer than 20 % of images and re-identifies fewer than 20 % beyond chance (here: reconstructed none of 24 "
        "images, re-identified none). A failed attack does not show that the defense is safe.",
    ),
    "the defense leaks": (
        [LEAK, cell(defense=LAPLACE, read=12), cell("DLG()", defense=LAPLACE, **SAFE)],
        {},
        FIRST,
        "With LaplaceNoise(scale=0.01), a curious server still reconstructed 12 of 24 images (50 %, 95 % interval"
        f" 29{DASH}71 %) with 2 attacks (the strongest: iDLG). This defense does not protect these images.",
    ),
    "the control failed": (
        [cell(**UNSURE), cell(defense=LAPLACE, **UNSURE)],
        {},
        f"Without a defense, this attack reconstructed none of 24 images (0 %, 95 % interval 0{DASH}14 %). It "
        "does not work here, so this test says nothing about safety. Try: medpfl check-model; --mode eval; "
        "--batch-size 1.",
        "With LaplaceNoise(scale=0.01), a curious server reconstructed none of 24 images (0 %, 95 % interval "
        f"0{DASH}14 %). This is inconclusive: this attack fails here even without a defense.",
    ),
    "attacks that did not know the defense": (
        [LEAK, cell("DLG()", **UNSURE), *(cell(a, LAPLACE, read=0, verdict=INCONCLUSIVE, flags=[f]) for a, f in NAIVE)],
        {},
        f"Without a defense, a curious server reconstructed 19 of 24 images (79 %, 95 % interval 58{DASH}93 %) "
        "with 2 attacks (the strongest: iDLG).",
        "With LaplaceNoise(scale=0.01), a curious server reconstructed none of 24 images (0 %, 95 % interval "
        f"0{DASH}14 %). This is inconclusive: these attacks failed, but they did not know the defense.",
    ),
    "no better than the prior": (
        [cell(read=5, verdict=INCONCLUSIVE, flags=["prior-only"])],
        {},
        f"Without a defense, a curious server reconstructed 5 of 24 images (21 %, 95 % interval 7{DASH}42 %). "
        "This is inconclusive: a guess made without the update does as well as this attack.",
        NO_DEFENSE,
    ),
    "no update": (
        [{"attack": "DLG()", "defense": "NoDefense()", "images": 0, "asr": None, "flags": ["zero-gradient"]}],
        {},
        "Without a defense, there is no result: every image's update is exactly zero.",
        NO_DEFENSE,
    ),
    "no image": (
        [{"attack": "DLG()", "defense": "NoDefense()", "images": 0, "verdict": INCONCLUSIVE}],
        {},
        "Without a defense, there is no result: no image was scored.",
        NO_DEFENSE,
    ),
    "inconclusive without a flag": (
        [cell(read=2, verdict=INCONCLUSIVE)],
        {},
        f"Without a defense, a curious server reconstructed 2 of 24 images (8 %, 95 % interval 1{DASH}27 %). "
        "This is inconclusive: these results cannot tell a leak from a failed attack.",
        NO_DEFENSE,
    ),
    "a control that is only known by its rate": (
        [cell(defense=LAPLACE, control_asr=0.79, **SAFE)],
        {},
        "Without a defense, iDLG reconstructs 79 % of the images.",
        "With LaplaceNoise(scale=0.01), no leak was found: with 95 % confidence, this attack reconstructs "
        "fewer than 20 % of images and re-identifies fewer than 20 % beyond chance (here: reconstructed none of 24 "
        "images, re-identified none). A failed attack does not show that the defense is safe.",
    ),
    "no control at all": (
        [cell(defense=LAPLACE, read=24)],
        {},
        "No attack was run without a defense, so it is unknown whether this attack works here at all.",
        "With LaplaceNoise(scale=0.01), a curious server still reconstructed 24 of 24 images (100 %, 95 % "
        f"interval 86{DASH}100 %) with iDLG. This defense does not protect these images.",
    ),
    "a leak that shows in the identification": (
        [full(read=0)],
        {},
        f"Without a defense, a curious server reconstructed none of 24 images (0 %, 95 % interval 0{DASH}14 %) but"
        f" re-identified 22 (92 %, 95 % interval 73{DASH}99 %; 4 % without the update) with iDLG.",
        NO_DEFENSE,
    ),
    "one image": (
        [cell(read=1, images=1)],
        {},
        "Without a defense, a curious server reconstructed 1 of 1 image from this one update (100 %, 95 % interval "
        f"2{DASH}100 %) with iDLG.",
        NO_DEFENSE,
    ),
    "a recorded update": (
        [LEAK, {**LEAK, "defense": "Recorded()"}],
        {"record": {"difference": 1e-7}},
        FIRST,
        "From the recorded update, a curious server reconstructed 19 of 24 images (79 %, 95 % interval "
        f"58{DASH}93 %) with iDLG.",
    ),
    "a recorded update, and the control failed": (
        [cell(**UNSURE), cell(defense="Recorded()", **UNSURE)],
        {"record": {"difference": 1e-7}},
        f"Without a defense, this attack reconstructed none of 24 images (0 %, 95 % interval 0{DASH}14 %). It "
        "does not work here, so this test says nothing about safety. Try: medpfl check-model; other attacks "
        "(--attack); their images under an easier plan (medpfl audit IMAGES --model MODEL --mode eval --batch-size 1).",
        f"From the recorded update, a curious server reconstructed none of 24 images (0 %, 95 % interval 0{DASH}14 %). "
        "This is inconclusive: this attack fails here even without a defense.",
    ),
    "an active server": (
        [LEAK],
        {"grants": ["active"]},
        f"Without a defense, a malicious server reconstructed 19 of 24 images (79 %, 95 % interval 58{DASH}93 %) "
        "with iDLG.",
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
        "No leak was found with any of the 3 defenses, for example LaplaceNoise(scale=0.01) (reconstructed none of 24 "
        "images): with 95 % confidence, this attack reconstructs fewer than 20 % of images and re-identifies fewer "
        "than 20 % beyond chance. This does not show that the images are safe.",
    ),
    "many: all leak": (
        [LEAK, cell(defense=LAPLACE, read=4), cell(defense=TOPK, read=18), cell(defense=SIGN, read=9)],
        {},
        FIRST,
        "All 3 defenses still leak, the most with TopK(keep=0.1) (reconstructed 18 of 24 images) and the least with "
        "LaplaceNoise(scale=0.01) (reconstructed 4 of 24 images).",
    ),
    "the control's searches had too small a budget": (
        [cell(verdict="inconclusive", read=0, flags=["control-failed", "out-of-budget"])],
        {},
        f"Without a defense, this attack reconstructed none of 24 images (0 %, 95 % interval 0{DASH}14 %). The "
        "searches had too small a budget, so this test says nothing about safety. Try: longer searches (--minutes); "
        "medpfl check-model; --mode eval; --batch-size 1.",
        "No defense was tested. Add one with --defense.",
    ),
    "many: all unsure": (
        [cell(**UNSURE), cell(defense=LAPLACE, **UNSURE), cell(defense=TOPK, **UNSURE)],
        {},
        f"Without a defense, this attack reconstructed none of 24 images (0 %, 95 % interval 0{DASH}14 %). It "
        "does not work here, so this test says nothing about safety. Try: medpfl check-model; --mode eval; "
        "--batch-size 1.",
        "The results for both defenses are inconclusive: this attack fails here even without a defense.",
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
        "2 of 4 defenses still leak, the most with GaussianNoise(scale=0.1) (reconstructed 18 of 24 images) and the "
        "least with LaplaceNoise(scale=0.01) (reconstructed 12 of 24 images). No leak was found with TopK(keep=0.1) "
        "(reconstructed none of 24 images): with 95 % confidence, this attack reconstructs fewer than 20 % of images "
        "and re-identifies fewer than 20 % beyond chance. This does not show that the images are safe. "
        "Inconclusive for Sign (reconstructed none of 24 images): this attack fails here even without a defense.",
    ),
}


def sentences(summary, settings, **union):
    return verdict_sentences(united([{"asr": None, "flags": [], **c} for c in summary], **union), Settings.of(settings))


@pytest.mark.parametrize("case", CASES)
def test_sentences(case):
    summary, settings, first, second = CASES[case]
    assert sentences(summary, settings) == (first, second)


@pytest.mark.parametrize("case", CASES)
def test_no_case_calls_anything_safe_or_leaves_a_gap(case):
    summary, settings, *_ = CASES[case]
    text = " ".join(sentences(summary, settings))
    assert "None" not in text
    assert "nan" not in text.split()
    assert "()" not in text
    assert len(re.findall(r"\bsafe\b", text)) == sum(text.count(f"not {w} safe") for w in _NOT_SAFE)


_NOT_SAFE = ("show that the images are", "show that the defense is")


def test_long_specs_are_named_by_their_heads_unless_that_is_ambiguous():
    spec = "GradientMatching(objective='cosine', prior=TotalVariation(weight={}), restarts=4)"
    one = sentences([cell(spec.format(0.1))], {})[0]
    assert one.endswith("with GradientMatching(\u2026).")
    two = sentences([cell(spec.format(0.1)), cell(spec.format(0.2), read=3)], {})[0]
    assert two.endswith(f"(the strongest: {spec.format(0.1)}).")


def test_the_strongest_attack_and_each_defense_decide():
    assert sentences([], {}) == ("No attack has finished.", "There is no result for these images yet.")
    first, second = sentences([LEAK, cell("DLG()", **UNSURE)], {})
    assert "reconstructed 19 of 24 images" in first
    assert second.startswith("No defense was tested")
    weak = sentences([LEAK, cell(defense=LAPLACE, **SAFE), cell(defense=SIGN, **UNSURE)], {})[1]
    assert "No leak was found with LaplaceNoise" in weak
    assert "Inconclusive for Sign" in weak
    two = [cell("A()", defense=LAPLACE, **SAFE), cell("B()", defense=LAPLACE, **UNSURE)]
    assert "no leak was found" in sentences(two, {})[1], "all attacks on a defense are judged together"
    assert "1 of 2 defenses still leaks" in sentences([cell(defense=LAPLACE), cell(defense=SIGN, **SAFE)], {})[1]


def test_it_is_said_if_the_use_of_a_disclosure_was_not_checked():
    told = "Whether this attack used what it knew of the defense was not checked, since it was not run without it"
    lone = cell(defense=LAPLACE, **SAFE, knows_defense=True, flags=["disclosure-unchecked"])
    assert f"{told} (disclosure-unchecked)." in sentences([LEAK, lone], {})[1]
    assert sentences([LEAK, lone, {**lone, "defense": SIGN}], {})[1].endswith(f". {told} (disclosure-unchecked).")
    checked = cell("A()", defense=LAPLACE, **SAFE, knows_defense=True)
    assert "disclosure-unchecked" not in sentences([LEAK, lone, checked], {})[1], "one attack that used it is enough"


@pytest.mark.parametrize("case", CASES)
def test_a_single_attack_is_never_called_several(case):
    summary, settings, *_ = CASES[case]
    if len({one["attack"] for one in summary}) == 1:
        assert not re.search(r"attacks (?!\(--)|\b[Tt]hey\b", " ".join(sentences(summary, settings)))


def test_every_flag_is_explained():
    assert set(FLAGS) == {
        "control-failed",
        "control-low",
        "control-weak",
        "disclosure-unchecked",
        "disclosure-unused",
        "incomplete",
        "masked-vector",
        "misdisclosed",
        "naive-attack",
        "nonfinite",
        "not-converged",
        "out-of-budget",
        "patients-leak",
        "prior-only",
        "record-mismatch",
        "server-side",
        "small-gallery",
        "too-few",
        "undisclosed",
        "worst-candidate",
        "wrong-derivative",
        "zero-gradient",
    }
    assert all(flag.raised and flag.means.endswith(".") for flag in FLAGS.values())


def test_what_only_attacks_that_know_the_defense_read_is_said():
    naive = cell(defense=LAPLACE, read=0, verdict="inconclusive", flags=["naive-attack"], knows_defense=False)
    told = cell(defense=LAPLACE, read=12, knows_defense=True, false_security_asr=0.5)
    _, second = sentences([cell(), naive, told], {})
    assert "with iDLG, adaptive. This defense" in second
    assert second.endswith("; an attack that did not know it seemed to fail.")
    _, second = sentences([cell(), {**naive, "verdict": "leaks", "read": 5}, told], {})
    assert "seemed to fail" not in second
    other = "TopK(keep=0.1)"
    _, second = sentences([cell(), naive, told, cell(defense=other, read=10)], {})
    assert f"seemed to fail against {LAPLACE}" in second
    held = {**told, "verdict": NO_LEAK, "flags": []}
    assert "no leak was found" in sentences([cell(), naive, held], {})[1], "the adaptive attack has the word"


FEW = {"read": 0, "images": 4, "verdict": INCONCLUSIVE}


def test_too_few_updates_are_said_with_how_many_would_decide():
    two = full(defense=LAPLACE, identified=0.5, identified_low=0.07, identified_high=0.93, chance=0.125, **FEW)
    _, said = sentences([LEAK, two], {}, flags=["too-few"], updates_needed=17)
    assert "reconstructed none of 4 images" in said
    assert "re-identified 2 (50 %" in said
    assert said.endswith(
        "This is inconclusive: 4 updates are too few to tell a leak from a failed attack; at least 17 are needed "
        "(--images 17) if the rates stay the same."
    )
    batches = sentences([LEAK, two], {}, flags=["too-few"], updates_needed=17, updates=1, per_update=4)[1]
    assert "none of 4 images from this one update" in batches
    assert "one update is too few" in batches
    assert batches.endswith("(--images 68) if the rates stay the same.")


@pytest.mark.parametrize(
    ("flag", "why"),
    [
        ("undisclosed", "this defense does not disclose what an attacker who knows its code could undo"),
        ("misdisclosed", "this defense does not do what it discloses"),
        ("small-gallery", "at least 20 images are needed to test re-identification"),
        ("worst-candidate", "an attack reconstructed images among its candidates"),
    ],
)
def test_the_reason_of_what_is_inconclusive(flag, why):
    _, said = sentences([LEAK, cell(defense=LAPLACE, flags=[flag], read=0, verdict=INCONCLUSIVE)], {})
    assert f"This is inconclusive: {why}" in said


def test_labels_that_were_inferred_are_said_where_no_image_leaks():
    told = cell(defense=LAPLACE, label_verdict=LEAKS, label_accuracy=22 / 24, **SAFE)
    assert sentences([LEAK, told], {})[1].endswith("The labels of 22 of 24 images were inferred.")
    assert "labels" not in sentences([LEAK, {**told, "label_verdict": NO_LEAK}], {})[1]
    counted = sentences([LEAK, {**told, "counts_exact": 0.75}], {})[1]
    assert counted.endswith("were inferred. The number of images of each class was exact in 75 % of updates.")
