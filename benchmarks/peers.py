"""Attacks of `breaching` 0.1.2 (Geiping et al., MIT; extra ``bench``) on the same updates as ours.

breaching gets the network, its weights, the update, the labels and the plan, and uses its own bundled settings. Its
code is not changed. It works on normalized images. If a network normalizes its images itself, the normalization is
therefore taken out of the network and passed as ``mean`` and ``std``; the update stays the same. Its total variation
requires three channels.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.rows import now
from benchmarks.scenes import Scene
from medpfl.core.errors import InputError


@dataclass(frozen=True)
class Outcome:
    """A guess (N, C, H, W), iterations of breaching's loop, evaluations, seconds, and its last objective."""

    guess: Tensor
    iterations: int
    evaluations: int
    seconds: float
    loss: float


@dataclass(frozen=True)
class Peer:
    """One of breaching's bundled attack configurations.

    Attributes:
        config: the configuration's name.
        overrides: changed settings, in hydra syntax.
        evaluations: evaluations in one iteration of its loop: 20 steps of L-BFGS, or one of Adam.
        labelled: True if it takes labels; otherwise it optimizes them with the images.
    """

    config: str
    overrides: tuple[str, ...] = ()
    evaluations: int = 1
    labelled: bool = True

    def attack(self, case: Scene, v: int, iterations: int, seed: int = 0) -> Outcome:
        """Invert victim `v`'s update with a schedule for `iterations` iterations."""
        with quiet(seed), sdpa_kernel(SDPBackend.MATH):  # the one kernel of attention that can be differentiated twice
            import breaching  # pyright: ignore[reportMissingImports]

            settings = [*self.overrides, f"optim.max_iterations={iterations}"]
            config = breaching.get_attack_config(self.config, settings)
            loss = _CountedLoss()
            began = now()
            attacker = breaching.attacks.prepare_attack(case.network, loss, config)
            payload, shared = _payload(case), _shared(case, v, self.labelled)
            found, stats = attacker.reconstruct([payload], [shared], {})
            seconds = now() - began
        mean, deviation, _ = _normalization(case.network)
        guess = found["data"].detach() * deviation + mean
        values = stats["Trial_0_Val"]  # empty if the first value is not finite
        return Outcome(guess, len(values), loss.calls, seconds, values[-1] if values else float("nan"))

    def within(self, case: Scene, v: int, seconds: float, pace: float, least: int, seed: int = 0) -> Outcome:
        """Attack with as many iterations as fit into `seconds` at `pace` seconds per evaluation, rounded up.

        It gets at least `least` evaluations, however long these take.
        """
        return self.attack(case, v, ceil(max(seconds / pace, least) / self.evaluations), seed)

    def pace(self, case: Scene) -> float:
        """Measure the seconds per evaluation. The first calls are slower (TorchScript) and do not count."""
        few = 4 if self.evaluations > 1 else 10
        self.attack(case, 0, few)
        outcome = self.attack(case, 0, few)
        return outcome.seconds / outcome.evaluations


PEERS = {
    "deepleakage": Peer("deepleakage", evaluations=20, labelled=False),
    # The joint form refuses labels, and names this setting for labels.
    "deepleakage+labels": Peer("deepleakage", ("attack_type=optimization",), evaluations=20),
    "invertinggradients": Peer("invertinggradients"),
}


def missing() -> str | None:
    """Return the reason why breaching cannot be used here, or ``None``."""
    if importlib.util.find_spec("breaching") is None:
        return "breaching is not installed: pip install -e '.[bench]'"
    try:
        with quiet(0):
            import breaching  # noqa: F401  # pyright: ignore[reportMissingImports]
    except Exception as error:  # an old package may fail in any way
        return f"breaching does not import: {type(error).__name__}: {error}"
    return None


@contextlib.contextmanager
def quiet(seed: int) -> Iterator[None]:
    """Hide its prints and deprecation warnings, and keep its random draws out of the global generator."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        yield


class _CountedLoss(nn.Module):
    """Cross entropy that counts its calls. breaching's deep copy is the same object, and counts here too."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> _CountedLoss:
        return self

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        self.calls += 1
        return nn.functional.cross_entropy(logits, labels)


def _normalization(network: nn.Module) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return the mean and deviation (C or 1, 1, 1) inside a network, and its buffers with both made idle."""
    buffers = dict(network.named_buffers())
    if not {"mean", "deviation"} <= buffers.keys():
        return torch.zeros(1, 1, 1), torch.ones(1, 1, 1), buffers
    mean, deviation = buffers["mean"], buffers["deviation"]
    return mean, deviation, buffers | {"mean": torch.zeros_like(mean), "deviation": torch.ones_like(deviation)}


def _payload(case: Scene) -> dict[str, Any]:
    """Return the message from breaching's server: parameters, buffers (which set eval mode), and image metadata.

    Without buffers, its batch norms take each batch's statistics, as in train mode.
    """
    from omegaconf import OmegaConf  # pyright: ignore[reportMissingImports]

    mean, deviation, buffers = _normalization(case.network)
    mixes = case.plan.mode == "train" and any(isinstance(m, nn.BatchNorm2d) for m in case.network.modules())
    if mixes and {"mean", "deviation"} <= buffers.keys():
        raise InputError("breaching has no train mode for a network that normalizes its images itself")
    channels = case.batches.shape[2]
    metadata = {
        "modality": "vision",
        "task": "classification",
        "shape": list(case.batches.shape[2:]),
        "classes": case.classes,
        "mean": mean.flatten().expand(channels).tolist(),
        "std": deviation.flatten().expand(channels).tolist(),
    }
    parameters = [p.detach() for p in case.network.parameters()]
    kept = None if mixes else list(buffers.values())
    return {"parameters": parameters, "buffers": kept, "metadata": OmegaConf.create(metadata)}


def _shared(case: Scene, v: int, labelled: bool) -> dict[str, Any]:
    """Return the message from breaching's user: the update as a list in the parameters' order."""
    plan, labels = case.plan, case.labels[v]
    if plan.steps > 1:
        raise InputError(f"the plan has {plan.steps} local steps; breaching would order their batches differently")
    hyper = None
    if plan.algorithm == "FedAvg":
        hyper = {"lr": plan.learning_rate, "steps": 1, "data_per_step": plan.images, "labels": [labels]}
    sent = case.seen.views[0].update.tensors
    return {
        "gradients": [sent[name][v].clone() for name, _ in case.network.named_parameters()],
        "buffers": None,
        "metadata": {
            "num_data_points": plan.images,
            "labels": labels.clone() if labelled else None,
            "local_hyperparams": hyper,
        },
    }
