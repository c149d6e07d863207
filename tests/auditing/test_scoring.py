"""Scores, where guesses meet target images."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from medpfl import Reconstruction
from medpfl.auditing.scoring import Scorer, _best_first
from medpfl.metrics import ncc, psnr, ssim
from medpfl.metrics.best_match import noise_match
from medpfl.metrics.identification import nearest
from medpfl.metrics.noise import noise_scores
from medpfl.runs.study_key import StudyIndex
from tests.auditing.audit_cases import some_images

COMMON = {
    "attack": "A()", "defense": "NoDefense()", "model": "M()", "data": "d", "plan": "Plan()", "grants": ("labels",),
    "control": "", "draw": 1, "stack": 2, "seed": 3, "engine": "loop of 1", "device": "cpu",
    "versions": {"medpfl": "0"},
}  # fmt: skip


def guessed(guesses, labels=None, ended="converged", candidates=None, loss=0.5) -> Reconstruction:
    count = len(guesses)
    return Reconstruction(
        guesses,
        labels,
        torch.full((count,), loss),
        torch.arange(count) + 7,
        torch.arange(count) + 9,
        (ended,) * count,
        candidates,
    )


def score(data, guess, victims, doubts=None, seconds=1.0):
    victims = [torch.tensor(v) for v in victims]
    scorer = Scorer(data, StudyIndex("secret", data, "d"))
    return scorer.rows(guess, victims, doubts or [()] * len(victims), seconds, COMMON)


def near(images, noise=0.05):
    return (images + noise * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)


def test_rows_hold_what_they_say():
    data = some_images(6, patients=["a", "a", "b", None, "c", "c"])
    index = StudyIndex("secret", data, "d")
    victims = [[4, 2], [3, 1]]
    truth = torch.stack([data.images[v] for v in victims])
    guess = guessed(near(truth), torch.tensor([[0, 0], [1, 0]]))
    rows, truths, guesses = score(data, guess, victims, seconds=8.0)
    assert [(r.victim, r.position) for r in rows] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [r.image for r in rows] == [index.images[i] for i in (4, 2, 3, 1)]
    assert [r.patient for r in rows] == [index.patients[i] for i in (4, 2, 3, 1)]
    assert rows[2].patient is None
    assert [r.label for r in rows] == [0, 0, 1, 1]
    assert [r.label_guess for r in rows] == [0, 0, 1, 0]
    assert [r.seconds for r in rows] == [2.0] * 4
    assert [(r.steps, r.evaluations) for r in rows] == [(7, 9), (7, 9), (8, 10), (8, 10)]
    assert {(r.loss, r.ended, r.flags) for r in rows} == {(0.5, "converged", ())}
    assert {(r.attack, r.grants, r.draw, r.stack, r.seed) for r in rows} == {("A()", ("labels",), 1, 2, 3)}
    torch.testing.assert_close(truths, truth.flatten(0, 1))
    torch.testing.assert_close(guesses, guess.guesses.flatten(0, 1))
    expected = ssim(guesses, truths).tolist()
    assert [r.scores["ssim"] for r in rows] == pytest.approx(expected)
    assert [r.scores["psnr"] for r in rows] == pytest.approx(psnr(guesses, truths).tolist())
    assert [r.success for r in rows] == [s >= 0.9 for s in expected]
    assert [r.scores["ssim_worst"] for r in rows] == [r.scores["ssim"] for r in rows], "one candidate"


def test_a_certificate_is_in_all_rows_of_its_update():
    data = some_images(6)
    victims = [[4, 2], [3, 1]]
    guess = guessed(near(torch.stack([data.images[v] for v in victims])))
    for said, expected in (((), [""] * 4), (("rank 2", ""), ["rank 2"] * 2 + [""] * 2)):
        rows, _, _ = score(data, replace(guess, certificates=said), victims)
        assert [row.certificate for row in rows] == expected


def test_the_attack_behind_a_guess_is_in_all_rows_of_its_update():
    data = some_images(4)
    guess = guessed(near(data.images[:, None]))
    for names, expected in (((), [""] * 4), (("RGAP()", "iDLG()", "iDLG()", ""), ["RGAP()", "iDLG()", "iDLG()", ""])):
        rows, _, _ = score(data, replace(guess, found_by=names, unread=names), [[0], [1], [2], [3]])
        assert [row.found_by for row in rows] == [row.unread for row in rows] == expected


@pytest.mark.slow
def test_success_begins_at_ssim_09():
    data = some_images(2)
    noises = torch.linspace(0.01, 0.3, 30).tolist()
    rows = [score(data, guessed(near(data.images[None, :1], n)), [[0]])[0][0] for n in noises]
    assert {r.success for r in rows} == {True, False}
    assert all(r.success == (r.scores["ssim"] >= 0.9) for r in rows)


def test_guesses_of_a_batch_are_paired_once_and_labels_go_with_them():
    data = some_images(6)
    truth = data.images[[0, 1, 2]]
    guess = guessed(near(truth)[[2, 0, 1]][None], torch.tensor([[0, 0, 1]]))
    rows, _, guesses = score(data, guess, [[0, 1, 2]])
    torch.testing.assert_close(guesses, near(truth))
    assert [r.label_guess for r in rows] == [0, 1, 0]
    assert all(r.success and r.identified for r in rows)


def test_the_worst_case_is_of_the_candidates_and_the_success_of_the_guess():
    data = some_images(4)
    truth = data.images[[0]]
    junk = torch.rand(truth.shape, generator=torch.Generator().manual_seed(5))
    candidates = torch.stack([junk, truth, junk.flip(-1)])[None]
    (row,), _, _ = score(data, guessed(junk[None], candidates=candidates), [[0]])
    assert not row.success
    assert row.scores["ssim"] < 0.5
    assert row.scores["ssim_worst"] == pytest.approx(1.0)


def test_the_iterate_nearest_to_the_truth_is_a_score_of_its_own():
    data = some_images(4)
    truth = data.images[[0, 1]]
    junk = torch.rand(truth.shape, generator=torch.Generator().manual_seed(5))
    trace = torch.stack([junk, near(truth, 0.02)[[1, 0]], near(truth, 0.2)])[None]
    rows, _, _ = score(data, replace(guessed(junk[None]), trace=trace), [[0, 1]])
    expected = ssim(near(truth, 0.02), truth).tolist()
    assert [row.scores["legacy_oracle_iterate"] for row in rows] == pytest.approx(expected)
    assert not any(row.success for row in rows)
    rows, _, _ = score(data, replace(guessed(truth[None]), trace=trace), [[0, 1]])
    assert [row.scores["legacy_oracle_iterate"] for row in rows] == pytest.approx([1.0, 1.0]), "the guess counts too"


def test_identified_needs_the_own_image_to_be_nearest():
    data = some_images(5)
    (row,), _, _ = score(data, guessed(near(data.images[None, [0]])), [[0]])
    assert (row.identified, row.gallery, row.chance) == (True, 5, pytest.approx(1 / 5))
    (row,), _, _ = score(data, guessed(near(data.images[None, [1]])), [[0]])
    assert row.identified is False


def test_other_images_of_the_patient_are_left_out_of_the_gallery():
    data = some_images(6, patients=["a", "a", "a", "b", None, None])
    own = guessed(near(data.images[None, [1]]))  # of another image of the same patient
    (row,), _, _ = score(data, own, [[0]])
    assert (row.gallery, row.chance) == (4, 0.25)
    distances = [(data.images[i] - own.guesses[0, 0]).square().mean() for i in (0, 3, 4, 5)]
    assert row.identified is bool(distances[0] < min(distances[1:]))
    (row,), _, _ = score(data, own, [[4]])
    assert row.gallery == 6, "an image without a patient is compared with all"


def test_chance_counts_the_images_of_the_batch():
    data = some_images(8)
    rows, _, _ = score(data, guessed(near(data.images[None, [0, 1]])), [[0, 1]])
    assert [r.chance for r in rows] == [0.25, 0.25]


@pytest.mark.parametrize("patients", [["a"] * 4, ["a", "a", "a", "a"]])
def test_without_a_gallery_nobody_is_identified_and_there_is_no_nearest_image(patients):
    data = some_images(4, patients=patients)
    (row,), _, _ = score(data, guessed(near(data.images[None, [0]])), [[0]])
    assert (row.identified, row.gallery, row.chance) == (None, 1, None)
    assert row.scores["nearest_ssim"] is None
    assert row.scores["mean_image_ssim"] is not None
    (row,), _, _ = score(some_images(1), guessed(near(data.images[None, [0]])), [[0]])
    assert (row.identified, row.gallery) == (None, 1)
    assert (row.scores["nearest_ssim"], row.scores["mean_image_ssim"]) == (None, None)
    assert (row.scores["nearest_ncc"], row.scores["mean_image_ncc"]) == (None, None)
    assert row.scores["noise_ncc"] is not None, "it needs no other image"


def test_best_matches_are_scored_if_they_are_asked_for():
    """The protocol's match is with any image, of the same patient too: here, a guess that shows another image."""
    data = some_images(5, patients=["a", "a", "b", "c", "d"])
    shown = near(data.images[[1, 2]])
    (plain, _), _, _ = score(data, guessed(shown[None]), [[0, 2]])
    assert not any("best" in name or "rank" in name for name in plain.scores)
    scorer = Scorer(data, StudyIndex("secret", data, "d"), best_match=True)
    (wrong, right), _, _ = scorer.rows(guessed(shown[None]), [torch.tensor([0, 2])], [()], 1.0, COMMON)
    for name, metric in (("ssim", ssim), ("ncc", ncc)):
        assert wrong.scores[f"best_{name}"] == pytest.approx(float(metric(shown[:1], data.images[[1]])))
        assert right.scores[f"best_{name}"] == pytest.approx(right.scores[name])
        assert wrong.scores[f"rank_{name}"] > 1
        assert right.scores[f"rank_{name}"] == 1
        assert wrong.scores[f"noise_best_{name}"] == pytest.approx(noise_match(metric, data.parts, data.shape))


