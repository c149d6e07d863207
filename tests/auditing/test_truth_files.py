"""A record with its truth file, as a watched client writes them, audited."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.func import functional_call

import medpfl
from medpfl import InputError
from medpfl.auditing.records.recorded import found_in
from medpfl.auditing.records.run import RecordCase
from medpfl.core.records.origin import Pixels
from medpfl.core.records.record import Record
from medpfl.core.records.truth import Truth
from medpfl.core.verdicts import INCONCLUSIVE, RECORDED
from medpfl.defenses import LaplaceNoise, LocalDP, PercentilePrivacy
from medpfl.judging.summary import Context
from medpfl.models import LeNet
from medpfl.models.entering import entering
from tests.auditing.audit_cases import OWN_ATTACK, Answers, plain
from tests.flat import flat

IMAGES = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(2))
LABELS = torch.tensor([1, 0, 1])


def client(folder, images=IMAGES, *, epochs=1, batch=3, **options):
    """Train as a client does, and return the paths of record and truth."""
    model = LeNet("idlg").build((1, 16, 16), 2, seed=4)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with medpfl.record(folder, model, truth=True, classes=("benign", "malignant"), **options):
        for _ in range(epochs):
            for index in torch.randperm(3, generator=torch.Generator().manual_seed(8)).split(batch):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(images[index]), LABELS[index]).backward()
                optimizer.step()
    (record,), (truth,) = folder.glob("*.safetensors"), (folder / "private-truth").iterdir()
    return record, truth


def look(record, truth, attack, **options):
    return flat(medpfl.audit_record, record, truth, "LeNet('idlg')", attacks=[attack], **options)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [3, 2, 1])
def test_a_truth_file_verifies_its_record(tmp_path, batch):
    attack = Answers()
    report = look(*client(tmp_path, batch=batch, epochs=2), attack)
    assert report.settings.record["checked"] == "right"
    assert report.settings.record["difference"] < 1e-5
    assert any("was checked before the attacks" in note for note in report.settings.notes)
    assert not any(str(tmp_path) in note for note in report.settings.notes)
    assert report.settings.experiment["data"] == "truth file"
    assert {row.label for row in report.rows} == {0, 1}


NORMALIZED = {
    "as stated": ((IMAGES - 0.4) / 0.2, {"pixels": Pixels(mean=(0.4,), std=(0.2,))}),
    "by its range": (IMAGES * 2 - 1, {}),
    "0 to 255": (IMAGES * 255, {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", NORMALIZED.values(), ids=NORMALIZED)
def test_normalized_pixels_are_judged_in_the_range_of_images(tmp_path, case):
    images, options = case
    record, truth = client(tmp_path, images, **options)
    attack = Answers()
    report = look(record, truth, attack)
    assert report.settings.record["checked"] == "right"
    assert report.settings.experiment["model"].startswith("LeNet(variant='idlg') on (x - ")
    seen = attack.kept[-1]
    weights = dict(Record.load(record).weights.parameters)
    assert {name for name, _ in seen.model.named_parameters()} == set(weights), "no parameter is renamed"
    bare = LeNet("idlg").build((1, 16, 16), 2, seed=4)
    torch.testing.assert_close(functional_call(seen.model, weights, (IMAGES,)), bare(images))


@pytest.mark.slow
def test_a_smaller_last_batch_and_augmented_epochs(tmp_path):
    report = look(*client(tmp_path, batch=2), Answers())
    assert (
        report.rows[0].plan == "Plan(algorithm='FedAvg', batch_size=2, local_images=3, learning_rate=0.1, mode='train')"
    )


def repeating(folder, sampler):
    """Train on four images, of which some are taken in several steps, and return the paths of record and truth."""
    model = LeNet("idlg").build((1, 16, 16), 2, seed=4)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    images, labels = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(5)), torch.tensor([0, 1, 0, 1])
    with medpfl.record(folder, model, truth=True, classes=("benign", "malignant")):
        for index in sampler:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[index]), labels[index]).backward()
            optimizer.step()
    (record,), (truth,) = folder.glob("*.safetensors"), (folder / "private-truth").iterdir()
    return record, truth


REPEATS = {"the last batch is dropped": [[0, 1, 2], [3, 0, 1]], "drawn with replacement": [[0, 0, 1], [2, 0, 3]]}


@pytest.mark.parametrize("sampler", REPEATS.values(), ids=REPEATS)
def test_an_image_counts_once_however_often_a_step_takes_it(tmp_path, sampler):
    report = look(*repeating(tmp_path, sampler), Answers())
    assert report.settings.record["checked"] == "right"
    (cell,) = (cell for cell in report.summary if cell.defense == RECORDED)
    assert cell.images == 4
    assert len({row.image for row in report.rows}) == 4


@pytest.mark.slow
def test_a_retention_that_is_over_is_said(tmp_path, capsys):
    record, truth = client(tmp_path, days=0)
    look(record, truth, Answers())
    assert "was to be kept for 0 days" in capsys.readouterr().err


@pytest.mark.slow
def test_a_truth_of_another_record(tmp_path):
    record, _ = client(tmp_path / "a")
    _, truth = client(tmp_path / "b", IMAGES.roll(1, 0))
    with pytest.raises(InputError, match="the record is wrong, so no attack was run"):
        look(record, truth, Answers())


@pytest.mark.parametrize(
    ("labels", "wrong"), [([0, 7], 7), ([-1, 0], -1), ([[0.1, 0.2, 0.7], [1.0, 0.0, 0.0]], 2)], ids=str
)
def test_a_label_without_a_class_is_refused(labels, wrong):
    """The record names two classes, the truth has labels of others."""
    model = LeNet("idlg").build((1, 16, 16), 2, seed=4)
    weights = medpfl.Weights.of(model)
    update = medpfl.Update(weights.parameters, "gradient", {}, 2)
    record = medpfl.Record(update, medpfl.Plan(batch_size=2), weights, (1, 16, 16), ("benign", "malignant"))
    truth = Truth(torch.rand(2, 1, 16, 16), torch.tensor(labels))
    with pytest.raises(InputError, match=rf"the label {wrong}, but the record has 2 classes \(0 to 1\)"):
        found_in(truth, Path("t"), record, record.regular_plan())


def test_steps_that_no_plan_has_are_refused_with_the_reason(tmp_path):
    model = LeNet("idlg").build((1, 16, 16), 2, seed=4)
    optimizer = torch.optim.Adam(model.parameters())
    with medpfl.record(tmp_path, model, truth=True):
        nn.functional.cross_entropy(model(IMAGES), LABELS).backward()
        optimizer.step()
    (record,), (truth,) = tmp_path.glob("*.safetensors"), (tmp_path / "private-truth").iterdir()
    with pytest.raises(InputError, match="an audit cannot attack this update: the optimizer is Adam"):
        look(record, truth, Answers())


def filtered(folder, defense, *filters):
    """Return a record whose update a defense changed, with the texts of filters, and its truth."""
    path, truth = client(folder)
    made = Record.load(path)
    before = dataclasses.replace(made.update, buffers_before=made.weights.buffers)
    sent, _ = defense.update(before, defense.init(), torch.Generator().manual_seed(3))
    sent = dataclasses.replace(sent, buffers_before=None)
    dataclasses.replace(made, update=sent, filters=filters).save(folder / "sent.safetensors")
    return folder / "sent.safetensors", truth


STOCK = {
    "PercentilePrivacy(percentile=50, gamma=0.01, data_kinds=None)": PercentilePrivacy(50, 0.01),
    "LocalDpMod(clipping_norm=1.0, sensitivity=0.001, epsilon=1.0, delta=1e-05)": LocalDP(1.0, 1e-3, 1.0),
}


@pytest.mark.slow
@pytest.mark.parametrize(("text", "defense"), STOCK.items(), ids=["percentile", "local dp"])
def test_a_stock_filter_is_audited_as_the_defense_that_it_is(tmp_path, capsys, text, defense):
    attack = Answers()
    report = look(*filtered(tmp_path, defense, text), attack)
    assert report.settings.record["defense"] == repr(defense)
    # Clipping and this noise leave more noise than update, so that other images may fit as well.
    assert report.settings.record["checked"] == ("unverified" if isinstance(defense, LocalDP) else "defense")
    noted = any("a record of other images may pass this check" in note for note in report.settings.notes)
    assert noted == isinstance(defense, LocalDP)
    assert f"the record's filters are audited as {defense!r}" in capsys.readouterr().err
    assert {row.grants for row in report.rows if row.defense == RECORDED} == {(), ("defense",)}
    assert attack.kept[-1].views[0].channel is not None
    assert not {"undisclosed", "misdisclosed"} & {flag for cell in report.summary for flag in cell.flags}


@pytest.mark.parametrize(("scale", "checked"), [(1e-4, "defense"), (10.0, "unverified")])
def test_noise_that_hides_the_update_leaves_the_record_unverified(tmp_path, scale, checked):
    """Under such noise the images of another record fit as well, so the check cannot tell them apart."""
    path, truth = filtered(tmp_path / "a", LaplaceNoise(scale), f'medpfl.defend("LaplaceNoise({scale})")')
    _, other = client(tmp_path / "b", IMAGES.flip(-1))
    case = RecordCase(record=path, truth=truth, model="LeNet('idlg')", attacks=[Answers()])
    found = case.check()
    assert found["checked"] == checked
    if checked == "unverified":
        assert re.search(r"two of its draws differ by .* and share only .* may pass this check", found["open"][0])
        assert dataclasses.replace(case, truth=other).check()["checked"] == "unverified"
    else:
        with pytest.raises(InputError, match="the record is wrong"):
            dataclasses.replace(case, truth=other).check()


@pytest.mark.slow
def test_a_filter_that_no_attack_knows_is_no_evidence(tmp_path, capsys):
    """The same update is wrong if the record states no filter, and inconclusive if it states an unknown one."""
    path, truth = filtered(tmp_path / "a", PercentilePrivacy(50, 0.01), "OwnFilter(strength=5)", "LogMod()")
    attack = Answers()
    report = look(path, truth, attack)
    assert report.settings.record["checked"] == "unverified"
    assert report.settings.record["defense"] == "OwnFilter(strength=5) | LogMod()"
    assert "no attack knows what OwnFilter(strength=5) and LogMod() did" in capsys.readouterr().err
    assert any("do not know what OwnFilter(strength=5) and LogMod() did" in note for note in report.settings.notes)
    assert {cell.verdict for cell in report.summary if cell.defense == RECORDED} == {INCONCLUSIVE}
    context = Context.of(report.settings)
    assert [context.reason(RECORDED, knows) for knows in (False, True)] == ["undisclosed"] * 2
    stated = look(path, truth, attack, defenses=["PercentilePrivacy(percentile=50, gamma=0.01)"])
    assert stated.settings.record["defense"] == repr(PercentilePrivacy(50, 0.01))
    with pytest.raises(InputError, match="the record is wrong"):
        look(*filtered(tmp_path / "b", PercentilePrivacy(50, 0.01)), attack)


@pytest.mark.slow
@pytest.mark.usefixtures("shared")
def test_an_isolated_attack_gets_the_same_model_for_normalized_pixels(tmp_path):
    pixels = Pixels(mean=(0.4,), std=(0.2,))
    (tmp_path / "own.py").write_text(OWN_ATTACK)
    record, truth = client(tmp_path / "out", entering(IMAGES, pixels), pixels=pixels)
    apart = look(record, truth, f"{tmp_path}/own.py:Mine", isolate=True)
    here = look(record, truth, f"{tmp_path}/own.py:Mine", isolate=False)
    assert "Mine()" in apart.settings.isolation["in a process of their own"]
    assert plain(apart.rows, "image") == plain(here.rows, "image")
