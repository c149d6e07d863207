"""Federated training: its rows, its refusals, its notes on gaps, and its continuation after a stop."""

from __future__ import annotations

import json
import os
import pickle
import signal
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from medpfl import InputError, Plan
from medpfl.core.experiments.groups import Cohort
from medpfl.core.experiments.schedule import Schedule
from medpfl.data.images import LabelledImages
from medpfl.data.on_disk import OnDisk
from medpfl.data.partition import Dirichlet, Partition
from medpfl.defenses import DPSGD, NoDefense, SecAggPlus, TopK
from medpfl.engines.sending import packed
from medpfl.models import MLP
from medpfl.training.setup import TrainingSetup
from medpfl.training.splits import splits_of
from medpfl.training.trainer import Trainer
from medpfl.training.work import ClientWork
from tests.auditing.audit_cases import some_images
from tests.training.training_cases import SMALL, plainly, small

pytestmark = pytest.mark.usefixtures("no_pages")

DEFENSES = [
    "NoDefense",
    "TopK(keep=0.2, feedback=True)",
    "Signs",
    "ClientDP(clip=0.5, noise=1.0)",
    "DPSGD(clip=1.0, noise=0.5)",
    "SecAggPlus(max_weight=16.0) | GaussianNoise(scale=0.01)",
    "PRECODE(width=4)",
    "Soteria(prune=0.3)",
]


def test_a_row_for_each_round_and_one_before():
    rows = small(test=some_images(10, seed=1)).rows
    assert [row.round for row in rows] == [0, 1, 2, 3]
    assert [row.clients for row in rows] == [(), (0, 1), (0, 1), (0, 1)]
    assert (rows[0].update_norm, rows[0].bytes_sent, rows[0].images) == (0, 0, 0)
    for row in rows[1:]:
        assert row.update_norm > 0
        assert row.sent_norm > 0
        assert row.bytes_sent > 2 * 1000, "most of 1,562 weights a client; some hidden units may be dead"
        assert row.images == 16, "19 or 20 are left by the holdout, in whole batches of each client"
        assert set(row.scores) == {"validation", "test"}
        assert row.scores["test"]["images"] == 10
        assert row.epsilon is None


@pytest.mark.slow
def test_it_learns_what_can_be_learned():
    data = some_images(60)
    data = replace(data, images=(data.images * 0.5 + 0.5 * data.labels.view(-1, 1, 1, 1)).clamp(0, 1))
    for part in ("IID(clients=3)", "Dirichlet(alpha=0.5, clients=3)"):
        rows = small(data, rounds=12, clients=None, partition=part, model="MLP(hidden=(32,))").rows
        assert rows[-1].scores["validation"]["balanced_accuracy"] > 0.9
        assert rows[-1].scores["validation"]["auroc"] > 0.9
        assert rows[-1].scores["validation"]["loss"] < rows[0].scores["validation"]["loss"] / 2


@pytest.mark.slow
def test_the_seed_repeats_it_and_another_does_not():
    one, again, other = (plainly(small(seed=s, fraction=0.5, clients=4).rows) for s in (0, 0, 1))
    assert one == again
    assert one != other
    assert {len(row["clients"]) for row in one[1:]} == {2}


@pytest.mark.slow
@pytest.mark.parametrize("defense", DEFENSES)
def test_stopped_in_a_round_it_ends_with_the_same_rows_and_weights(defense, tmp_path, monkeypatch, ctrl_c):
    options = {"defense": defense, "server_momentum": 0.5, "fraction": 0.7, "clients": 3, "seed": 3}
    whole = small(out=tmp_path / "runs" / "whole", **options)
    out, played, play = tmp_path / "runs" / "stopped", [], Trainer._closed

    def stop(self, number, work):
        done = play(self, number, work)
        played.append(number)
        if len(played) in (2, 4):
            ctrl_c()
        return done

    monkeypatch.setattr(Trainer, "_closed", stop)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            small(out=out, **options)
    last = small(out=out, **options)
    assert played == [1, 2, 2, 3, 3], "only the round that was stopped is played again"
    assert plainly(last.rows) == plainly(whole.rows)
    for name, value in whole.weights.parameters.items():
        assert torch.equal(last.weights.parameters[name], value)
    assert plainly(small(**options).rows) == plainly(whole.rows), "nor does a directory change anything"


