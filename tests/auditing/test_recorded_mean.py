"""A record of the mean of several clients' updates, as the server of a secure aggregation learns it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import medpfl
from medpfl import InputError, Plan
from medpfl.cli import main
from medpfl.core.records.record import Record
from medpfl.core.types import Update
from medpfl.core.verdicts import RECORDED, UNDEFENDED
from medpfl.defenses import SecAggPlus
from medpfl.models import LeNet
from medpfl.recording.record import UpdateFacts, keep, make_record, state_of
from tests.auditing.audit_cases import OWN_ATTACK, Answers
from tests.flat import flat

PLAN = Plan("FedAvg", batch_size=1, local_images=2, learning_rate=0.2)


def images(client: int) -> torch.Tensor:
    return torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(client))


def trained(folder, client: int) -> tuple[dict, object]:
    """Train one client from the same weights; return its new state and its truth file."""
    model = LeNet("idlg").build((1, 16, 16), 2, seed=3)
    optimizer = torch.optim.SGD(model.parameters(), PLAN.learning_rate)
    with medpfl.record(folder / f"site-{client}", model, truth=True):
        for image, label in zip(images(client), (0, 1), strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(image[None]), torch.tensor([label])).backward()
            optimizer.step()
    (truth,) = (folder / f"site-{client}" / "private-truth").iterdir()
    return state_of(model), truth


def round_of(folder, clients: int = 3, change=None, **context):
    """Return the record of a mean, and the clients' truth files."""
    before = state_of(LeNet("idlg").build((1, 16, 16), 2, seed=3))
    made = [trained(folder, client) for client in range(clients)]
    mean = {name: torch.stack([state[name] for state, _ in made]).mean(0) for name in before}
    after = mean if change is None else change(before, mean, [state for state, _ in made])
    held = make_record(before, after, PLAN, facts=UpdateFacts(clients=clients, **context))
    return keep(folder / "mean", held).record, [truth for _, truth in made]


def look(record, truths, attack=None, **options):
    return flat(medpfl.audit_record, record, truths, "LeNet('idlg')", attacks=[attack or Answers()], **options)


@pytest.mark.slow
def test_a_mean_is_attacked_as_one_update_over_the_images_of_all_clients(tmp_path):
    record, truths = round_of(tmp_path)
    attack = Answers()
    report = look(record, truths, attack)
    assert report.settings.record["checked"] == "right"
    assert report.settings.record["difference"] < 1e-5
    cells = {cell.defense: cell for cell in report.summary}
    assert (cells[UNDEFENDED].images, cells[UNDEFENDED].clusters) == (6, 3)
    assert (cells[RECORDED].images, cells[RECORDED].clusters) == (6, 1)
    seen = attack.kept[-1]
    assert (seen.num_images, seen.views[0].plans) == (6, (PLAN,) * 3)
    for name, sent in Record.load(record).update.tensors.items():
        torch.testing.assert_close(seen.views[0].update.tensors[name][0], sent)
    assert any("the server gets the sum of 3 clients' updates" in note for note in report.settings.notes)


@pytest.mark.slow
@pytest.mark.usefixtures("shared")
def test_an_attack_in_a_process_of_its_own_gets_the_mean(tmp_path):
    (tmp_path / "own.py").write_text(OWN_ATTACK)
    record, truths = round_of(tmp_path / "made", 2, defense="SecAggPlus(max_weight=10.0)")
    apart, here = (look(record, truths, f"{tmp_path}/own.py:Mine", isolate=isolate) for isolate in (True, False))
    scores = [
        [(row.defense, row.control, row.knows_defense, row.scores["ssim"]) for row in report.rows]
        for report in (apart, here)
    ]
    assert scores[0] == scores[1]
    assert {row.knows_defense for row in here.rows if row.defense == RECORDED} == {True, False}


@pytest.mark.slow
def test_a_pattern_names_the_truth_files(tmp_path):
    record, _ = round_of(tmp_path, 2)
    report = look(record, f"{tmp_path}/site-*/private-truth/*")
    assert report.settings.record["checked"] == "right"


def test_the_number_of_clients_survives_the_file_and_old_files_hold_one(tmp_path):
    record, _ = round_of(tmp_path, 2)
    held = Record.load(record)
    assert (held.clients, held.images, held.update.num_samples, held.regular_plan()) == (2, 4, 4, PLAN)
    assert held.misfits() == []
    for odd in (0, True, "2", None, 10**9):
        replace(held, clients=odd).save(tmp_path / "odd.safetensors")
        with pytest.raises(InputError, match="clients"):
            Record.load(tmp_path / "odd.safetensors")
    assert {Record.load(path).clients for path in tmp_path.glob("site-*/*.safetensors")} == {1}


