"""A Lightning loop, in which the optimizer calls the training step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import medpfl
from medpfl import Plan, Record
from medpfl.core.records.truth import Truth
from medpfl.recording.check import Case
from medpfl.recording.client import check_case
from medpfl.recording.watching.watch import watch
from tests.recording.loops import loader, network

pytestmark = [pytest.mark.extra, pytest.mark.filterwarnings("ignore")]


def trained(tmp_path, optimizer=None, **options):
    """Return a Lightning module and a function that trains it."""
    from lightning import pytorch as pl

    class Lit(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = network()

        def training_step(self, batch, index):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch, index):
            self.log("loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

        def configure_optimizers(self):
            return (optimizer or (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)))(self.parameters())

    module = Lit()
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    trainer = pl.Trainer(max_epochs=2, accelerator="cpu", default_root_dir=tmp_path, **quiet, **options)
    return module, lambda: trainer.fit(module, loader(), loader())


def test_a_lightning_loop_is_recorded_and_right(tmp_path):
    module, fit = trained(tmp_path)
    with medpfl.record(tmp_path / "out", module, truth=True):
        fit()
    (path,), (kept,) = (tmp_path / "out").glob("*.safetensors"), (tmp_path / "out" / "private-truth").iterdir()
    record = Record.load(path)
    assert record.plan == Plan("FedAvg", 4, 10, 2, learning_rate=0.1, momentum=0.9)
    check = check_case(Case(network(), record.without("net."), Truth.load(kept)))
    assert check.verdict == "right", check


def test_clipping_precision_and_adam_are_seen(tmp_path):
    for options, reason in (
        ({"gradient_clip_val": 1e-3}, "clipped"),
        ({"precision": "bf16-mixed"}, "under autocast in bfloat16"),
        ({"accumulate_grad_batches": 2}, "accumulates the gradients of 2 passes"),
        ({"optimizer": torch.optim.Adam}, "the optimizer is Adam"),
    ):
        module, fit = trained(tmp_path, **options)
        with watch(module) as seen:
            fit()
        assert reason in seen.steps().irregularity()