@pytest.mark.slow
@pytest.mark.parametrize("defense", ["TopK(keep=0.2, feedback=True)", "PRECODE(width=4)"])
def test_workers_train_the_same_weights(defense):
    """Three clients and two workers, so that each keeps its work for several clients and rounds."""
    options = {"defense": defense, "server_momentum": 0.5, "clients": 3, "augment": True}
    here, one, two = (
        small(**options, engine=engine, workers=workers)
        for engine, workers in (("inline", None), ("processes", 1), (None, 2))
    )
    assert plainly(here.rows) == plainly(one.rows) == plainly(two.rows)
    for group in ("parameters", "buffers"):
        for name, value in getattr(here.weights, group).items():
            for other in (one, two):
                assert torch.equal(getattr(other.weights, group)[name], value)
    assert [found.settings["engine"] for found in (here, one, two)] == [
        "inline, 1 thread", "processes, 1 worker, 1 thread each", "processes, 2 workers, 1 thread each",
    ]  # fmt: skip


@dataclass(frozen=True, repr=False)
class Deadly(NoDefense):
    """Ends the process of the first client in the second round while a file is there."""

    place: str = ""

    def update(self, value, state, generator):
        """Count the rounds."""
        rounds = state.get("rounds", 0) + 1
        if rounds == 2 and Path(self.place).exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return value, {"rounds": rounds}


@pytest.mark.slow
def test_a_client_whose_worker_ends_each_time_ends_the_training_which_continues(tmp_path):
    mark, out = tmp_path / "mark", tmp_path / "runs" / "a"
    mark.touch()
    options = {"defense": Deadly(str(mark)), "workers": 2, "out": out}
    with pytest.raises(InputError, match=r"round 2 could not be finished, because client \d was not trained: its work"):
        small(**options)
    mark.unlink()
    assert plainly(small(**options).rows) == plainly(small(defense=Deadly(str(mark))).rows)


@pytest.mark.slow
def test_killed_before_its_row_is_written_a_round_is_played_again(tmp_path):
    out = tmp_path / "runs" / "a"
    whole = small(out=out, defense="TopK(keep=0.2, feedback=True)")
    lines = (out / "share/rounds.jsonl").read_bytes().splitlines(keepends=True)
    (out / "share/rounds.jsonl").write_bytes(b"".join(lines[:3]) + lines[3][:40])
    again = small(out=out, defense="TopK(keep=0.2, feedback=True)")
    assert plainly(again.rows) == plainly(whole.rows)
    assert again.rows[2] == whole.rows[2]


@pytest.mark.slow
def test_rows_count_up_to_the_first_that_is_missing(tmp_path):
    out = tmp_path / "runs" / "a"
    whole = small(out=out)
    lines = (out / "share/rounds.jsonl").read_bytes().splitlines(keepends=True)
    (out / "share/rounds.jsonl").write_bytes(b"".join([*lines[:2], lines[3]]))
    again = small(out=out)
    assert [row.round for row in again.rows] == [0, 1, 2, 3]
    assert plainly(again.rows) == plainly(whole.rows)


@pytest.mark.slow
def test_a_finished_training_is_prolonged(tmp_path):
    out = tmp_path / "runs" / "a"
    first = small(out=out, rounds=2)
    longer = small(out=out, rounds=4)
    assert longer.rows[:3] == first.rows
    assert plainly(longer.rows) == plainly(small(rounds=4).rows)
    assert not (out / "round-0" / "state.safetensors").exists(), "states are private, and only the last are needed"
    assert (out / "round-4" / "state.safetensors").stat().st_mode & 0o777 == 0o600