def test_baselines_are_of_the_other_images():
    data = some_images(5, patients=["a", "a", "b", "c", "d"])
    data.images[1] = near(data.images[0], 0.01)  # of the same patient: no baseline
    data.images[4] = near(data.images[0], 0.1)
    (row,), _, _ = score(data, guessed(torch.zeros(1, 1, 1, 16, 16)), [[0]])
    own = data.images[[0]]
    assert row.scores["nearest_ssim"] == pytest.approx(float(ssim(data.images[[4]], own)))
    mean = data.images[1:].mean(0, keepdim=True)
    assert row.scores["mean_image_ssim"] == pytest.approx(float(ssim(mean, own)))
    assert row.scores["nearest_ncc"] == pytest.approx(float(ncc(data.images[[4]], own)))
    assert row.scores["mean_image_ncc"] == pytest.approx(float(ncc(mean, own)))
    assert row.scores["noise_ssim"] == pytest.approx(float(noise_scores(ssim, own)))
    assert row.scores["noise_ncc"] == pytest.approx(float(noise_scores(ncc, own)))
    assert (row.scores["ncc"], row.scores["noise_ncc"] > 0) == (0, True), "the guess is constant"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_guesses_that_are_not_finite_are_flagged_and_still_scored(bad):
    data = some_images(3)
    guesses = near(data.images[:2])[:, None].clone()
    guesses[1, 0, 0, 3, 3] = bad
    rows, _, _ = score(data, guessed(guesses, loss=bad), [[0], [1]])
    assert [r.flags for r in rows] == [(), ("nonfinite",)]
    assert rows[1].loss is None
    for row in rows:
        assert all(v is None or math.isfinite(v) for v in row.scores.values()), "fit for JSON"
    assert rows[1].scores["ssim"] is not None


