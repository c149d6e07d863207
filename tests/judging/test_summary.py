"""Cells, flags and verdicts from made-up rows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from medpfl import Finding
from medpfl.core.verdicts import INCONCLUSIVE, LEAKS, NO_LEAK, RANDOM_UPDATE, RECORDED, UNDEFENDED
from medpfl.judging.summary import Context, summarize
from medpfl.judging.types import Rate
from medpfl.metrics.rates import cluster_interval, interval, mean_interval

NOISE = "LaplaceNoise(scale=0.1)"
COUNT = 20


def row(success=False, **fields) -> Finding:
    ssim = fields.pop("ssim", 0.95 if success else 0.1)
    base = {"mean_image_ssim": 0.3, "nearest_ssim": 0.4, "ssim_worst": ssim, "psnr": 20.0, "mse": 0.01}
    scores = base | {"ssim": ssim} | fields.pop("scores", {})
    told = () if fields.get("defense", UNDEFENDED) in (UNDEFENDED, RECORDED) else ("defense",)
    defaults = {
        "attack": "iDLG()", "defense": UNDEFENDED, "model": "M()", "data": "d", "plan": "Plan()", "grants": told,
        "control": "", "draw": 0, "stack": 0, "victim": 0, "position": 0, "image": "i-0", "patient": None, "label": 0,
        "label_guess": 0, "identified": success, "gallery": 50, "chance": 0.02, "nearest_image": None,
        "loss": 0.1, "steps": 3, "evaluations": 4,
        "ended": "converged", "flags": (), "seed": 0, "engine": "loop of 1", "device": "cpu",
        "versions": {}, "seconds": 2.0, "date": "2026-01-01",
    }  # fmt: skip
    return Finding(**{**defaults, "scores": scores, "success": success, **fields})


def rows(hits: int, count: int = COUNT, **fields) -> list[Finding]:
    return [row(i < hits, image=f"i-{i}", victim=i, **fields) for i in range(count)]


def random_update(hits: int = 0, count: int = 8, **fields) -> list[Finding]:
    return rows(hits, count, control=RANDOM_UPDATE, **fields)


def cells(*groups: list[Finding], **options):
    found = summarize([r for group in groups for r in group], Context(**options))
    return {cell.defense: cell for cell in found}


# --- rates --------------------------------------------------------------------------------------------------


def test_an_image_at_several_places_of_an_update_counts_once():
    """The scorer puts the best of its guesses first."""
    found = [row(i < 2, image=f"i-{i % 4}", victim=0, position=i) for i in range(8)]
    cell = cells(found)[UNDEFENDED]
    assert (cell.images, cell.asr.value, cell.zero_gradient) == (4, 0.5, 0.0)


def test_a_cell_has_rates_with_intervals():
    cell = cells(rows(15))[UNDEFENDED]
    assert (cell.images, cell.asr.value) == (20, 0.75)
    assert (cell.asr.low, cell.asr.high) == interval(15, 20)
    assert (cell.identified.value, cell.identified.low, cell.identified.high) == (0.75, *interval(15, 20))
    assert cell.ssim.value == pytest.approx((15 * 0.95 + 5 * 0.1) / 20)
    assert (cell.ssim.low, cell.ssim.high) == mean_interval([0.95] * 15 + [0.1] * 5)
    assert cell.ssim.low < cell.ssim.value < cell.ssim.high
    assert (cell.psnr, cell.gallery) == (20.0, 50)
    assert (cell.mse, cell.chance) == pytest.approx((0.01, 0.02))
    assert (cell.seconds_per_image, cell.evaluations) == (2.0, 4.0)
    assert (cell.asr_mean_image.value, cell.asr_nearest.value, cell.asr_random_update.value) == (0.0, 0.0, None)


def test_ncc_and_noise_are_means_and_shares_above_the_noise():
    scores = {"ncc": 0.5, "mean_image_ncc": 0.8, "nearest_ncc": 0.7, "noise_ncc": 0.1, "noise_ssim": 0.2}
    cell = cells(rows(15, scores=scores), random_update(scores={"ncc": 0.0}))[UNDEFENDED]
    assert (cell.ncc, cell.ncc_mean_image, cell.ncc_nearest) == pytest.approx((0.5, 0.8, 0.7))
    assert cell.ncc_random_update == 0
    assert (cell.ncc_noise, cell.ssim_noise) == pytest.approx((0.1, 0.2))
    assert (cell.ncc_above_noise.value, cell.ssim_above_noise.value) == (1, 0.75), "the others have an SSIM of 0.1"
    assert (cell.ssim_above_noise.low, cell.ssim_above_noise.high) == interval(15, 20)


def test_rows_of_older_versions_have_no_ncc():
    cell = cells(rows(15))[UNDEFENDED]
    assert (cell.ncc, cell.ncc_noise, cell.ssim_noise, cell.ncc_above_noise.value) == (None, None, None, None)


def test_images_of_one_update_are_a_cluster():
    together = [replace(r, victim=i // 4, position=i % 4) for i, r in enumerate(rows(8))]  # two updates of five
    cell, alone = cells(together)[UNDEFENDED], cells(rows(8))[UNDEFENDED]
    assert (cell.images, cell.clusters, alone.clusters) == (20, 5, 20)
    for name in ("asr", "identified"):
        hits, clusters = [i < 8 for i in range(20)], [i // 4 for i in range(20)]
        assert getattr(cell, name).ends == cluster_interval(hits, clusters)
    for name in ("asr", "identified", "ssim"):
        rate, single = getattr(cell, name), getattr(alone, name)
        assert rate.value == single.value
        assert rate.low < single.low
        assert rate.high > single.high


def test_the_gain_is_over_the_best_guess_without_the_update():
    own = [row(ssim=0.5 + i / 100, image=f"i-{i}", victim=i) for i in range(4)]
    nearest = cells(own, random_update())[UNDEFENDED].ssim_gain
    assert nearest.value == pytest.approx(0.515 - 0.4)
    assert nearest.ends == pytest.approx(mean_interval([0.1 + i / 100 for i in range(4)]))
    strong = cells(own, rows(8, 8, control=RANDOM_UPDATE))[UNDEFENDED].ssim_gain
    assert strong.value == pytest.approx(0.515 - 0.95)
    shared = cells([replace(one, victim=i // 2, position=i % 2) for i, one in enumerate(own)])[UNDEFENDED].ssim_gain
    assert shared.high - shared.low > nearest.high - nearest.low, "images of one update depend on each other"
    bare = [replace(one, scores={"ssim": 0.5}) for one in own]
    assert cells(bare)[UNDEFENDED].ssim_gain == Rate()


def test_an_image_under_several_draws_is_a_cluster():
    drawn = [replace(r, draw=d) for d in range(3) for r in rows(0, 8)]
    cell = cells(drawn)[UNDEFENDED]
    assert (cell.images, cell.clusters) == (24, 8)
    assert (cell.asr.low, cell.asr.high) == interval(0, 8), "not 0 of 24"


def test_victims_of_two_stacks_are_two():
    cell = cells([replace(r, stack=s) for s in range(2) for r in rows(0, 8)])[UNDEFENDED]
    assert (cell.clusters, cell.asr.high) == (16, interval(0, 16)[1])


def test_a_leak_must_show_between_clusters():
    """Two hits in forty, both in one update with twenty images: not surely above 2 %.

    With one image per update, they would be.
    """
    lucky = [row(False, identified=i < 4, victim=i) for i in range(40)]
    assert cells(lucky)[UNDEFENDED].verdict == LEAKS
    together = [replace(r, victim=i // 20) for i, r in enumerate(lucky)]
    assert cells(together)[UNDEFENDED].verdict == INCONCLUSIVE


def test_prior_only_is_of_clusters():
    """Twelve images in twenty slightly better than the mean image: from only two updates, that says less."""
    scores = [{"mean_image_ssim": 0.3 if i < 12 else 0.55, "nearest_ssim": None} for i in range(20)]
    found = [row(ssim=0.5, victim=i, identified=None, scores=s) for i, s in enumerate(scores)]
    assert "prior-only" not in cells(found)[UNDEFENDED].flags
    two = [replace(r, victim=i // 10) for i, r in enumerate(found)]
    assert "prior-only" in cells(two)[UNDEFENDED].flags


def test_every_rate_has_an_interval():
    control = random_update(2)
    cell = cells(rows(5, scores={"mean_image_ssim": 0.95, "ssim_worst": 0.95}, label_guess=1), control)[UNDEFENDED]
    expected = {
        "asr": (5, 20), "asr_worst": (20, 20), "identified": (5, 20), "label_accuracy": (0, 20),
        "asr_mean_image": (20, 20), "asr_nearest": (0, 20), "asr_random_update": (2, 8),
        "identified_random_update": (2, 8),
    }  # fmt: skip
    for name, counts in expected.items():
        assert getattr(cell, name).ends == interval(*counts), name
    assert cells(rows(5))[UNDEFENDED].asr_random_update.low is None


def test_chance_of_a_label_is_that_of_the_commonest_class():
    found = [row(victim=i, label=int(i < 15), label_guess=None if i in (0, 1, 2) else 1) for i in range(20)]
    cell = cells(found)[UNDEFENDED]
    assert cell.label_accuracy.value == cell.label_chance == pytest.approx(12 / 17)
    assert cells(rows(0, 3, label_guess=None))[UNDEFENDED].label_chance is None


def test_label_counts_are_judged_by_update_whatever_the_order_of_the_guesses():
    exact = [row(victim=0, position=i, label=label, label_guess=1 - label) for i, label in enumerate((0, 1))]
    one_off = [row(victim=1, position=i, label=1, label_guess=min(i, 1)) for i in range(4)]
    alone = [row(victim=2, label=0, label_guess=1)]
    cell = cells([*exact, *one_off, *alone])[UNDEFENDED]
    assert (cell.counts_exact.value, cell.count_error) == (0.5, pytest.approx((0 + 1 / 4) / 2))
    assert cell.counts_exact.ends == interval(1, 2)
    # Of the six images in batches, one has class 0 and five have class 1.
    assert cell.count_error_even == pytest.approx((abs(1 - 2 / 6) / 2 + abs(4 - 4 * 5 / 6) / 4) / 2)


def test_label_counts_are_unknown_for_single_images_and_granted_labels():
    batch = [row(victim=0, position=i, label=i, label_guess=i) for i in range(2)]
    assert cells([row(victim=i, label_guess=1) for i in range(3)])[UNDEFENDED].counts_exact.value is None
    for changed in ({"grants": ("labels",)}, {"label_guess": None}, {"flags": ("zero-gradient",)}):
        found = cells([replace(r, **changed) for r in batch])[UNDEFENDED]
        assert (found.counts_exact.value, found.count_error, found.count_error_even) == (None, None, None)


def test_the_issue_s_columns_are_there():
    wanted = {
        "attack", "defense", "images", "asr", "asr_low", "asr_high", "ssim", "psnr", "mse", "identified",
        "label_accuracy", "seconds_per_image", "verdict", "flags",
    }  # fmt: skip
    assert wanted <= set(cells(rows(1))[UNDEFENDED].to_dict())


def test_asr_is_of_the_chosen_guess_and_the_worst_case_apart():
    cell = cells(rows(5, scores={"ssim_worst": 0.99}))[UNDEFENDED]
    assert (cell.asr.value, cell.asr_worst.value) == (0.25, 1.0)


def test_label_accuracy_counts_only_stated_labels():
    found = [*rows(0, 4), *rows(0, 4, label_guess=1), *rows(0, 8, label_guess=None)]
    assert cells(found)[UNDEFENDED].label_accuracy.value == 0.5
    assert cells(rows(0, 3, label_guess=None))[UNDEFENDED].label_accuracy.value is None


def test_without_a_gallery_nothing_is_said_of_identification():
    cell = cells(rows(15, identified=None, gallery=1, chance=None))[UNDEFENDED]
    assert (cell.identified, cell.chance) == (Rate(), None)
    assert cell.verdict == LEAKS


def test_baselines_come_from_rows_of_their_own():
    control = random_update(2, scores={"nearest_ssim": 0.0})
    cell = cells(rows(5, scores={"mean_image_ssim": 0.92}), control)[UNDEFENDED]
    assert cell.images == COUNT, "a control is no finding"
    assert (cell.asr_mean_image.value, cell.asr_nearest.value, cell.asr_random_update.value) == (1.0, 0.0, 0.25)
    assert cell.identified_random_update.value == 0.25
    assert cell.ssim_random_update == pytest.approx((2 * 0.95 + 6 * 0.1) / 8)


def test_random_updates_count_for_every_defense_of_their_attack_only():
    found = summarize(
        [
            *random_update(8, attack="iDLG()"),
            *random_update(0, attack="DLG()"),
            *(r for a in ("iDLG()", "DLG()") for d in (UNDEFENDED, NOISE) for r in rows(0, attack=a, defense=d)),
        ]
    )
    assert [(c.attack, c.asr_random_update.value) for c in found] == [
        ("iDLG()", 1.0), ("iDLG()", 1.0), ("DLG()", 0.0), ("DLG()", 0.0),
    ]  # fmt: skip


def test_cells_keep_the_order_of_the_rows():
    order = [(a, d) for d in (UNDEFENDED, "B()", "A()") for a in ("Z()", "Y()")]
    found = summarize([r for a, d in order for r in rows(1, 2, attack=a, defense=d)])
    assert [(c.attack, c.defense) for c in found] == order


def test_no_rows_no_cells():
    assert summarize([]) == []


# --- zero gradients -----------------------------------------------------------------------------------------


def test_zero_gradients_are_left_out_of_every_rate_and_their_share_is_stated():
    zero = rows(0, 5, flags=("zero-gradient",), ssim=0.0, label_guess=1, seconds=2.0)
    cell = cells(rows(15, 15), zero)[UNDEFENDED]
    assert (cell.images, cell.asr.value, cell.label_accuracy.value) == (15, 1.0, 1.0)
    assert cell.ssim.value == pytest.approx(0.95)
    assert (cell.identified.value, cell.zero_gradient) == (1.0, 0.25)
    assert "zero-gradient" in cell.flags
    assert "zero-gradient" not in cells(rows(15))[UNDEFENDED].flags


def test_all_gradients_zero_says_nothing():
    cell = cells(rows(0, flags=("zero-gradient", "not-converged")))[UNDEFENDED]
    assert (cell.images, cell.asr.value, cell.zero_gradient, cell.verdict) == (0, None, 1.0, INCONCLUSIVE)
    assert cell.flags == ("control-failed", "zero-gradient")


def test_a_defense_whose_control_has_only_zero_gradients_is_inconclusive():
    found = cells(rows(0, flags=("zero-gradient",)), rows(0, defense=NOISE))
    assert found[NOISE].verdict == INCONCLUSIVE
    assert "control-failed" in found[NOISE].flags


def test_zero_gradients_do_not_count_as_random_updates():
    control = [*random_update(0, 4), *random_update(4, 4, flags=("zero-gradient",))]
    assert cells(rows(3), control)[UNDEFENDED].asr_random_update.value == 0.0


# --- verdicts -----------------------------------------------------------------------------------------------


def test_what_is_read_back_leaks():
    found = cells(rows(15), rows(12, defense=NOISE), random_update())
    assert (found[UNDEFENDED].verdict, found[NOISE].verdict) == (LEAKS, LEAKS)
    assert found[UNDEFENDED].flags == found[NOISE].flags == ()
    assert found[NOISE].control_asr == 0.75


def test_a_failure_beside_a_control_that_works_is_no_leak_found():
    found = cells(rows(15), rows(0, defense=NOISE), random_update())
    assert found[NOISE].verdict == NO_LEAK
    assert "control-failed" not in found[NOISE].flags


def test_a_failure_of_an_attack_that_did_not_know_the_defense_says_nothing():
    naive = rows(0, defense=NOISE, grants=("labels",))
    found = cells(rows(15), naive, random_update())
    assert (found[NOISE].verdict, found[UNDEFENDED].verdict) == (INCONCLUSIVE, LEAKS)
    assert "naive-attack" in found[NOISE].flags
    assert "naive-attack" not in found[UNDEFENDED].flags
    partly = [*rows(0, defense=NOISE, count=19), *naive[:1]]
    assert cells(rows(15), partly)[NOISE].verdict == INCONCLUSIVE


def test_what_does_not_work_at_all_is_not_called_naive():
    cell = cells(rows(0), rows(0, defense=NOISE, grants=()), random_update())[NOISE]
    assert cell.flags == ("control-failed", "prior-only")


def test_a_leak_to_an_attack_that_did_not_know_the_defense_is_a_leak():
    cell = cells(rows(15), rows(12, defense=NOISE, grants=()))[NOISE]
    assert (cell.verdict, cell.flags) == (LEAKS, ())


def test_a_defense_that_comes_too_late_need_not_be_known():
    for knows in ((), ("defense",)):
        cell = cells(rows(15), rows(0, defense=NOISE, grants=knows), server_side=[NOISE], server_only=[NOISE])[NOISE]
        assert not {"naive-attack", "disclosure-unchecked"} & set(cell.flags)


def test_a_failed_control_is_never_no_leak():
    found = cells(rows(0), rows(0, defense=NOISE), random_update())
    assert {c.verdict for c in found.values()} == {INCONCLUSIVE}
    assert all("control-failed" in c.flags for c in found.values())


SUMS = "SecAggPlus()"


def in_sums(found: list[Finding], images: int) -> list[Finding]:
    return [replace(r, victim=i // images) for i, r in enumerate(found)]


def test_an_attack_that_only_recognizes_single_images_says_nothing_of_sums():
    told = [row(False, identified=True, victim=i) for i in range(80)]
    found = cells(told, in_sums(rows(0, 80, defense=SUMS), 4), rows(0, 80, defense=NOISE))
    assert found[UNDEFENDED].verdict == LEAKS
    assert (found[SUMS].verdict, found[SUMS].flags[:1]) == (INCONCLUSIVE, ("control-weak",))
    assert found[NOISE].verdict == NO_LEAK, "of single updates, recognition is comparable"
    read = cells(rows(80, 80), in_sums(rows(0, 80, defense=SUMS), 4))[SUMS]
    assert read.verdict == NO_LEAK
    assert not {"control-weak", "too-few"} & set(read.flags)
    leaking = cells(told, in_sums(rows(80, 80, defense=SUMS), 4))[SUMS]
    assert leaking.verdict == LEAKS
    assert "control-weak" not in leaking.flags


@pytest.mark.parametrize(("updates", "verdict"), [(2, INCONCLUSIVE), (16, INCONCLUSIVE), (17, NO_LEAK)])
def test_what_so_few_updates_cannot_show_is_inconclusive(updates, verdict):
    """Without a success, 16 updates leave up to 20.6 %, 17 up to 19.5 %."""
    few = cells(rows(15), rows(0, updates, defense=NOISE))[NOISE]
    assert (few.verdict, "too-few" in few.flags) == (verdict, verdict == INCONCLUSIVE)
    assert few.union.updates_needed == (17 if verdict == INCONCLUSIVE else None)


def test_a_stricter_tolerance_needs_more_updates():
    cell = cells(rows(15), rows(0, defense=NOISE), tolerance=0.1)[NOISE]
    assert (cell.verdict, cell.union.updates_needed) == (INCONCLUSIVE, 36)
    assert cells(rows(15), rows(0, 36, defense=NOISE), tolerance=0.1)[NOISE].verdict == NO_LEAK


def test_an_attack_that_gets_as_few_without_the_defense_says_nothing():
    """One image in 100 is a leak, but such an attack's failure does not mean that fewer than 20 % leak."""
    cell = cells(rows(1, 100), rows(0, 100, defense=NOISE))[NOISE]
    assert (cell.verdict, cell.flags[:1]) == (INCONCLUSIVE, ("control-low",))
    assert cell.union.verdict == INCONCLUSIVE


