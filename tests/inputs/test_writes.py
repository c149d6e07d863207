"""A model may write neither into the images nor into its kept state, and all commands agree on a model."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from medpfl import Cohort, InputError, Plan, Run, Schedule, Victims, audit, train
from medpfl.inputs.writes import check_writes
from medpfl.inspection.check import check_model
from tests.auditing.audit_cases import some_images


class Net(nn.Module):
    def __init__(self, num_classes=2):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, 4, 1)
        self.fc = nn.Linear(64, num_classes)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("scale", torch.ones(1))

    def forward(self, x):
        return self.fc(torch.sigmoid(self.conv(x)).flatten(1))


class InPlace(Net):
    def forward(self, x):
        return super().forward(x.sub_(0.5).div_(0.5))


class ThroughData(Net):
    def forward(self, x):
        x.data.mul_(0.5)
        return super().forward(x)


class InEval(Net):
    def forward(self, x):
        return super().forward(x if self.training else x.mul_(0.5))


class First(Net):
    def forward(self, x):
        return super().forward(torch.relu_(x))  # which changes no value


class Counted(Net):
    def forward(self, x):
        if self.training:
            self.steps += 1
        return super().forward(x)


class Moving(Net):
    def forward(self, x):
        self.scale.data.lerp_(x.detach().mean(), 0.1)
        return super().forward(x)


class Clamped(Net):
    def forward(self, x):
        self.fc.weight.data.mul_(0.9)
        return super().forward(x)


class Checkpointed(Net):
    def forward(self, x):
        return self.fc(torch.sigmoid(checkpoint(self.conv, x, use_reentrant=False)).flatten(1))


class Ends(Net):
    def forward(self, x):
        raise SystemExit(0)


REFUSED = {
    InPlace: r"modifies its input images .*write x = \(x - 0\.5\) / 0\.5",
    ThroughData: r"modifies its input images .*in train mode",
    InEval: r"modifies its input images .*in eval mode",
    First: r"modifies its input images .*let the first layer not have inplace=True",
    Counted: r"modifies buffer 'steps' .*remove this, .*is_grad_enabled",
    Moving: r"modifies buffer 'scale'",
    Clamped: r"modifies parameter 'fc\.weight'",
    Checkpointed: r"activation checkpointing, .*use_checkpoint=False, memory_efficient=False",
    Ends: r"it ended the program \(SystemExit: 0\)",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", REFUSED, ids=lambda kind: kind.__name__)
def test_every_command_refuses_it_in_the_same_words_and_the_images_stay(kind):
    said, data = [], some_images(16)
    before = data.images.clone()
    for command in (
        lambda: check_model(kind(), (1, 16, 16)),
        lambda: audit(kind(), data, attacks=["iDLG(steps=2)"], victims=Victims(images=2), run=Run(progress=False)),
        lambda: train(
            kind(), data, plan=Plan("FedAvg", batch_size=2), cohort=Cohort(clients=2), schedule=Schedule(rounds=1)
        ),
    ):
        with pytest.raises(InputError, match=REFUSED[kind]) as error:
            command()
        said.append(str(error.value).replace("(2, 1, 16, 16)", "").replace("(1, 1, 16, 16)", ""))
    assert len(set(said)) == 1
    assert torch.equal(data.images, before)


class Outside(Net):
    """A model that counts passes, but not while an update is computed."""

    def forward(self, x):
        if not torch.is_grad_enabled():
            self.steps += 1
        return super().forward((x - 0.5) / 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("network", [Net(), Outside(), nn.Sequential(Net(), nn.BatchNorm1d(2))])
def test_others_pass(network):
    check_writes(network, torch.rand(4, 1, 16, 16), Plan(batch_size=4))
    assert audit(
        network, some_images(8), attacks=["iDLG(steps=2)"], plan=Plan(batch_size=2), victims=Victims(images=2)
    ).rows


class Keeps(Net):
    """A model that keeps its features, as models do for a heat map."""

    def forward(self, x):
        self.features = torch.sigmoid(self.conv(x))
        return self.fc(self.features.flatten(1))


@pytest.mark.slow
def test_a_model_that_keeps_its_features_is_checked_as_it_is_audited():
    data = some_images(8)
    assert check_model(Keeps(), (1, 16, 16)).derivatives["twice"] == ""
    assert audit(
        Keeps(), data, attacks=["iDLG(steps=2)"], defenses=["Soteria(prune=0.3)"], victims=Victims(images=2)
    ).rows
    assert train(
        Keeps(), data, plan=Plan("FedAvg", batch_size=2), cohort=Cohort(clients=2), schedule=Schedule(rounds=1)
    ).rows