@pytest.mark.parametrize(
    ("ended", "flags"),
    [
        ("converged", ()),
        ("max_steps", ("not-converged",)),
        ("stalled", ()),
        ("nonfinite", ("nonfinite",)),
    ],
)
def test_flags_of_how_the_attack_ended(ended, flags):
    data = some_images(3)
    rows, _, _ = score(data, guessed(near(data.images[None, [0]]), ended=ended), [[0]])
    assert rows[0].flags == flags
    rows, _, _ = score(
        data, guessed(near(data.images[None, [0]]), ended=ended), [[0]], [("zero-gradient", "nonfinite")]
    )
    assert rows[0].flags == tuple(dict.fromkeys(("zero-gradient", "nonfinite", *flags)))


def test_guesses_outside_the_range_are_clamped():
    data = some_images(3)
    data.images[0] = (data.images[0] > 0.5).float()
    (row,), _, _ = score(data, guessed(data.images[None, [0]] * 9 - 4), [[0]])
    assert row.scores["ssim"] == pytest.approx(1.0)
    assert row.identified


def test_a_guess_is_clamped_before_it_is_compared_with_the_gallery():
    """Unclamped, one pixel far out of range would make the guess nearer to a brighter image than to its own."""
    data = some_images(3)
    data.images[:] = torch.tensor([0.5, 0.6, 0.0])[:, None, None, None]
    data.images[:2, 0, 0, 0] = torch.tensor([0.9, 1.0])
    guess = data.images[None, [0]].clone()
    guess[..., 0, 0] = 100.0
    (row,), _, _ = score(data, guessed(guess), [[0]])
    assert row.identified