def doubled(before, mean, states):
    return {name: before[name] + 2 * (t - before[name]) for name, t in mean.items()}


def without_one(before, mean, states):
    return {name: torch.stack([state[name] for state in states[1:]]).mean(0) for name in before}


def noisy(before, mean, states):
    return {
        name: t + 0.1 * torch.randn(t.shape, generator=torch.Generator().manual_seed(1)) for name, t in mean.items()
    }


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (doubled, "it is 2 times the mean of the clients' updates: record the weights before and after the averaging"),
        (without_one, "client 1 of 3 is not in the mean"),
        (noisy, "it is not the mean of these clients' updates"),
    ],
)
def test_a_wrong_mean_stops_with_its_cause(tmp_path, change, cause):
    record, truths = round_of(tmp_path, change=change)
    with pytest.raises(InputError, match=f"the record is wrong, so no attack was run: {cause}"):
        look(record, truths)


def test_truth_files_of_other_clients_or_too_few(tmp_path):
    record, truths = round_of(tmp_path)
    with pytest.raises(InputError, match="the mean of 3 clients' updates, but --truth names 2 truth files"):
        look(record, truths[:2])
    with pytest.raises(InputError, match="give --truth their truth files"):
        look(record, str(tmp_path))
    single = next(tmp_path.glob("site-1/*.safetensors"))
    with pytest.raises(InputError, match="the record is 1 client's update, but --truth names 3 truth files"):
        look(single, truths)


@pytest.mark.slow
def test_the_rounding_of_a_stated_secure_aggregation_is_no_mismatch(tmp_path):
    sums = SecAggPlus(max_weight=10.0)

    def rounded(before, mean, states):
        sent = [
            Update({name: state[name] - before[name] for name in before}, "difference", num_samples=2)
            for state in states
        ]
        made = sums.exchange(sent, torch.Generator().manual_seed(9)).mean.tensors
        return {name: before[name] + t for name, t in made.items()}

    record, truths = round_of(tmp_path, change=rounded, defense=repr(sums))
    attack = Answers()
    report = look(record, truths, attack)
    assert report.settings.record["checked"] == "unverified"
    assert report.settings.record["defense"] == repr(sums)
    assert any("the rounding of SecAggPlus" in note for note in report.settings.notes)
    naive, informed = (kept.views[0] for kept in attack.kept[-2:])
    assert naive.channel is None
    told = sums.disclose(Record.load(record).update, PLAN).precision
    for name, precision in informed.channel.precision.items():
        torch.testing.assert_close(precision[0], told[name])
    assert {(cell.defense, cell.knows_defense) for cell in report.summary} >= {(RECORDED, False), (RECORDED, True)}
    assert not {"undisclosed", "misdisclosed"} & {flag for cell in report.summary for flag in cell.flags}
    held = Record.load(record)
    replace(held, defense="Clipping(1.0)").save(record)
    with pytest.raises(InputError, match="takes only a secure aggregation"):
        look(record, truths)


@pytest.mark.slow
def test_the_command_records_a_mean_from_two_checkpoints(tmp_path, capsys):
    before = state_of(LeNet("idlg").build((1, 16, 16), 2, seed=3))
    states = [trained(tmp_path, client)[0] for client in range(2)]
    mean = {name: torch.stack([state[name] for state in states]).mean(0) for name in before}
    torch.save(before, tmp_path / "before.pt")
    torch.save(mean, tmp_path / "after.pt")
    words = ["record", str(tmp_path / "before.pt"), str(tmp_path / "after.pt"), "--out", str(tmp_path / "mean")]
    plan = ["--learning-rate", "0.2", "--batch-size", "1", "--local-images", "2", "--clients", "2", "--round", "4"]
    assert main([*words, *plan]) == 0
    (record,) = (tmp_path / "mean").glob("round-0004-*.safetensors")
    assert "mean over 2 clients" in capsys.readouterr().out
    truths = ["--truth", f"{tmp_path}/site-*/private-truth/*"]
    assert (
        main(["audit", str(record), *truths, "--model", "LeNet('idlg')", "--attack", "iDLG(steps=1)", "--quiet"]) == 0
    )
    assert main(["inspect", str(record), *truths, "--model", "LeNet('idlg')"]) == 0
    assert "The mean of the 2 replayed trainings gives the same parameters" in " ".join(capsys.readouterr().out.split())
    assert main([*words, *plan, "--truth", str(tmp_path)]) == 2
    assert "--clients averages several" in capsys.readouterr().err
