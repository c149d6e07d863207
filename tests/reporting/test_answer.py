"""The top of an audit's page: a plain answer, its meaning, next steps, and who made it."""

from __future__ import annotations

import re

import pytest

from medpfl.core.experiments.settings import Settings
from medpfl.core.plan import Plan
from medpfl.core.verdicts import RECORDED
from medpfl.reporting.page.answer import Step, answered, bars
from medpfl.reporting.page.maker import maker
from medpfl.reporting.verdict import verdict_sentences
from tests.reporting.made_up import LAPLACE, SETTINGS, UNDEFENDED, cell, full, united
from tests.reporting.test_pages import Page, pages

NO_LEAK = "no leak found by these attacks"


def told(*summary, **union):
    return answered(united(summary, **union), Settings.of(SETTINGS))


def test_without_a_defense_the_answer_says_what_the_server_did():
    answer = told(full(read=24, identified=1.0))
    assert answer.sentences[0] == (
        "leaks",
        "Yes: without a defense, the server reconstructed all 24 images almost exactly.",
    )
    assert answer.sentences[1] == (None, "No defense was tested, so it is unknown whether one would help.")
    assert "The updates are patient data" in answer.meaning[0]
    assert any("--defense" in step.command for step in answer.steps)


def test_images_that_are_only_recognized_are_a_leak_in_plain_words():
    answer = told(full(), full(defense=LAPLACE, read=0, identified=20 / 24), by=("defense",), leaks_by=("recognized",))
    assert answer.sentences[1][1] == (
        "With LaplaceNoise(scale=0.01), the server reconstructed none of 24 images, but 20 guesses still show which "
        "image it was: this defense does not protect these images."
    )
    assert answer.meaning == (
        "Updates sent without a defense or with LaplaceNoise(scale=0.01) give patients' images away. Treat them like "
        "the images themselves. With 95 % confidence, this attack reconstructs 58\u201393 % of such images.",
        "The data does not say which images belong to one patient, so images are counted.",
    )


def test_a_defense_that_held_is_never_called_safe():
    answer = told(full(), full(defense=LAPLACE, read=0, identified=0.0, verdict=NO_LEAK))
    assert answer.sentences[1] == (
        NO_LEAK,
        "With LaplaceNoise(scale=0.01), the server reconstructed none of 24 images: this attack failed, but others "
        "may not.",
    )
    assert "A stronger attack may still succeed." in answer.meaning[-1]
    assert "Test again if the model" in answer.steps[-1].text


def test_an_undecided_test_says_why_and_how_to_decide_it():
    answer = told(full(), full(defense=LAPLACE, read=0, verdict="inconclusive", flags=["too-few"]), updates_needed=60)
    assert answer.sentences[1][0] == "inconclusive"
    assert "that decides nothing:" in answer.sentences[1][1]
    assert "treat these updates as if they leak" in answer.meaning[-1]
    assert answer.steps[0] == (
        "To decide the test for LaplaceNoise(scale=0.01), attack more images.",
        "medpfl audit ... --images 60",
    )


def test_what_one_weak_attack_lacks_is_no_advice_if_all_attacks_together_need_more_images():
    weak = full(attack="DLG()", defense=LAPLACE, read=0, verdict="inconclusive", flags=["control-failed"])
    other = full(defense=LAPLACE, read=0, verdict="inconclusive", flags=["too-few"])
    summary = [{**one, "union_flags": ["too-few"]} for one in (weak, other)]
    answer = told(full(), *summary, updates_needed=60)
    assert answer.steps[0].command == "medpfl audit ... --images 60"
    assert "--images" not in answer.sentences[1][1]
    assert "at least 60 are needed if the rates stay the same." in answer.sentences[1][1]


def test_attacks_that_never_work_say_nothing_about_safety():
    answer = told(cell(read=0, verdict="inconclusive", flags=["control-failed"]))
    assert answer.sentences[0][1] == "Unknown: this attack does not work on this model even without a defense."
    assert answer.steps[0].command == "medpfl check-model MODEL"
    assert answer.steps[1].command == "medpfl audit ... --mode eval --batch-size 1"
    assert len(answer.steps) == 2, "no defense can be tested by attacks that fail without one"
    spent = told(cell(read=0, verdict="inconclusive", flags=["control-failed", "out-of-budget"]))
    assert spent.steps == (Step("Let the searches run longer (--minutes)."), *answer.steps)