@pytest.mark.slow
def test_another_training_is_not_continued(tmp_path):
    out = tmp_path / "runs" / "a"
    small(out=out)
    for other in ({"seed": 1}, {"model": "MLP(hidden=(7,))"}, {"defense": "Signs"}, {"decay": 0.5}, {"augment": True}):
        with pytest.raises(InputError, match=r"holds another training \(other .*--force to discard it"):
            small(out=out, **other)
    assert small(out=out, seed=1, force=True).rows[0].seed == 1
    assert len(list(out.glob("round-*"))) == 4


def test_decay_and_the_plan_reach_the_clients(monkeypatch):
    plans, work = [], TrainingSetup.work
    monkeypatch.setattr(TrainingSetup, "work", lambda self, c, n: plans.append((w := work(self, c, n)).plan) or w)
    small(decay=0.5, clients=4, plan=Plan("FedAvg", batch_size=4, local_images=8, epochs=2, learning_rate=0.2))
    assert [plan.learning_rate for plan in plans[::4]] == [0.2, 0.1, 0.05]
    assert {plan.images for plan in plans} == {4}, "a client has 4 or 5 images, and takes a whole batch"
    assert {plan.epochs for plan in plans} == {2}


def test_small_clients_have_a_batch_of_what_they_have():
    rows = small(plan=Plan("FedAvg", batch_size=50, learning_rate=0.1)).rows
    assert rows[-1].images == 19


def test_fedsgd_takes_a_batch_of_each_client():
    assert small(plan=Plan(batch_size=3, learning_rate=0.5)).rows[1].images == 6


def test_balanced_clients_draw_evenly(monkeypatch):
    data = some_images(40)
    data = replace(data, labels=(torch.arange(40) >= 32).long())
    seen, work = [], TrainingSetup.work
    monkeypatch.setattr(TrainingSetup, "work", lambda self, c, n: seen.append(w := work(self, c, n)) or w)
    small(data, balance=True, holdout=4)
    for one in seen:
        count = one.batch.labels.bincount(minlength=2)
        assert abs(int(count[0] - count[1])) <= 1
        common = one.batch.images[one.batch.labels == 0]
        assert len(common.unique(dim=0)) == len(common), "no image comes again before all of its class came"


@pytest.mark.slow
def test_clients_augment_their_images_anew_in_each_round(monkeypatch):
    kept, work = [[]], TrainingSetup.work

    def keep(self, client, number):
        if client == 0:
            kept.append([])
        kept[-1].append(work(self, client, number))
        return kept[-1][-1]

    monkeypatch.setattr(TrainingSetup, "work", keep)
    data = some_images(24)
    first, again = small(data, augment=True, rounds=2), small(data, augment=True, rounds=2)
    assert plainly(first.rows) == plainly(again.rows)
    assert first.settings["experiment"]["augmented"]
    kept = kept[1:]
    for batch in (one.batch for round_ in kept for one in round_):
        nearest = (batch.images[:, None] - data.images).abs().amax((2, 3, 4)).min(1).values
        assert nearest.min() > 0.01, "no image is as it was"
    changed = [torch.cat([one.batch.images for one in round_]).flatten(1) for round_ in kept]
    assert not torch.equal(changed[0].sum(1).sort().values, changed[1].sum(1).sort().values)
    assert torch.equal(changed[0], changed[2])


def test_poisson_clients_have_the_same_images_in_every_round(monkeypatch):
    seen, work = {}, TrainingSetup.work
    keep = lambda self, c, n: seen.setdefault(c, []).append((w := work(self, c, n)).batch.images) or w  # noqa: E731
    monkeypatch.setattr(TrainingSetup, "work", keep)
    result = small(plan=Plan("FedAvg", batch_size=4, sampling="poisson"))
    for images in seen.values():
        assert all(torch.equal(images[0], other) for other in images[1:])
    assert any("images that fill no whole batch are never used" in note for note in result.settings["notes"])


# --- images on disk ---------------------------------------------------------------------------------------------


def disk_of(data: LabelledImages) -> tuple[LabelledImages, list[list[int]]]:
    """Return the same images, on disk, and a list of what is read of them."""
    reads: list[list[int]] = []

    def again(places):
        reads.append(places)
        yield from data.images[places]

    sums = [sha256(image.numpy().tobytes()).digest() for image in data.images]
    return replace(data, images=OnDisk(again, sums, data.shape)), reads