def test_a_floor_that_leaves_no_room_is_no_test():
    """With nine images in ten from one class, fully correct labels are only 10 % above the commonest class."""
    names = [replace(r, label=int(i == 0), label_guess=int(i == 0)) for i, r in enumerate(rows(0, 10, defense=NOISE))]
    bare = [replace(r, label=int(i == 0), label_guess=int(i == 0)) for i, r in enumerate(rows(10, 10))]
    assert cells(bare, names)[NOISE].label_verdict != NO_LEAK
    blind = [replace(r, chance=0.9) for r in rows(0, defense=NOISE)]
    cell = cells(rows(15), blind)[NOISE]
    assert (cell.verdict, "small-gallery" in cell.flags) == (INCONCLUSIVE, True)


def test_the_guesses_of_many_attacks_do_not_clear_what_no_attack_clears():
    bare, told = [], []
    for number in range(5):
        for i in range(160):
            place = {"victim": i // 8, "position": i % 8, "image": f"i-{i}", "attack": f"A{number}()", "gallery": 160}
            bare.append(row(True, **place, chance=0.05, nearest_image=f"i-{i}"))
            hit = i % 12 == 0
            named = f"i-{i if hit else (i + 7 * number + 31) % 160}"
            told.append(row(False, **place, defense=NOISE, identified=hit, chance=0.05, nearest_image=named))
    cell = cells(bare, told)[NOISE]
    assert "too-few" in cell.flags
    assert cell.union.verdict == INCONCLUSIVE


@pytest.mark.parametrize("hits", [0, 1])
def test_images_of_one_update_are_one_trial_of_a_failure(hits):
    """32 images in batches of 8 are 4 updates: even without a success, up to 60 % may be reconstructed."""
    batches = [replace(r, victim=i // 8, position=i % 8) for i, r in enumerate(rows(0, 32, defense=NOISE))]
    batches = [replace(r, identified=i < hits) for i, r in enumerate(batches)]
    cell = cells(rows(20), batches)[NOISE]
    assert (cell.verdict, "too-few" in cell.flags) == (INCONCLUSIVE, True)
    assert cell.union.asr_excess == pytest.approx(0.602, abs=1e-3)


def test_images_left_out_of_the_control_make_no_sum_of_the_others():
    """Draws in which an update is zero without the defense, but not under noise."""
    told = [row(False, identified=True, victim=i, draw=d) for i in range(20) for d in range(2)]
    control = [replace(r, flags=("zero-gradient",)) if (r.victim, r.draw) == (0, 1) else r for r in told]
    failed = [replace(r, identified=False, defense=NOISE, grants=("defense",)) for r in told]
    assert cells(control, failed)[NOISE].verdict == NO_LEAK


def test_a_missing_control_is_never_no_leak():
    (cell,) = summarize(rows(0, defense=NOISE))
    assert (cell.verdict, cell.control_asr) == (INCONCLUSIVE, None)
    assert "control-failed" in cell.flags


def test_the_control_is_of_the_same_attack():
    found = summarize([*rows(15, attack="iDLG()"), *rows(0, attack="DLG()"), *rows(0, attack="DLG()", defense=NOISE)])
    assert found[-1].verdict == INCONCLUSIVE


def test_leaking_under_a_defense_counts_even_if_the_control_failed():
    assert cells(rows(0), rows(15, defense=NOISE))[NOISE].verdict == LEAKS


@pytest.mark.parametrize("baseline", ["mean_image_ssim", "nearest_ssim"])
def test_a_success_that_a_guess_without_the_update_explains_is_no_leak(baseline):
    found = cells(rows(18, identified=None, scores={baseline: 0.95}))
    assert found[UNDEFENDED].verdict == INCONCLUSIVE
    assert found[UNDEFENDED].flags == ("control-failed", "prior-only")


def test_a_success_on_random_updates_too_is_no_leak():
    found = cells(rows(18, identified=None), random_update(8))
    assert found[UNDEFENDED].verdict == INCONCLUSIVE
    assert "prior-only" in found[UNDEFENDED].flags


def test_one_in_many_needs_confidence():
    """1 in 20 is above a baseline of 0, but not above a baseline of 5 %."""
    assert cells(rows(1, identified=None))[UNDEFENDED].verdict == LEAKS
    for hits, explained in ((1, 1), (4, 2)):  # 20 % of 20 are not surely more than 10 %
        lucky = [
            row(i < hits, victim=i, identified=None, scores={"nearest_ssim": 0.95 * (i < explained)}) for i in range(20)
        ]
        assert cells(lucky)[UNDEFENDED].verdict == INCONCLUSIVE


@pytest.mark.parametrize(("identified", "verdict"), [(1, INCONCLUSIVE), (3, LEAKS), (20, LEAKS)])
def test_identification_above_chance_leaks_without_a_single_success(identified, verdict):
    found = [row(False, victim=i, identified=i < identified) for i in range(20)]
    assert cells(found)[UNDEFENDED].verdict == verdict


def test_identification_must_beat_random_updates_too():
    found = [row(False, victim=i, identified=i < 10) for i in range(20)]
    control = [replace(r, identified=True) for r in random_update(0)]
    assert cells(found, control)[UNDEFENDED].verdict == INCONCLUSIVE


# --- flags --------------------------------------------------------------------------------------------------


def test_similar_but_not_read_back_is_not_prior_only():
    """Every guess is nearer than every baseline, though none succeeds: the update did reveal something."""
    found = cells(rows(0, ssim=0.7, identified=None), random_update())
    assert found[UNDEFENDED].flags == ("control-failed",)


@pytest.mark.parametrize(
    "scores", [{"mean_image_ssim": 0.7}, {"nearest_ssim": 0.71}, {"mean_image_ssim": 0.9, "nearest_ssim": None}]
)
def test_no_better_than_a_baseline_is_prior_only(scores):
    assert "prior-only" in cells(rows(0, ssim=0.7, identified=None, scores=scores))[UNDEFENDED].flags


def test_no_better_than_on_random_updates_is_prior_only():
    found = cells(rows(0, ssim=0.7, identified=None), random_update(ssim=0.7))
    assert "prior-only" in found[UNDEFENDED].flags


@pytest.mark.parametrize(("share", "raised"), [(10, False), (11, True)])
def test_not_converged_is_of_the_most(share, raised):
    found = [row(True, victim=i, flags=("not-converged",) if i < share else ()) for i in range(20)]
    assert ("not-converged" in cells(found)[UNDEFENDED].flags) is raised


@pytest.mark.parametrize(("share", "verdict"), [(0.5, NO_LEAK), (0.6, INCONCLUSIVE)])
def test_a_search_that_ran_out_of_its_budget_is_no_evidence_of_safety(share, verdict):
    bare, failed = rows(COUNT), rows(0, defense=NOISE)
    cut = [replace(one, flags=("out-of-budget",)) if i < share * COUNT else one for i, one in enumerate(failed)]
    found = cells(bare, cut)
    assert (found[NOISE].verdict, found[UNDEFENDED].verdict) == (verdict, LEAKS)
    assert ("out-of-budget" in found[NOISE].flags) is (verdict == INCONCLUSIVE)


@pytest.mark.parametrize(("count", "verdict"), [(0, NO_LEAK), (1, NO_LEAK), (10, INCONCLUSIVE), (11, INCONCLUSIVE)])
def test_nonfinite_is_flagged_at_once_and_decides_if_it_is_most(count, verdict):
    bad = [row(False, victim=i, defense=NOISE, flags=("nonfinite",) if i < count else ()) for i in range(20)]
    cell = cells(rows(15), bad)[NOISE]
    assert cell.nonfinite == count / 20
    assert ("nonfinite" in cell.flags) is (count > 0)
    assert cell.verdict == verdict


def test_server_side_is_flagged():
    found = cells(rows(15), rows(0, defense=NOISE), server_side=[NOISE])
    assert "server-side" in found[NOISE].flags
    assert "server-side" not in found[UNDEFENDED].flags


@pytest.mark.parametrize(
    ("record", "mismatch"),
    [
        ({"difference": 1e-7}, False),
        ({"difference": 0.1}, True),
        ({"difference": 0.1, "spread": 0.11}, False),
        ({"difference": 0.1, "spread": 0.09}, True),
        (None, False),
    ],
)
def test_a_record_of_something_else_is_inconclusive_not_safe(record, mismatch):
    found = cells(rows(15), rows(0, defense=RECORDED), record=record)
    assert ("record-mismatch" in found[RECORDED].flags) is mismatch
    assert found[RECORDED].verdict == (INCONCLUSIVE if mismatch else NO_LEAK)
    assert "record-mismatch" not in found[UNDEFENDED].flags


def test_a_record_that_leaks_leaks_whatever_differs():
    found = cells(rows(15), rows(15, defense=RECORDED), record={"difference": 0.5})
    assert found[RECORDED].verdict == LEAKS
    assert found[RECORDED].flags == ("record-mismatch",)


# --- naive and adaptive ---------------------------------------------------------------------------------------


def told_apart(naive, adaptive):
    found = summarize([*rows(15), *rows(naive, defense=NOISE, grants=()), *rows(adaptive, defense=NOISE)])
    return {cell.knows_defense: cell for cell in found}


def test_naive_and_adaptive_are_two_cells_with_their_difference():
    found = told_apart(0, 12)
    assert list(found) == [None, False, True]
    assert (found[False].asr.value, found[True].asr.value) == (0.0, 0.6)
    assert (found[False].verdict, found[True].verdict) == (INCONCLUSIVE, LEAKS)
    assert found[True].false_security_asr.value == pytest.approx(0.6)
    low, high = found[True].false_security_asr.low, found[True].false_security_asr.high
    assert 0 < low < 0.6 < high < 1
    assert found[False].false_security_asr.value is None
    assert found[None].false_security_asr.value is None
    assert told_apart(12, 0)[True].false_security_asr.value == pytest.approx(-0.6)


@pytest.mark.parametrize("naive", [0, 5, 20])
@pytest.mark.parametrize("adaptive", [0, 1, 20])
def test_the_interval_of_a_difference_holds_it_and_is_possible(naive, adaptive):
    cell = told_apart(naive, adaptive)[True]
    low, high = cell.false_security_asr.low, cell.false_security_asr.high
    assert -1 <= low <= cell.false_security_asr.value <= high <= 1
    assert high - low > 0.1  # twenty images never show it exactly


def test_without_a_naive_run_there_is_no_difference():
    (_, cell) = summarize([*rows(15), *rows(12, defense=NOISE)])
    assert cell.false_security_asr.value is None
    assert cell.knows_defense is True


# --- the defense, judged on all its attacks together ------------------------------------------------------------


def spread(share: int, attacks: int = 5, count: int = 40) -> list[Finding]:
    """Return the rows of attacks that each reconstruct `share` images, all different."""
    found = []
    for a in range(attacks):
        hits = range(a * share, (a + 1) * share)
        found += [row(i in hits, victim=i, image=f"i-{i}", attack=f"A{a}()", defense=NOISE) for i in range(count)]
    return found


def controls(attacks: int = 5, count: int = 40) -> list[Finding]:
    return [r for a in range(attacks) for r in rows(count, count, attack=f"A{a}()")]


def test_an_image_counts_as_read_if_any_attack_read_it():
    baseline = {"scores": {"mean_image_ssim": 0.3, "nearest_ssim": 0.3}}
    found = [replace(r, scores=r.scores | baseline["scores"]) for r in [*controls(), *spread(6)]]
    cells_ = [cell for cell in summarize(found) if cell.defense == NOISE]
    union = cells_[0].union
    assert all(cell.union is union for cell in cells_)
    assert (union.attacks, union.images, union.updates, union.asr.value) == (5, 40, 40, 30 / 40)
    assert union.verdict == LEAKS


def test_attacks_that_read_too_little_one_by_one_leak_together():
    """Each re-identifies 3 in 40, which chance (5 %) explains; together they re-identify 15, and only 5 % are named."""
    found = []
    for a in range(5):
        found += rows(40, 40, attack=f"A{a}()")
        found += [
            row(victim=i, image=f"i-{i}", identified=i // 3 == a, attack=f"A{a}()", defense=NOISE, chance=0.05,
                gallery=20, nearest_image=f"i-{i}" if i // 3 == a else "i-0") for i in range(40)
        ]  # fmt: skip
    cells_ = [cell for cell in summarize(found) if cell.defense == NOISE]
    assert LEAKS not in {cell.verdict for cell in cells_}
    assert cells_[0].union.verdict == LEAKS
    assert cells_[0].union.leaks_by == ("recognized",)


def test_guesses_that_point_everywhere_recognize_by_chance():
    """Twenty attacks that each name another of twenty images re-identify every one, which shows nothing."""
    found = []
    for a in range(20):
        found += rows(20, 20, attack=f"A{a}()")
        found += [
            row(victim=i, image=f"i-{i}", identified=i == a, attack=f"A{a}()", defense=NOISE, gallery=20, chance=0.05,
                nearest_image=f"i-{a}") for i in range(20)
        ]  # fmt: skip
    union = summarize(found)[-1].union
    assert (union.identified.value, union.identified_floor, union.leaks_by) == (1.0, 1.0, ())


def test_every_attack_must_fail_and_one_that_works_must_be_told():
    told, naive = rows(0, attack="A()", defense=NOISE), rows(0, attack="B()", defense=NOISE, grants=())
    both = [*rows(20, attack="A()"), *rows(20, attack="B()")]
    assert summarize([*both, *told, *naive])[-1].union.verdict == NO_LEAK
    assert summarize([*both, *naive])[-1].union.verdict == INCONCLUSIVE
    hit = [replace(r, success=i < 4) for i, r in enumerate(naive)]
    assert summarize([*both, *told, *hit])[-1].union.verdict == LEAKS


def test_a_leak_among_many_cells_must_pass_holm_s_correction():
    """3 in 20 re-identified against 2 % has p = 0.007: enough alone, not among forty cells without a leak."""
    lucky = [row(victim=i, image=f"i-{i}", identified=i < 3) for i in range(20)]
    assert cells(lucky)[UNDEFENDED].verdict == LEAKS
    many = [r for a in range(40) for r in rows(0, attack=f"A{a}()", gallery=50)]
    assert summarize([*lucky, *many])[0].verdict == INCONCLUSIVE


# --- what keeps a failure from being evidence --------------------------------------------------------------------


def test_in_a_small_gallery_recognition_decides_nothing():
    told = [row(victim=i, identified=True, gallery=19, chance=1 / 19) for i in range(19)]
    assert cells(told)[UNDEFENDED].verdict == INCONCLUSIVE
    cell = cells(rows(20), rows(0, defense=NOISE, gallery=19, identified=False))[NOISE]
    assert (cell.verdict, cell.flags) == (INCONCLUSIVE, ("prior-only", "small-gallery"))


def test_recognition_must_beat_the_mean_image_in_pairs():
    scores = {"mean_image_identified": 1.0}
    told = [row(victim=i, image=f"i-{i}", identified=i < 10, scores=scores if i < 10 else {}) for i in range(20)]
    cell = cells(told)[UNDEFENDED]
    assert (cell.identified_mean_image.value, cell.verdict) == (1.0, INCONCLUSIVE)
    better = [replace(r, scores=r.scores | {"mean_image_identified": float(i < 1)}) for i, r in enumerate(told)]
    assert cells(better)[UNDEFENDED].leaks_by == ("recognized",)


def test_what_is_recognized_above_its_floor_must_be_below_the_tolerance_too():
    """2 in 20 re-identified: up to 32 %, where chance explains 2 %."""
    found = [row(victim=i, image=f"i-{i}", identified=i < 2, defense=NOISE) for i in range(20)]
    cell = cells(rows(20), found)[NOISE]
    assert (cell.verdict, "too-few" in cell.flags) == (INCONCLUSIVE, True)
    assert cell.union.updates_needed > 20


def test_a_reading_among_the_candidates_keeps_a_failure_from_being_evidence():
    found = [row(victim=i, defense=NOISE, scores={"ssim_worst": 0.95}) for i in range(20)]
    cell = cells(rows(20), found)[NOISE]
    assert (cell.verdict, "worst-candidate" in cell.flags) == (INCONCLUSIVE, True)


@pytest.mark.parametrize(
    ("found", "flag"),
    [
        ({"changes": True, "silent": True, "problems": []}, "undisclosed"),
        ({"changes": True, "silent": False, "problems": ["it tells of noise that is not there"]}, "misdisclosed"),
    ],
)
def test_the_failure_against_a_defense_that_says_nothing_or_lies_is_inconclusive(found, flag):
    for grants in ((), ("defense",)):
        cell = cells(rows(20), rows(0, defense=NOISE, grants=grants), disclosure={NOISE: found})[NOISE]
        assert (cell.verdict, cell.union.verdict) == (INCONCLUSIVE, INCONCLUSIVE)
        assert flag in cell.flags
    assert cells(rows(20), rows(9, defense=NOISE), disclosure={NOISE: found})[NOISE].verdict == LEAKS


def test_a_defense_that_changes_nothing_need_not_be_told():
    same = {NOISE: {"changes": False, "silent": False, "problems": []}}
    cell = cells(rows(20), rows(0, defense=NOISE, grants=()), disclosure=same)[NOISE]
    assert (cell.verdict, cell.knows_defense) == (NO_LEAK, None)


def test_two_cells_of_a_defense_that_changes_nothing_are_told_apart():
    """An encryption error of 1e-9 is disclosed, and tested naively and adaptively, but has no visible effect."""
    both = [*rows(0, defense=NOISE, grants=()), *rows(0, defense=NOISE, grants=("defense",))]
    found = summarize([*rows(20), *both], Context(disclosure={NOISE: {"changes": False, "silent": False}}))
    assert [cell.knows_defense for cell in found] == [None, False, True]


def test_labels_are_judged_by_the_same_rules():
    labels = [row(victim=i, label=i % 2, label_guess=i % 2, defense=NOISE) for i in range(20)]
    found = cells(rows(20), labels)[NOISE]
    assert (found.label_accuracy.value, found.label_verdict) == (1.0, LEAKS)
    constant = [replace(r, label_guess=0) for r in labels]
    assert cells(rows(20), constant)[NOISE].label_verdict == INCONCLUSIVE
    assert cells(rows(20), [replace(r, label_guess=None) for r in labels])[NOISE].label_verdict is None
    granted = [replace(r, grants=("labels", "defense")) for r in labels]
    assert cells(rows(20), granted)[NOISE].label_verdict is None


def test_patients_are_judged_by_the_same_rules():
    pairs = [replace(r, patient=f"p-{i // 2}") for i, r in enumerate(rows(0, 40, defense=NOISE))]
    told = cells(rows(20), pairs)[NOISE].by_patient
    assert (told.patients, told.verdict) == (20, NO_LEAK)
    few = cells(rows(20), pairs[:20])[NOISE].by_patient
    assert (few.patients, few.verdict) == (10, INCONCLUSIVE)
    some = [replace(r, success=i == 0) for i, r in enumerate(pairs)]
    assert cells(rows(20), some)[NOISE].by_patient.verdict == LEAKS