@pytest.mark.parametrize("model", ["Checkpoint(trained='MLP()', round=3)", "UserModel(call='make')", "GivenModel()"])
def test_a_command_names_no_model_that_the_command_line_does_not_take(model):
    settings = Settings.of({**SETTINGS, "experiment": {"model": model}})
    commands = [step.command for step in answered(united([full(read=24)]), settings).steps]
    assert any(command.startswith("medpfl frontier DATA --model MODEL ") for command in commands)


@pytest.mark.parametrize(
    ("plan", "per_update", "norms", "dropouts", "advised"),
    [
        (Plan(batch_size=4), 4, 2, 0, "--mode eval --batch-size 1"),
        (Plan(batch_size=4), 4, 0, 0, "--batch-size 1"),
        (Plan(batch_size=4, mode="eval"), 4, 2, 3, "--batch-size 1"),
        (Plan(), 1, 2, 0, "--mode eval"),
        (Plan(), 1, 0, 3, "--mode eval --grant masks"),
        (Plan(mode="eval"), 1, 2, 3, ""),
        (Plan(algorithm="FedAvg", local_images=5), 5, 0, 0, "--local-images 1"),
        (Plan(algorithm="FedAvg", batch_size=10, local_images=20), 20, 0, 0, "--batch-size 1 --local-images 1"),
    ],
)
def test_only_what_the_run_does_not_have_is_advised(plan, per_update, norms, dropouts, advised):
    told = {"plan": repr(plan), "images_per_update": per_update}
    layers = {"batch_norm_layers": norms, "dropout_layers": dropouts}
    settings = Settings.of({**SETTINGS, "experiment": told, "model": layers})
    summary = united([cell(read=0, verdict="inconclusive", flags=["control-failed"])])
    assert answered(summary, settings).steps[1].command == (f"medpfl audit ... {advised}" if advised else "")
    ending = advised.replace(" --", "; --") or "other attacks (--attack)"
    assert verdict_sentences(summary, settings)[0].endswith(f"medpfl check-model; {ending}.")


def test_many_defenses_are_sorted_by_what_was_found():
    summary = [full()] + [
        full(defense=f"D{i}()", read=0 if verdict != "leaks" else 19, verdict=verdict)
        for i, verdict in enumerate(["leaks", NO_LEAK, "inconclusive", "leaks", "leaks"])
    ]
    verdict, sentence = told(*summary).sentences[1]
    assert verdict == "leaks"
    assert sentence == (
        "Of 5 defenses: D0, D3 and 1 more do not protect these images; with D1, this attack failed; for D2, the "
        "test decides nothing."
    )


@pytest.mark.parametrize("verdict", ["leaks", NO_LEAK, "inconclusive"])
@pytest.mark.parametrize("defended", ["leaks", NO_LEAK, "inconclusive", None])
def test_there_is_always_a_next_step(verdict, defended):
    summary = [full(verdict=verdict)] + ([full(defense=LAPLACE, verdict=defended)] if defended else [])
    answer = told(*summary)
    assert answer.steps
    assert answer.meaning
    assert all(sentence.endswith(".") for _, sentence in answer.sentences)
    assert not any("{" in step.text for step in answer.steps)


def test_nothing_at_all_still_has_an_answer():
    answer = answered([], Settings.of({}))
    assert answer.sentences[0][0] is None
    assert answer.steps


@pytest.mark.parametrize(
    "flags", [["control-failed"], ["too-few"], ["control-failed", "out-of-budget"], ["small-gallery"]]
)
def test_for_a_record_no_option_is_advised_that_its_audit_ignores(flags):
    record = Settings.of({**SETTINGS, "record": {"defense": UNDEFENDED}, "experiment": {"plan": "Plan(batch_size=8)"}})
    own = [full(read=0, verdict="inconclusive", flags=flags, defense=name) for name in (UNDEFENDED, RECORDED)]
    summary = united(own, updates_needed=60)
    steps = answered(summary, record).steps
    advised = " ".join([*(f"{one.text} {one.command}" for one in steps), *verdict_sentences(summary, record)])
    without = advised.replace("medpfl audit IMAGES --model MODEL --mode eval --batch-size 1", "")
    assert not re.search(r"--(mode|batch-size|local-images|images|learning-rate|grant)\b", without)
    assert ("--minutes" in advised) == ("out-of-budget" in flags)
    assert ("audit more records together" in advised) == ("control-failed" not in flags)