def test_images_on_disk_are_held_out_and_dealt_without_reading_them():
    held = some_images(24)
    disk, reads = disk_of(held)
    setups = [
        TrainingSetup(
            MLP((6,)), None, splits_of(data, Cohort(), 0), NoDefense(), Plan(), Dirichlet(clients=3), Schedule(), 0,
            torch.device("cpu"),
        )
        for data in (held, disk)
    ]  # fmt: skip
    one, other = (setup.clients for setup in setups)
    assert [own.tolist() for own in one] == [own.tolist() for own in other]
    sent = pickle.loads(packed(ClientWork(setups[1]))).setup
    assert [own.tolist() for own in vars(sent)["clients"]] == [own.tolist() for own in other], "dealt once"
    assert reads == []
    one, other = (setup.splits.judged["validation"].images for setup in setups)
    assert isinstance(other, OnDisk)
    assert other[:].equal(one)


def test_rows_are_the_same_for_images_on_disk():
    disk, reads = disk_of(some_images(24))
    assert plainly(small(disk).rows) == plainly(small().rows)
    assert reads


# --- epsilon --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_epsilon_is_that_of_the_client_that_took_part_most():
    plan, defense = Plan("FedAvg", batch_size=4, sampling="poisson", sends=("num_samples",)), DPSGD(1.0, 2.0)
    rows = small(plan=plan, defense=defense, fraction=0.5, rounds=4, seed=2).rows
    taken = [max(sum(client in row.clients for row in rows[: n + 1]) for client in (0, 1)) for n in range(5)]
    own = Plan("FedAvg", batch_size=4, local_images=8, sampling="poisson")
    assert rows[0].epsilon == (("image", 0.0),)
    for row, rounds in zip(rows[1:], taken[1:], strict=True):
        ((unit, epsilon),) = row.epsilon
        assert (unit, epsilon) == ("image", pytest.approx(defense.spent(own, rounds, 1e-5).value))
    assert taken[-1] < 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"balance": True}, "with --balance, an image may appear in several batches"),
        ({"model": "ConvNet(width=4, depth=1, norm='batch')"}, "would not cover the batch-norm statistics"),
    ],
)
def test_epsilon_that_does_not_cover_all_is_not_stated(options, why):
    result = small(defense="ClientDP(clip=1.0, noise=1.0)", **options)
    assert result.rows[-1].epsilon is None
    assert any(why in note for note in result.settings["notes"])


