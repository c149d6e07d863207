"""The tables' lines, at sizes that take a few seconds."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch.func import jacfwd

from benchmarks import __main__ as command
from benchmarks import (
    adaptive,
    capacity,
    conditioning,
    contested,
    deep,
    engines,
    filters,
    kills,
    label_counts,
    memory,
    overhead,
    recipes,
    separation,
    small_networks,
    sources,
    step_orders,
    trained,
    vit_limits,
)
from benchmarks.contested import CELLS, Tally
from benchmarks.peers import Outcome
from benchmarks.scenes import scene
from medpfl.attacks import DeepRGAP, GradInv, iDLG
from medpfl.attacks.matching.label_targets import label_vectors
from medpfl.attacks.matching.objectives import SquaredDistance
from medpfl.core.roles import Attack
from medpfl.core.types import Batch, Reconstruction
from medpfl.data import ImageFolder
from medpfl.federated.local import local_update
from medpfl.models import LeNet

pytestmark = pytest.mark.extra

LABEL = torch.tensor([0])


@pytest.fixture
def no_peer(monkeypatch):
    for module in (contested, deep):
        monkeypatch.setattr(module, "missing", lambda: "breaching is elsewhere")


@pytest.fixture
def no_chest(monkeypatch, tmp_path):
    monkeypatch.setattr(trained, "CHEST", tmp_path / "none.npz")


def test_recipe_rows_hold_both_sides(monkeypatch):
    monkeypatch.setitem(recipes.RECIPES, "iDLG", ("idlg", iDLG(steps=2), recipes.Normal(), False))
    monkeypatch.setattr(recipes, "textbook", lambda *_: SimpleNamespace(guess=torch.zeros(3, 32, 32), evaluations=17))
    monkeypatch.setattr(recipes, "available", lambda: ["samples"])
    head, row = recipes.lines(recipes.parsed(["--images", "3", "--textbook", "1", "--recipes", "iDLG"]))
    assert head.split()[:2] == ["set", "recipe"]
    assert row.split()[:4] == ["samples", "iDLG", "3", "0"]
    assert (row.split()[-3], row.split()[-1]) == ("17", "-")


def test_the_filters_table_is_followed_by_a_verdict_on_each():
    given = filters.parsed(["--images", "1", "--rates", "0.01", "--attacks", "iDLG(steps=2)", "--victims", "2"])
    _, row, empty, head, *verdicts = filters.lines(given)
    assert (row.split()[1], empty) == ("0.01", "")
    assert head.count("|") == 7
    specs = [line.split(" | ")[1].strip("`") for line in verdicts]
    assert specs == ["NoDefense()", *map(repr, filters.STOCK)]
    assert all(line.count("|") == 7 and line.endswith("inconclusive |") for line in verdicts)
    assert [line.split(" | ")[2] == "" for line in verdicts] == [True, False, False, False]
    assert list(filters.verdicts(filters.parsed(["--attacks"]), lambda: True)) == []


def test_the_separation_table_counts_what_was_read():
    words = "--sets samples --weights untrained --modes train --batches 2 --draws 1 --count 1 --pictures 0"
    _, head, row = separation.lines(separation.parsed(words.split()))
    cells = dict(zip([*head.split()[:6], "false", "labels", "depth"], row.split(), strict=False))
    assert cells == {
        "weights": "untrained",
        "set": "samples",
        "mode": "train",
        "batch": "2",
        "images": "2",
        "separated": "2",
        "false": "0",
        "labels": "2",
        "depth": "8",
    }


def test_the_table_of_label_counts_has_all_three_rules():
    words = "--sets samples --models ConvNet --batches 4 0 --trained 0 1 --draws 1 --count 2"
    _, head, *rows = label_counts.lines(label_counts.parsed(words.split()))
    assert [line[:52].split() for line in rows] == [
        ["ConvNet", "eval", *weights, *update]
        for weights in (["untrained"], ["1", "steps"])
        for update in (["batch", "of", "4"], ["5", "steps", "of", "4"])
    ]
    assert rows[0].split("of 4")[1].split()[:5] == ["2", "1.00", "[0.16,", "1.00]", "0.000"]
    assert head.split()[4:] == ["updates", "exact", "wrong", "noise", "wrong", "ratio", "wrong", "s"]
    _, _, late = label_counts.lines(label_counts.parsed([*words.split()[:6], "--trained", "0"]), lambda: False)
    assert late.endswith("not run: time is up")


def test_the_sources_table_has_no_false_read():
    _, *rows = sources.lines(sources.parsed(["--matrices", "2"]))
    counts = {row[:44].strip(): row[44:].split() for row in rows}
    assert list(counts) == list(sources.KINDS)
    assert all(number == "2" and false == "0" for number, _, _, false in counts.values())
    assert counts["dense"][2] == "0"
    assert counts["sparse"][1] == counts["sparse"][2]


def test_a_part_named_gets_its_own_words_and_none_runs_all_briefly(monkeypatch, capsys):
    def part(name):
        return SimpleNamespace(parsed=lambda words: words, lines=lambda words, *go_on: [f"{name} ran {words}"])

    for name in command.PARTS:
        monkeypatch.setitem(command.PARTS, name, part(name))
    command.main(["deep", "--images", "2"])
    assert capsys.readouterr().out == "deep ran ['--images', '2']\n"
    command.main([])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines() if "ran" in line] == list(command.QUICK)


def test_the_small_form_has_words_that_each_part_takes():
    for name, (_, words) in command.QUICK.items():
        command.PARTS[name].parsed(words.split())


def test_contested_without_its_peers_says_so_and_runs_ours(no_peer, monkeypatch):
    chosen = contested.parsed(["--sets", "samples", "--cells", "batch 2", "--ours", "GradInv", "--images", "4"])
    chosen.draws = 2
    monkeypatch.setitem(contested.OURS, "GradInv", GradInv(steps=1))
    reason, _, head, row, mean, last = contested.lines(chosen)
    assert "breaching is elsewhere" in reason
    assert head.split()[:3] == ["cell", "method", "images"]
    assert row.split()[:4] == ["batch", "2", "GradInv", "8"]  # two draws of two batches of two
    assert mean.split()[:5] == ["batch", "2", "mean", "image", "8"]
    assert "zero updates left out" in last


@pytest.mark.slow
def test_a_peer_gets_the_time_of_the_slowest_of_ours(monkeypatch):
    chosen, given = contested.parsed(["--sets", "samples", "--images", "2"]), []
    scenes = contested.scenes_of(CELLS["Laplace 1e-2"], "LeNet('idlg')", "train", chosen)

    def within(case, v, seconds, pace, least, seed):
        given.append((seconds, pace, least))
        return Outcome(case.batches[v], 1, 5, 0.5, 0.0)

    peer = SimpleNamespace(pace=lambda case: 0.25, within=within)
    monkeypatch.setitem(contested.PEERS, "perfect", peer)
    ours = {"short": iDLG(steps=1), "long": iDLG(steps=40)}
    tallies = contested.compare(scenes, ours, ["perfect"])
    assert given == [(pytest.approx(tallies["long"].seconds / 2), 0.25, contested.LEAST)] * 2
    assert tallies["perfect"].mean == pytest.approx(1.0)
    assert torch.cat(tallies["perfect"].named).all()
    assert tallies[contested.MEAN].seconds == 0.0
    assert (tallies["perfect"].seconds, tallies["perfect"].evaluations) == (1.0, 10)
    text = contested.verdict("cell", tallies, list(ours), ["perfect"], 3)
    assert "long - perfect: -" in text
    assert "3 zero updates left out" in text


def test_a_contested_cell_runs_on_other_models_with_gray_images(no_peer, monkeypatch):
    words = ["--models", "ConvNet()", "ConvNet(norm='batch')", "--gray", "--sets", "samples", "--images", "4"]
    chosen = contested.parsed([*words, "--cells", "batch 4", "--ours", "GradInv", "--theirs"])
    monkeypatch.setitem(contested.OURS, "GradInv", GradInv(steps=1))
    rows = [line for line in contested.lines(chosen) if "GradInv " in line]
    assert [row.split(", train, batch 4: ")[0] for row in rows] == ["ConvNet()", "ConvNet(norm='batch')"]
    ((case, known, mean),) = contested.scenes_of(CELLS["batch 4"], "ConvNet()", "train", chosen)
    assert case.seen.gray
    for images in (case.batches[0], known, mean[None]):
        assert torch.equal(images[:, :1].expand_as(images), images)


class Told(Attack):
    """An attack that returns white images if it knows the defense, otherwise black ones."""

    def __call__(self, seen, generator):
        told, count = float(seen.views[0].channel is not None), len(seen)
        zeros = torch.zeros(count)
        return Reconstruction(torch.full((count, 1, 3, 32, 32), told), None, zeros, zeros, zeros, ("stalled",) * count)


@pytest.mark.slow
@pytest.mark.parametrize("name", adaptive.DEFENSES)
def test_only_the_adaptive_side_is_told_of_each_defense(name, monkeypatch):
    monkeypatch.setitem(adaptive.OURS, "iDLG", Told())
    monkeypatch.setattr(adaptive, "scores", lambda guesses, batches: guesses.flatten(1).mean(1))
    chosen = adaptive.parsed(["--sets", "samples", "--images", "2", "--defenses", name, "--ours", "iDLG"])
    _, head, row = adaptive.lines(chosen)
    assert head.split()[:3] == ["defense", "attack", "images"]
    words = row.removeprefix(name).split()
    assert words[:3] == ["iDLG", "2", "0.00"]
    told = 0 if name == "none" else 1  # of no defense, there is nothing to be told
    assert words[5:7] == ["0.000", f"{told:.2f}"]
    assert words[9] == f"{told:.3f}"
    assert "time is up" in list(adaptive.lines(chosen, lambda: False))[-1]


@pytest.mark.parametrize("variant", conditioning.VARIANTS)
def test_each_change_of_the_recipe_has_a_row(variant):
    chosen = conditioning.parsed(["--sets", "samples", "--images", "2", "--steps", "8", "--variants", variant])
    _, head, row = conditioning.lines(chosen)
    assert head.split()[:3] == ["set", "variant", "images"]
    words = row.removeprefix(f"samples     {variant}").split()
    assert words[:3] == ["2", "-", "(0)"]
    assert float(words[-2]) >= 9  # eight steps and the first evaluation, in each of its parts
    assert "time is up" in list(conditioning.lines(chosen, lambda: False))[-1]


def test_steps_until_a_score_are_those_of_the_images_that_reach_it():
    course = torch.tensor([[0.1, 0.1, 0.1], [0.95, 0.2, 0.1], [0.8, 0.3, 0.2], [0.99, 0.9, 0.3]])
    assert conditioning.reached(course, 0.9) == "1 (2)"
    assert conditioning.reached(course, 0.995) == "- (0)"


@pytest.mark.slow
def test_a_gauss_newton_diagonal_is_that_of_the_jacobian(monkeypatch):
    monkeypatch.setattr(conditioning, "_PROBES", 400)
    monkeypatch.setattr(conditioning, "_NEIGHBORS", 1)
    case = scene("samples", "idlg", 1, seed=0, size=8)
    seen, gray = case.seen, torch.full((1, *case.seen.image_shape), 0.5)
    view, labels = seen.views[0], label_vectors(seen, case.labels, gray)[0]
    weights = SquaredDistance().prepare({"sent": {k: t[0] for k, t in view.update.tensors.items()}})["weight"]

    def residuals(coordinates):
        images = conditioning.PLAIN.images(coordinates, 3)
        update = local_update(seen.model, Batch(images, labels), view.plan, view.weights).tensors
        return torch.cat([(update[k] * weights[k].sqrt()).flatten() for k in update])

    exact = torch.func.jacrev(residuals)(conditioning.PLAIN.coordinates(gray, 3)).square().sum(0)[0]
    assert (conditioning.diagonal(case) / exact).log().abs().mean() < 0.1


def test_a_tally_prints_an_images_share():
    tally = Tally([torch.tensor([1.0, 0.5])], [torch.tensor([True, False])], seconds=3.0, evaluations=40)
    assert tally.line("cell", "method").split() == [
        "cell",
        "method",
        "2",
        "0.50",
        "[0.01,",
        "0.99]",
        "0.750",
        "0.50",
        "20",
        "1.50",
    ]


def test_cells_are_what_they_say():
    def played(cell, count):
        chosen = contested.parsed(["--sets", "samples", "--images", str(count)])
        return CELLS[cell].scene("samples", 100, chosen, LeNet("idlg"), "train")

    averaging = played("FedAvg, 1 step of 4", 4)
    assert averaging.batches.shape[:2] == (1, 4)
    assert averaging.seen.views[0].update.kind == "difference"
    assert averaging.plan.steps == 1
    assert torch.equal(averaging.seen.labels, averaging.labels)
    clean, noisy = (played(n, 1) for n in ("FedAvg, 1 step", "Laplace 1e-2"))
    sent, gradient = (one.seen.views[0].update.tensors["7.weight"] for one in (clean, noisy))
    difference = gradient + sent / clean.plan.learning_rate
    assert difference.abs().mean() == pytest.approx(1e-2, rel=0.1)


def test_what_time_does_not_allow_is_named(no_peer):
    assert "batch 8              not run: time is up" in list(
        contested.lines(contested.parsed(["--cells", "batch 8"]), lambda: False)
    )
    assert list(memory.lines(memory.parsed([]), lambda: False)) == ["not run: time is up"]
    assert [r for r in deep.lines(deep.parsed([]), lambda: False) if "not run" in r] == [
        f"{part}: not run: time is up" for part in ("overhead", "untrained", "trained", "224")
    ]


@pytest.mark.slow
def test_deep_without_its_peer_runs_ours(no_peer, no_chest, monkeypatch):
    monkeypatch.setattr(trained, "available", lambda: ["samples"])
    monkeypatch.setattr(deep, "DeepRGAP", lambda: DeepRGAP(steps=2))
    words = ["--iterations", "1", "--training", "1", "--parts", "untrained", "trained", "--set", "samples"]
    _, _, _, solved, first, second, _ = deep.lines(deep.parsed(words))
    assert solved.split()[:5] == ["untrained,", "samples", "DeepRGAP", "1", "2"]
    assert first.split()[:4] == ["untrained,", "samples", "GradInv", "1"]
    assert second.startswith("trained on the samples, accuracy 0.")


def test_where_the_deep_solution_does_not_apply_the_row_says_so():
    case = trained.Case("wide", LeNet("idlg").build((3, 32, 32), 2, 0).eval(), torch.rand(1, 3, 32, 32), LABEL, 2)
    assert "DeepRGAP does not apply: " in deep.solved(case, deep.observed(case), None)


def test_the_duel_tells_the_share_of_time_in_which_ours_is_as_good(monkeypatch):
    ladder = {4: 0.1, 11: 0.1, 24: 0.5, 49: 0.6, 149: 0.7}  # SSIM by steps; a step and the last evaluation cost 0.1 s

    monkeypatch.setattr(deep, "observed", lambda case: SimpleNamespace(zero=0))
    monkeypatch.setattr(deep, "solved", lambda case, scene, theirs: "solved")
    monkeypatch.setattr(deep, "_theirs", lambda scene, n: (torch.tensor([0.55]), 15.0))
    monkeypatch.setattr(deep, "run", lambda scene, a, steps: (torch.tensor([ladder[steps]]), 0.1 * (steps + 1)))
    rows = list(deep.duel(SimpleNamespace(name="net"), GradInv(), 2000, True))
    assert len(rows) == 7
    assert rows[1] == "solved"
    assert rows[-1] == "net: the peer has SSIM 0.550; ours reaches it in 0.33 of its time"


def test_the_floor_and_the_engine_have_the_same_slope():
    case = scene("samples", "idlg", 1, seed=0)
    image = torch.rand(case.truths.shape, generator=torch.Generator().manual_seed(0))
    assert overhead.disagreement(case, image) < 1e-3
    assert "overhead: floor" in overhead.overhead(case, rounds=1, steps=1)


def test_memory_takes_images_that_differ(tmp_path):
    memory.draw(tmp_path, 30)
    data = ImageFolder(tmp_path, 32).load()
    assert len(data) == len(data.images.flatten(1).unique(dim=0)) == 30
    assert len(data.classes) == 4
    assert data.shape == (3, 32, 32)


def test_memory_compares_the_peaks(monkeypatch):
    monkeypatch.setattr(memory, "peaks", lambda images, steps, _: (500.0 + images / 10, 0.0, 0.0, images * 0.2))
    *rows, last = memory.lines(memory.parsed([]))
    assert len(rows) == 2
    assert "1000 images, 3 steps each: 600 MiB (200 s, 200 ms an image)" in rows[1]
    assert last == "ratio 1.18 (the mark is 1.2)"


@pytest.mark.slow
def test_a_process_of_its_own_tells_its_peak():
    peak, _, _, seconds = memory.peaks(12, 1)
    assert 100 < peak < 20_000  # MiB; torch alone is hundreds
    assert seconds > 0


def test_capacity_rows_compare_the_count_with_what_is_read():
    _, head, *rows, last = capacity.lines(capacity.parsed(["--cases", "6"]))
    assert head.split()[:3] == ["network", "norm", "mode"]
    assert len(rows) == 6
    assert rows[4].split()[-6:-1] == ["4.first.0", "2.first.0", "4.first.0", "2.first.0", "right"]
    right = sum(row.split()[-2] == "right" for row in rows)
    assert last.startswith(f"right: {right} of 6; ")
    assert right >= 3


def test_capacity_rows_beyond_the_time_are_named():
    _, _, *rows, last = capacity.lines(capacity.parsed(["--cases", "2"]), lambda: False)
    assert all(row.endswith("not run: time is up") for row in rows)
    assert last.startswith("right: 0 of 0")


@pytest.fixture
def limits():
    words = ["--model", "ViT(8, depth=1, width=12)", "--sets", "samples", "--size", "16", "--batches", "1", "2"]
    return vit_limits.parsed([*words, "--noise", "0.1", "--steps", "3"])


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # in torch's forward mode
def test_limits_rows_hold_ranks_and_searches(limits):
    _, head, one, two, second, *rows = vit_limits.lines(limits)
    assert head.split()[:5] == ["set", "batch", "equations", "pixels", "rank"]
    assert [row.split()[1] for row in (one, two)] == ["1", "2"]
    assert [row.split()[3:5] for row in (one, two)] == [["256", "256"], ["512", "512"]]
    assert second.split()[:3] == ["set", "batch", "start"]
    assert [row.split()[1:3] for row in rows] == [["1", "0.1"], ["1", "own"], ["2", "0.1"], ["2", "own"]]
    near, far = ([float(row.split()[7]) for row in rows[i::2]] for i in (0, 1))
    assert all(one < other for one, other in zip(near, far, strict=True)), "the truth explains the update"
    late = [line for line in vit_limits.lines(limits, lambda: False) if "not run" in line]
    assert late[0] == "samples: not run: time is up"
    assert len(late) == 1 + len(rows)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # in torch's forward mode
def test_a_sketch_keeps_rank_and_condition(limits):
    case = vit_limits.scene("samples", 1, limits)
    (made,), size = vit_limits.sketched(case)
    view = conditioning.in_double(case.seen).views[0]

    def update(images):
        tensors = local_update(case.seen.model, Batch(images, case.labels[0]), view.plan, view.weights).tensors
        return torch.cat([t.flatten() for t in tensors.values()])

    exact = jacfwd(update)(case.batches[0].double()).flatten(1)
    assert exact.shape == (size, 256)
    true, found = (torch.linalg.svdvals(matrix) for matrix in (exact, made))
    assert int((found > 1e-10 * found[0]).sum()) == torch.linalg.matrix_rank(exact, rtol=1e-10)
    assert ((found / true).log().abs() < 1).all()


def test_small_networks_rows_hold_certificates_and_scores(monkeypatch):
    options = ["--sets", "samples", "--networks", "MLP()", "--batches", "2", "130", "--draws", "1", "--count", "1"]
    _, head, row, refused = small_networks.lines(small_networks.parsed([*options, "--size", "16"]))
    assert head.split()[:2] == ["network", "weights"]
    assert row.split()[:6] == ["MLP()", "untrained", "samples", "train", "2", "Separation"]
    assert row.split()[6:10] == ["2", "2", "0", "2"]
    assert "130" in refused


@pytest.mark.parametrize("order", ["unknown", "granted"])
def test_step_order_rows_hold_rates_and_sequences(order):
    given = ["--sets", "samples", "--models", "LeNet", "--orders", order, "--images", "2", "--draws", "1"]
    _, head, row = step_orders.lines(step_orders.parsed([*given, "--steps", "4"]))
    assert head.split()[:4] == ["set", "model", "rate", "steps"]
    assert row.split()[:6] == ["samples", "LeNet", "0.01", "2", order, "2"]
    labels, ordered = row.split()[-3:-1]
    assert labels in ("0/1", "1/1")
    assert order == "unknown" or (labels, ordered) == ("1/1", "1/1")


def test_the_peak_of_workers_is_seen():
    driver, worker, together, _ = memory.peaks(12, 1, 2)
    assert min(driver, worker) > 100
    assert driver < together < driver + 3 * worker, "what processes share counts once"


def test_a_row_that_is_lost_or_there_twice_or_changed_after_a_kill_is_counted():
    names = ("control", "attack", "defense", "draw", "stack", "victim", "position", "grants")
    rows = [{**dict.fromkeys(names, 0), "victim": victim, "ssim": 0.5} for victim in range(4)]
    right = kills.compared(rows[::-1], rows)
    assert (right["rows"], right["lost"], right["twice"], right["changed"]) == (4, 0, 0, 0)
    wrong = kills.compared([rows[0], rows[1], rows[1], {**rows[2], "ssim": 0.6}], rows)
    assert (wrong["rows"], wrong["lost"], wrong["twice"], wrong["changed"]) == (4, 1, 1, 1)


def test_a_process_that_a_program_left_is_found_until_it_has_ended(tmp_path):
    audit = kills.Audit(tmp_path, tmp_path / "out", "inline")
    name, _, value = audit.mark.partition("=")
    waits = [sys.executable, "-c", "input()"]
    with subprocess.Popen(
        waits, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, env={name: value}, start_new_session=True,
        preexec_fn=kills.hear_interrupts,  # noqa: PLW1509 (no thread runs here)
    ) as process:  # fmt: skip
        assert audit.left() == [process.pid]
        assert kills.ended(process)
        assert process.returncode not in (None, 0)
    assert audit.left() == []
    assert kills.Audit(tmp_path, tmp_path / "other", "inline").mark != audit.mark


def test_processor_time_is_that_of_each_crew_s_busiest_worker():
    clock = engines.Clock()
    for used in ({}, {1: 0.5, 2: 1.0}, {1: 3.0, 2: 2.0}, {2: 2.5}, {}, {3: 4.0}):
        clock.note(used)
    assert clock.of_workers == 7.0
    assert engines._processor(os.getpid()) > 0


def test_only_a_process_of_ones_own_is_killed():
    assert not kills.kill([], random.Random(0))
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert process.pid in memory.children(os.getpid())
        assert kills.kill([process.pid], random.Random(0))
    assert process.returncode == -signal.SIGKILL