@pytest.mark.parametrize(("norms", "plan", "defense"), [(0, "Plan()", "DPSGD"), (2, "Plan()", "GaussianNoise"),
                                                       (2, "Plan(mode='eval')", "DPSGD")])  # fmt: skip
def test_the_defense_that_is_advised_is_that_of_the_sentence(norms, plan, defense):
    told = Settings.of({**SETTINGS, "model": {"batch_norm_layers": norms}, "experiment": {"plan": plan}})
    (step,) = [one for one in answered(united([full()]), told).steps if "Test a defense" in one.text]
    assert defense in step.command
    assert ("such as noise" in step.text) == (defense == "GaussianNoise")


def test_bars_are_those_of_all_attacks_together():
    found = bars(united([full(), full(attack="DLG()", read=3), full(defense=LAPLACE, read=0)]))
    assert [(bar.defense, bar.rates[0][:3]) for bar in found] == [
        (UNDEFENDED, ("reconstructed", 19 / 24, "19 of 24")),
        (LAPLACE, ("reconstructed", 0.0, "none of 24")),
    ]


ABOUT = {"title": "Chest CT <2>", "site": "Site", "contact": "dpo@example.org", "alias": "ct-1"}


@pytest.mark.slow
def test_who_made_the_page_is_said_even_if_nothing_was_stated(tmp_path):
    assert dict(maker({}))["Site"] == "not stated"
    assert dict(maker({**SETTINGS, "about": ABOUT})) == {
        "Title": "Chest CT <2>",
        "Site": "Site",
        "Contact": "dpo@example.org",
        "Data": "ct-1, 24 images",
        "Model": "LeNet()",
        "Date": "2026-01-01",
        "Made with": "MedPFL 0.1.0",
    }
    for html in pages(tmp_path, [full()], {**SETTINGS, "about": ABOUT}):
        words = Page(html).words
        assert words.count("Chest CT <2>") == 2
        assert "dpo@example.org" in words
        assert "ct-1, 24 images" in words


def test_a_failure_without_knowledge_is_repeated_with_it_before_more_images():
    unaware = full(defense=LAPLACE, read=0, verdict="inconclusive", flags=["naive-attack"])
    answer = told(full(), unaware, updates_needed=60)
    assert "without --naive" in answer.steps[0].text
    assert answer.steps[1].command == "medpfl audit ... --images 60"


def test_the_frontier_that_is_advised_names_the_audited_model():
    command = told(full()).steps[-1].command
    assert command.startswith("medpfl frontier DATA --model ")
    assert "GaussianNoise(scale=geom(0.001, 0.1, 4))" in command


def test_a_defense_that_met_an_attacker_who_knows_it_is_not_to_be_tested_again_for_that():
    naive = full(defense=LAPLACE, read=0, verdict="inconclusive", knows_defense=False, flags=["naive-attack"])
    knowing = full(defense=LAPLACE, read=0, verdict="inconclusive", knows_defense=True, flags=["too-few"])
    answer = told(full(), naive, knowing, updates_needed=60)
    assert not any("--naive" in step.text for step in answer.steps)
    assert any("--naive" in step.text for step in told(full(), naive, updates_needed=60).steps)


def test_where_a_single_test_had_enough_updates_twice_as_many_are_advised():
    open_ = {**full(defense=LAPLACE, read=0, verdict="inconclusive", flags=["too-few"]), "union_flags": ["too-few"]}
    answer = told(full(), open_, updates_needed=20)
    assert answer.steps[0].command == "medpfl audit ... --images 48"
    assert answer.sentences[1][1].endswith(
        "24 updates are too few to tell a leak from a failed attack; attack twice as many."
    )


def test_the_maker_says_how_many_of_the_images_were_attacked():
    settings = {**SETTINGS, "data": {**SETTINGS["data"], "images": 59}}
    assert dict(maker(settings))["Data"] == "a folder of images, 24 of 59 images attacked"
