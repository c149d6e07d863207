"""Unusual user networks, each from its ``.py`` file through the command line to scored rows."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from medpfl import Plan, cli
from medpfl.inputs.parts import model_of
from medpfl.inspection.derivatives import check_derivatives

FILE = '''
import torch
from torch import nn

TOKENS = ("attention", "encoder", "functional")


class Net(nn.Module):
    """Parts by name; whatever a part does, the answer depends on the image through all of it."""

    def __init__(self, num_classes, part):
        super().__init__()
        self.part, wide = part, 16
        self.conv = nn.Conv2d(1, 4, 3, 2, 1)
        self.norm = {"group": lambda: nn.GroupNorm(2, 4), "instance": lambda: nn.InstanceNorm2d(4, affine=True),
                     "layer": lambda: nn.LayerNorm([4, 6, 6]),
                     "batch": lambda: nn.BatchNorm2d(4)}.get(part, nn.Identity)()
        self.drop = {"dropout": nn.Dropout(0.3), "dropout2d": nn.Dropout2d(0.3)}.get(part, nn.Identity())
        self.inner = nn.Linear(144, wide)
        self.again = nn.Linear(wide, wide)
        self.more = nn.Linear(wide, wide)
        self.last = nn.Linear(wide, num_classes)
        if part == "tied":
            self.more.weight = self.again.weight
        if part == "frozen":
            self.conv.requires_grad_(False)
            self.again.bias.requires_grad_(False)
        if part == "unused":
            self.nowhere = nn.Linear(3, 3)
        if part in ("attention", "encoder"):
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
            self.encoder = nn.TransformerEncoderLayer(4, 2, 8, 0.2, batch_first=True)
        if part == "parametrized":
            self.inner = nn.utils.parametrizations.weight_norm(self.inner)
        if part == "shared":
            self.more = self.again

    def forward(self, x):
        x = self.drop(self.norm(torch.sigmoid(self.conv(x))))
        tokens = x.flatten(2).transpose(1, 2)
        if self.part == "attention":
            tokens = tokens + self.attention(tokens, tokens, tokens)[0]
        elif self.part == "functional":
            tokens = nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
        elif self.part == "encoder":
            tokens = self.encoder(tokens)
        x = torch.sigmoid(self.inner(x.flatten(1) if self.part not in TOKENS else tokens.flatten(1)))
        logits = self.last(torch.sigmoid(self.more(torch.sigmoid(self.again(x)))))
        several = {"tuple": (logits, x), "named": {"aux": x, "scores": logits}, "logits": {"aux": x, "logits": logits}}
        return several.get(self.part, logits)


def make(num_classes, part="plain"):
    return Net(num_classes, part)
'''
PARTS = [
    "attention", "batch", "dropout", "dropout2d", "encoder", "frozen", "functional", "group", "instance", "layer",
    "logits", "parametrized", "shared", "tied", "tuple", "unused",
]  # fmt: skip
PLANS = {
    "FedSGD, train": ["--batch-size", "2"],
    "FedSGD, eval": ["--mode", "eval"],
    "FedAvg, train": ["--algorithm", "FedAvg", "--batch-size", "2", "--local-images", "4", "--grant", "masks"],
}
ATTACKS = ["DLG(steps=2)", "iDLG(steps=2)", "GradInv(steps=2)"]


def fits(part, plan):
    """Return True if the update can be repeated; dropout inside attention cannot."""
    return part != "encoder" or plan.endswith("eval")


pytestmark = pytest.mark.usefixtures("no_pages", "other_attacks")


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "net.py"
    path.write_text(FILE)
    return path


def audited(capsys, folder, model, call, out, *words, attack="iDLG(steps=2)"):
    options = ["--attack", attack, "--size", "12", "--images", "4", "--quiet", "--out", str(out)]
    status = cli.main(["audit", str(folder), "--model", f"{model}:{call}", *options, *words])
    shown = capsys.readouterr()
    assert status == 0, shown.err
    rows = map(json.loads, (out / "share/findings.jsonl").read_text().splitlines())
    return [row for row in rows if not row["control"]]


def turns():
    """Yield each part with one plan and one attack, so that all plans and attacks have their turn."""
    for i, part in enumerate(PARTS):
        plan = [name for name in PLANS if fits(part, name)][i % 3 if part != "encoder" else 0]
        yield part, plan, ATTACKS[i // 3 % 3]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:There is a performance drop")  # weight norm has no rule for vmap
@pytest.mark.parametrize(("part", "plan", "attack"), [*turns()])
def test_audited_from_the_command_line(capsys, folder, model, tmp_path, part, plan, attack):
    call = f"make(part={part!r})"
    rows = audited(capsys, folder, model, call, tmp_path / "run", *PLANS[plan], attack=attack)
    assert len(rows) == 4
    assert all(row["loss"] is not None and row["scores"]["ssim"] is not None for row in rows)
    assert all(row["loss"] < 10 for row in rows)
    assert not any({"nonfinite", "zero-gradient", "wrong-derivative"} & set(row["flags"]) for row in rows)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize(("part", "plan"), [(part, plan) for part in PARTS for plan in PLANS if fits(part, plan)])
def test_its_update_can_be_differentiated_under_every_plan(model, part, plan):
    """As attacks do it: twice, and for several victims together."""
    one = Plan(batch_size=2, mode="eval" if plan.endswith("eval") else "train")
    under = replace(one, algorithm="FedAvg", local_images=4) if plan.startswith("FedAvg") else one
    network = model_of(f"{model}:make(part={part!r})").build((1, 12, 12), 2, 0)
    images = torch.rand(4, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    assert check_derivatives(network, images, 2, under, together=True) is None


@pytest.mark.slow
def test_the_output_that_is_named_counts(capsys, folder, model, tmp_path):
    plain, named, placed = (
        audited(capsys, folder, model, call, tmp_path / str(i))
        for i, call in enumerate(["make()", "make(part='named')['scores']", "make(part='tuple')[0]"])
    )
    scores = [[(row["loss"], row["scores"]["ssim"]) for row in rows] for rows in (plain, named, placed)]
    assert scores[0] == scores[1] == scores[2]


@pytest.mark.slow
def test_dropout_inside_attention_is_refused_in_train_mode(capsys, folder, model):
    words = ["--model", f"{model}:make(part='encoder')", "--size", "12", "--images", "2"]
    assert cli.main(["audit", str(folder), *words]) == 2
    assert "(attention's built-in dropout is not one), or use --mode eval" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("make(part='named')['score']", "no output ['score']: it returns outputs named aux, scores"),
        ("make(part='tuple')[2]", "no output [2]: it returns 2, counted from 0"),
        ("make()['scores']", "no output ['scores']: it returns one: leave the brackets out"),
        ("make(part='named')", "it returned dict; name the output to use"),
        ("make()[1.5]", "after the colon write a name"),
        ("make()[x]", "after the colon write a name"),
    ],
)
def test_an_output_that_is_not_there(capsys, folder, model, call, message):
    assert cli.main(["audit", str(folder), "--model", f"{model}:{call}", "--size", "12", "--images", "2"]) == 2
    assert message in capsys.readouterr().err
