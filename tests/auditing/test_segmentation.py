"""Segmentation models: the target is an image and a mask, granted or inferred."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from medpfl import InputError, Plan, ThreatModel, audit, cli
from medpfl.data.images import LabelledImages
from medpfl.data.reading.masks import class_of
from medpfl.inspection.check import check_model
from medpfl.reporting import mask_lines
from medpfl.runs.study_key import StudyIndex
from tests.auditing.audit_cases import Answers
from tests.flat import flat

SIDE = 12


def segmented(count=4, axes=2, patients=None) -> LabelledImages:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 1, *[SIDE] * axes, generator=generator)
    masks = torch.zeros(count, *[SIDE] * axes, dtype=torch.long)
    for i in range(count):
        masks[i, 2 : 6 + i % 3, 3 : 7 + i % 2] = 1
    names = tuple(map(str, range(count)))
    return LabelledImages(
        images, class_of(masks), ("background", "a"), names, patients or (None,) * count, masks=masks
    )  # fmt: skip


LABELS = ThreatModel(("labels",))
TINY: dict[str, Any] = {"model": "UNet(4, 1, 'none', 'sigmoid')", "attacks": ["iDLG(steps=6)"], "images": 2}


def cell(**options):
    report = flat(audit, data=options.pop("data", segmented()), **{**TINY, **options})
    return report.summary[0], report


@pytest.mark.slow
def test_granted_masks_read_the_image_back():
    found, report = cell(attacks=["iDLG(steps=150)"], model="UNet(8, 1, 'none', 'sigmoid')", threat=LABELS, images=1)
    assert found.ssim.value > 0.9
    assert found.masks.granted
    assert all(row.scores["mask_dice"] == 1 for row in report.rows)
    assert "the attacker was given the masks" in mask_lines(report.summary)[1]


@pytest.mark.slow
def test_without_the_grant_the_mask_is_optimized_with_the_image():
    found, report = cell(attacks=["DLG(steps=20)"])
    told = found.masks
    assert not told.granted
    assert 0 <= told.dice.low <= told.dice.value <= told.dice.high <= 1
    assert told.iou <= told.dice.value < 1
    assert 0 < told.dice_majority < 1
    assert told.dice_random_update is not None
    assert "IoU" in mask_lines(report.summary)[1]
    assert "mean mask" in mask_lines(report.summary)[1]
    assert {"mask_dice", "mask_iou", "majority_dice"} <= set(report.rows[-1].scores)


@pytest.mark.slow
def test_the_masks_that_are_granted_are_those_of_the_client():
    right, _ = cell(attacks=["iDLG(steps=5)"], threat=LABELS)
    data = segmented()
    wrong = LabelledImages(
        data.images, data.labels, data.classes, data.names, data.patients, masks=torch.zeros_like(data.masks)
    )  # fmt: skip
    other, _ = cell(data=wrong, attacks=["iDLG(steps=5)"], threat=LABELS)
    assert right.ssim.value != other.ssim.value


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["cross_entropy", "dice"])
@pytest.mark.parametrize("threat", [LABELS, ThreatModel()], ids=["granted", "inferred"])
def test_every_loss_and_every_attack(loss, threat):
    attacks = ["DLG(steps=4)", "CPL(steps=4)", "GradInv(steps=4)"]
    plan = Plan(batch_size=2, loss=loss)
    report = flat(audit, data=segmented(), **{**TINY, "attacks": attacks}, threat=threat, plan=plan)
    assert len(report.summary) == 3
    assert all(c.masks is not None and c.ssim.value is not None for c in report.summary)
    assert f"loss='{loss}'" in report.rows[0].plan or loss == "cross_entropy"


@pytest.mark.slow
@pytest.mark.parametrize("granted", [True, False])
def test_masks_reach_the_attack_under_the_grant_alone(granted):
    attack = Answers()
    flat(audit, data=segmented(), **{**TINY, "attacks": [attack]}, threat=LABELS if granted else ThreatModel())
    seen = attack.kept[-1]
    assert seen.label_shape == (SIDE, SIDE)
    assert (seen.labels is not None) is granted
    assert not granted or seen.labels.shape == (len(seen), 1, SIDE, SIDE)


@pytest.mark.slow
def test_fedavg_and_volumes():
    plan = Plan("FedAvg", 1, 2, learning_rate=0.1)
    found, _ = cell(data=segmented(axes=3), plan=plan, attacks=["GradInv(steps=2)"])
    assert found.masks.dice.value is not None


@pytest.mark.slow
def test_a_classifier_leaves_the_masks_alone():
    found, report = cell(model="LeNet('idlg')")
    assert found.masks is None
    assert "no mask is used" in " ".join(report.settings.notes)
    assert mask_lines(report.summary) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "samples", "model": "UNet"}, "the images have no masks"),
        ({"model": "LeNet('idlg')", "plan": Plan(loss="dice")}, "loss dice needs masks"),
        ({"model": "UNet(depth=3)"}, "must be divisible by 8"),
        ({"defenses": ["Mixup"], "plan": Plan(batch_size=2)}, "Mixup"),
    ],
)
def test_what_cannot_be_audited(options, message):
    with pytest.raises(InputError, match=message):
        cell(**options)


def test_another_mask_is_another_experiment():
    data = segmented()
    other = LabelledImages(data.images, data.labels, data.classes, data.names, data.patients, masks=1 - data.masks)
    index = StudyIndex("secret", data, "d")
    assert index.fingerprint(data) == index.fingerprint(segmented())
    assert index.fingerprint(data) != index.fingerprint(other)


@pytest.mark.slow
def test_check_model_of_a_network_that_segments():
    check = check_model("UNet(4, 1)", (1, SIDE, SIDE))
    assert "masks" in check.labels["1"]["why"]
    assert [name for name, why in check.attacks.items() if why] == [
        "APRIL",
        "DeepRGAP",
        "RGAP",
        "Separation",
    ]  # which need patches, and layers that end in one class for an image
    assert check.derivatives == {"twice": "", "together": "", "wrong": ""}


@pytest.mark.slow
def test_from_the_command_line(tmp_path, capsys):
    data = segmented()
    for name, values in (("images", data.images[:, 0].numpy() * 255), ("masks", data.masks.numpy() * 255)):
        (tmp_path / "d" / name).mkdir(parents=True)
        for i, picture in enumerate(values):
            Image.fromarray(np.asarray(picture, dtype=np.uint8)).save(tmp_path / "d" / name / f"{i}.png")
    words = ["--model", "UNet(4, 1)", "--attack", "GradInv(steps=3)", "--images", "2", "--size", "12"]
    out = ["--loss", "dice", "--out", str(tmp_path / "run")]
    assert cli.main(["audit", str(tmp_path / "d"), *words, *out, "--grant", "labels"]) == 0
    assert "Masks (overlap with the true mask" in capsys.readouterr().out
    (summary,) = json.loads((tmp_path / "run" / "share/summary.json").read_text())
    assert summary["masks"]["granted"] is True
    assert "the attacker was given the masks" in (tmp_path / "run" / "share/report.html").read_text()