def test_without_accountants_the_gap_is_stated(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    result = small(defense="ClientDP(clip=1.0, noise=1.0)")
    assert result.rows[-1].epsilon is None
    assert any("epsilon is unknown: epsilon needs two accountants" in note for note in result.settings["notes"])


@pytest.mark.slow
def test_what_a_composition_promises():
    plan, dp = Plan(batch_size=4), DPSGD(1.0, 1.0)
    alone = dp.promises(plan, 3, 1e-5)
    assert (dp | TopK(keep=0.1)).promises(plan, 3, 1e-5) == alone, "what comes after changes nothing"
    assert (dp | SecAggPlus()).promises(plan, 3, 1e-5) == alone
    from medpfl.defenses import ClientDP, Mixup, NoDefense

    assert (Mixup() | dp).promises(plan, 3, 1e-5) == {}, "an image is in several mixtures"
    assert TopK().promises(plan, 3, 1e-5) == {}
    assert NoDefense().promises(plan, 3, 1e-5) == {}
    client = ClientDP(1.0, 9.0).promises(plan, 3, 1e-5)
    assert client["client"] < alone["image"]
    assert (dp | ClientDP(1.0, 9.0)).promises(plan, 3, 1e-5) == {**alone, **client}, (
        "numbers of two units do not compare"
    )
    assert (ClientDP(1.0, 3.0) | ClientDP(1.0, 9.0)).promises(plan, 3, 1e-5) == client, "the better of the two"


# --- bad input ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class NothingForTheLast(Partition):
    clients: int = 2

    def deal(self, data, generator):
        return (torch.arange(len(data)), torch.arange(0))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clients": 30}, r"more clients \(30\) than images \(19\)"),
        ({"partition": NothingForTheLast(), "clients": None}, "client 1 has no image"),
        ({"rounds": 0}, "rounds is 0"),
        ({"fraction": 0.0}, "fraction is 0.0: it must be a number above 0"),
        ({"decay": 1.5}, "decay is 1.5"),
        ({"server_momentum": 1.0}, "server_momentum is 1.0"),
        ({"delta": 0.0}, "delta is 0.0"),
        ({"holdout": 1}, "holdout is 1"),
        ({"holdout": 25}, r"one in 25 images cannot be held out \(more parts \(25\) than images \(24\)\)"),
        ({"defense": "TopK(keep=lin(0.1, 0.5, 3))"}, "is a sweep over 3 defenses"),
        ({"defense": "Laplace"}, "did you mean 'LaplaceNoise'"),
        ({"model": "ConvNet(width=4, depth=1, norm='batch')", "defense": "DPSGD"}, "no per-sample gradients"),
        ({"defense": "SecAggPlus", "clients": 1}, "needs two clients or more"),
        ({"defense": "SecAggPlus(max_weight=4.0)"}, r"it must be at most max_weight \(4\)"),
        ({"balance": True, "plan": Plan("FedAvg", batch_size=4, sampling="poisson")}, "balance repeats images"),
        ({"validation": some_images(6, classes=3)}, "has a class 'class 2' that the training images lack"),
        ({"weights": "none.safetensors"}, "there is no weights file"),
        ({"device": "cuda:99"}, "cannot be used here"),
        ({"plan": Plan("FedAvg", batch_size=4, epochs=10, learning_rate=1e6, momentum=1e6)}, "lower --learning-rate"),
    ],
)
def test_what_cannot_work_is_said(options, message):
    with pytest.raises(InputError, match=message):
        small(**options)


def test_patients_are_fewer_than_their_images():
    with pytest.raises(InputError, match=r"more clients \(5\) than patients \(4\)"):
        small(some_images(20, patients=[f"p{i % 5}" for i in range(20)]), clients=5)


def test_images_of_another_size():
    other = some_images(6)
    with pytest.raises(InputError, match=r"validation images have shape .*: set --size and --channels"):
        small(validation=replace(other, images=other.images[..., :12, :12]))


def test_gaps_are_stated():
    data = some_images(24)
    one_class = replace(some_images(8), labels=torch.zeros(8, dtype=torch.long))
    result = small(data, clients=None, partition="Dirichlet(alpha=0.01, clients=4)", validation=one_class)
    notes = result.settings["notes"]
    assert any("has no image of class" in note for note in notes)
    assert "all validation images belong to one class, so AUROC is undefined" in notes
    assert result.rows[-1].scores["validation"]["auroc"] is None
    assert "AUROC undefined (all images belong to one class)" in str(result)


@pytest.mark.slow
def test_held_out_patients_are_whole():
    data = some_images(40, patients=[f"p{i // 4}" for i in range(40)])
    setup_notes = small(data).settings["notes"]
    assert not any("are also in the training set" in note for note in setup_notes)
    shared = small(data, validation=some_images(4, patients=["p0", "p0", "x", "y"])).settings["notes"]
    assert any("1 patients of the validation set are also in the training set" in note for note in shared)


@pytest.mark.slow
def test_batch_norm_that_stays_at_the_clients_is_noted():
    norm = {"model": "ConvNet(width=4, depth=1, norm='batch')"}
    quiet = small(**norm, plan=replace(SMALL["plan"], sends=("num_samples",)))
    assert any("clients do not send batch-norm statistics" in note for note in quiet.settings["notes"])
    assert quiet.settings["notes"] != small(**norm).settings["notes"]


def test_the_summary_is_the_last_row(tmp_path):
    out = tmp_path / "runs" / "a"
    result = small(out=out)
    summary = json.loads((out / "share/summary.json").read_text())
    assert summary["round"] == 3
    assert summary["bytes_total"] == sum(row.bytes_sent for row in result.rows)