@pytest.mark.parametrize(("loss", "raised"), [(0.5, True), (1.1e-3, True), (0.9e-3, False), (1e-9, False)])
def test_not_converged_is_of_the_attacker_s_own_objective_and_not_of_the_truth(loss, raised):
    """SignedAdam always takes all its steps; that alone is no reason for doubt. The guess may be right or wrong."""
    data = some_images(4)
    for guess in (data.images[None, [0]], data.images[None, [1]]):
        (row,), _, _ = score(data, guessed(guess, ended="max_steps", loss=loss), [[0]])
        assert row.flags == (("not-converged",) if raised else ())


def test_baselines_are_scored_once_for_a_victim(monkeypatch):
    """Baselines depend on the target images alone: attacks, defenses and draws share them."""
    data, scored = some_images(6), []
    monkeypatch.setattr("medpfl.auditing.scoring.nearest", lambda *a: scored.append(a) or nearest(*a))
    scorer = Scorer(data, StudyIndex("secret", data, "d"))
    victims = [torch.tensor([0, 1]), torch.tensor([2, 3])]
    found = []
    for noise in (0.05, 0.1):
        guess = guessed(torch.stack([near(data.images[v], noise) for v in victims]))
        rows, _, _ = scorer.rows(guess, victims, [(), ()], 1.0, COMMON)
        found.append([(r.scores["mean_image_ssim"], r.scores["nearest_ssim"]) for r in rows])
    assert found[0] == found[1]
    assert len(set(found[0])) == 4
    # Guesses twice; the mean images and the target images once and together.
    assert [len(images) for images, *_ in scored] == [4, 8, 4], "all victims together"


def test_the_first_of_equal_target_images_has_the_best_of_their_guesses():
    truths = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(1))[[0, 1, 0]]
    guesses = truths + torch.tensor([0.3, 0.0, 0.1]).view(3, 1, 1, 1)
    copies = torch.tensor([0, 1, 0])
    for order in ([0, 1, 2], [2, 1, 0]):
        assert _best_first(torch.tensor(order), guesses.clamp(0, 1), truths, copies).tolist() == [2, 1, 0]
    assert _best_first(torch.tensor([0, 1, 2]), guesses, truths, torch.arange(3)).tolist() == [0, 1, 2]
