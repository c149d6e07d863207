"""What a page cannot show follows from what the run did."""

from __future__ import annotations

import pytest

from medpfl.core.experiments.settings import Settings
from medpfl.core.verdicts import INCONCLUSIVE, NO_LEAK
from medpfl.judging.types import Exposure, Patients, Rate
from medpfl.reporting.facts import sent_beside
from medpfl.reporting.page.answer import answered
from medpfl.reporting.page.limits import attacks_to_add, not_shown
from medpfl.reporting.terminal import print_audit
from tests.reporting.made_up import LAPLACE, SETTINGS, full, united
from tests.reporting.test_pages import Page, pages

NOT_RUN = {"suited": ["RGAP()"], "others": ["DLG()", "CPL()"], "unfit": ["APRIL()"]}


def limits(*summary, **settings):
    found = not_shown(united(list(summary) or [full()]), Settings.of({**SETTINGS, **settings}))
    return {one.name: one.text for one in found}


def test_attacks_that_were_not_run_are_named_and_told_apart():
    told = limits(not_run=NOT_RUN)["Other attacks"]
    assert told.startswith("Not run: RGAP, DLG and CPL. Made for other models or plans: APRIL.")
    assert "Not run" not in limits()["Other attacks"], "an older run does not say it"


def test_images_that_were_not_attacked_are_counted():
    assert "Other images" not in limits(data={"images": 24, "skipped": 0})
    told = limits(data={"images": 59, "skipped": 2})["Other images"]
    assert told.startswith("24 of 59 images were attacked; 2 files could not be read.")


def test_the_model_the_round_and_the_update_that_were_tested_are_named():
    experiment = {"model": "LeNet('idlg')", "weights": "trained, round 5", "images_per_update": 4}
    told = limits(experiment=experiment)["Other models, rounds and plans"]
    assert told.startswith("Tested: LeNet('idlg'), trained, round 5, updates of 4 images each.")


@pytest.mark.parametrize("active", [False, True])
def test_a_malicious_server_is_a_limit_unless_it_was_granted(active):
    assert ("A malicious server" in limits(grants=["active"] if active else [])) is not active


def test_what_the_attacker_did_not_know_is_listed():
    naive = full(defense=LAPLACE, read=0, knows_defense=False)
    told = limits(full(), naive, grants=["labels"])["Knowledge from elsewhere"]
    assert told.startswith("The tested attacker did not have: the defense and its settings, the order")
    assert "the labels" not in told
    knowing = limits(full(), naive, full(defense=LAPLACE, read=0, knows_defense=True))["Knowledge from elsewhere"]
    assert "the defense" not in knowing


def test_defenses_that_were_tested_are_named():
    assert limits(full(), full(defense=LAPLACE))["Other defenses and strengths"] == f"Tested: {LAPLACE}."
    assert limits()["Defenses"] == "No defense was tested."


def test_the_page_lists_them_and_links_to_them_from_its_meaning(tmp_path):
    shared = pages(tmp_path, [full()], {**SETTINGS, "not_run": NOT_RUN})[0]
    page = Page(shared)
    assert "#limits" in page.links
    assert "What this page does not show" in page.words
    assert "Not run: RGAP, DLG and CPL." in page.words


# --- advice on attacks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("verdict", "advised"), [("leaks", False), (INCONCLUSIVE, True), (NO_LEAK, True)])
def test_another_attack_is_advised_only_where_it_could_change_a_verdict(verdict, advised, capsys):
    settings = Settings.of({**SETTINGS, "not_run": NOT_RUN})
    summary = united([full(), full(defense=LAPLACE, verdict=verdict)])
    text = "Not tested, although suited to this model: RGAP. Add --attack RGAP."
    assert attacks_to_add(summary, settings) == (text if advised else "")
    assert (text in [step.text for step in answered(summary, settings).steps]) is advised

    class Report:
        pages, classes, rows = (), (), ()

        def verdict(self):
            return "a", "b"

    report = Report()
    report.summary, report.settings = summary, settings
    print_audit(report, quiet=False)
    assert ("Not tested, although" in capsys.readouterr().out) is advised


def test_public_samples_are_a_first_look():
    settings = Settings.of({**SETTINGS, "data": {**SETTINGS["data"], "source": "Samples()"}})
    commands = [step.command for step in answered(united([full(), full(defense=LAPLACE)]), settings).steps]
    assert "medpfl audit path/to/images --model path/to/model.py:make_model --out runs/mine" in commands
    assert not any("frontier" in command for command in commands)


# --- what was sent, and who is exposed ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sends", "plan", "layers", "told"),
    [
        (["num_samples", "buffers"], "Plan()", 3, "the number of images and the batch-norm statistics."),
        (["buffers"], "Plan()", 3, "Clients also sent the batch-norm statistics."),
        (["buffers"], "Plan(mode='eval')", 3, "the batch-norm statistics (unchanged, in eval mode)."),
        (["num_samples"], "Plan()", 3, "the number of images, but no batch-norm statistics."),
        ([], "Plan()", 3, "Clients also sent nothing else, but no batch-norm statistics."),
        (["num_samples", "buffers"], "Plan()", 0, "the number of images. The model has no batch-norm statistics."),
    ],
)
def test_it_is_stated_whether_batch_norm_statistics_were_sent(tmp_path, sends, plan, layers, told):
    settings = {**SETTINGS, "experiment": {"sends": sends, "plan": plan}, "model": {"batch_norm_layers": layers}}
    assert sent_beside(settings).endswith(told)
    assert told in Page(pages(tmp_path, [full()], settings)[0]).words


def test_an_older_run_does_not_say_what_was_sent():
    assert sent_beside(SETTINGS) == ""


def test_exposed_patients_are_counted_in_plain_words():
    worst = (Exposure(patient="p-1", images=2, guesses=2, read_back=1, identified=2, ssim=0.95),)
    told = Patients(
        patients=4, images=8, without_patient=0, read_back=Rate(0.5), identified=Rate(1.0), chance=0.1, worst=worst
    )
    summary = united([full(by_patient=told)])
    meaning = answered(summary, Settings.of(SETTINGS)).meaning
    assert meaning[1] == (
        "Of 4 attacked patients, exposed without a defense: 2 by a reconstructed image, 4 by a re-identified image."
    )
    without = answered(united([full()]), Settings.of({**SETTINGS, "data": {"patients": None}})).meaning
    assert without[1] == "The data does not say which images belong to one patient, so images are counted."


def test_a_page_without_a_contact_says_how_to_name_one(tmp_path):
    words = Page(pages(tmp_path, [full()])[0]).words
    assert "Contact not stated: add --contact, so that readers know whom to ask" in words
    named = Page(pages(tmp_path, [full()], {**SETTINGS, "about": {"contact": "dpo@example.org"}})[0]).words
    assert "Contact dpo@example.org" in named
    assert "add --contact" not in named
