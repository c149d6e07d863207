"""Modular attacks of LeakPro (Lindholmen Science Park, Apache-2.0) on the same updates as ours.

``leakpro`` on PyPI is another package. Clone https://github.com/aidotse/LeakPro, install what its attacks import
(optuna, numba, scikit-learn, pandas, colorlog, pydantic) and name the clone in the environment variable ``LEAKPRO``.
Its code and its presets are not changed, but for the number of iterations. Its package imports classes for text
attacks, one of which today's ``transformers`` lacks; a stand-in takes the place of ``transformers`` meanwhile.

LeakPro gets the network, its weights, the update, the labels, and the batch-norm statistics that the client sends.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import types
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers import Outcome, quiet
from benchmarks.rows import now
from benchmarks.scenes import Scene
from medpfl.core.errors import InputError

VARIABLE = "LEAKPRO"


@dataclass(frozen=True)
class LeakPro:
    """One of LeakPro's preset attacks, by the name of its function in ``modular/presets.py``."""

    preset: str

    def attack(self, case: Scene, v: int, iterations: int, seed: int = 0) -> Outcome:
        """Invert victim `v`'s update. Its schedule of learning rates fits the number of iterations."""
        with _loaded(seed) as presets:
            config = getattr(presets, self.preset)()
            config.max_iterations = iterations
            seen = _seen(case, v)
            attack = config.build(client_observations=seen)
            began = now()
            found, report = attack.run_attack(
                target_model=deepcopy(case.network),
                input_shape=tuple(case.batches.shape[1:]),
                device=torch.device("cpu"),
                client_observations=seen,
            )
            seconds = now() - began
        loss = float(report.get("final_loss", float("nan")))
        return Outcome(found.detach().reshape(case.batches.shape[1:]), iterations, iterations, seconds, loss)

    def within(self, case: Scene, v: int, seconds: float, pace: float, least: int, seed: int = 0) -> Outcome:
        """Attack with as many iterations as fit into `seconds` at `pace` seconds for each, and `least` at least."""
        return self.attack(case, v, ceil(max(seconds / pace, least)), seed)

    def pace(self, case: Scene) -> float:
        """Measure the seconds per iteration. The first calls do not count."""
        self.attack(case, 0, 10)
        return self.attack(case, 0, 20).seconds / 20


def missing() -> str | None:
    """Return the reason why LeakPro cannot be used here, or ``None``."""
    if not (folder := os.environ.get(VARIABLE)):
        return f"{VARIABLE} does not name a clone of https://github.com/aidotse/LeakPro"
    if not (Path(folder) / "leakpro" / "attacks").is_dir():
        return f"{VARIABLE}={folder} is not a clone of https://github.com/aidotse/LeakPro"
    try:
        with _loaded(0):
            return None
    except ImportError as error:
        return f"LeakPro does not import: {error}"


@contextlib.contextmanager
def _loaded(seed: int) -> Iterator[Any]:
    """Yield its module of presets, without its log, and with its random draws out of the global generator."""
    folder = os.environ[VARIABLE]
    if folder not in sys.path:
        sys.path.insert(0, folder)
    kept = sys.modules.get("transformers")
    sys.modules["transformers"] = _AnyClass("transformers")
    try:
        with quiet(seed):
            from leakpro.attacks.gia_attacks.modular import presets  # pyright: ignore[reportMissingImports]

            logging.getLogger("leakpro").setLevel(logging.ERROR)
            yield presets
    finally:
        del sys.modules["transformers"]
        if kept is not None:
            sys.modules["transformers"] = kept


class _AnyClass(types.ModuleType):
    """A module that has a class of any name."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def _seen(case: Scene, v: int) -> Any:
    """Return what LeakPro's server observes of victim `v`."""
    from leakpro.attacks.gia_attacks.modular.components.optimization_building_blocks.training_simulator import (  # pyright: ignore[reportMissingImports]
        TrainingSettings,
    )
    from leakpro.fl_utils.fl_client_simulator import ClientObservations  # pyright: ignore[reportMissingImports]

    if case.plan.steps > 1:
        raise InputError(f"the plan has {case.plan.steps} local steps; LeakPro would order their batches differently")
    # One step's difference, divided by the negative rate, is the gradient.
    rate = -case.plan.learning_rate if case.plan.algorithm == "FedAvg" else 1.0
    update, names = case.seen.views[0].update, [name for name, _ in case.network.named_parameters()]
    sent = update.buffers and {name: value[v] for name, value in update.buffers.items()}
    return ClientObservations(
        gradients={name: update.tensors[name][v] / rate for name in names},
        pre_bn_stats=_statistics(case.network, dict(case.network.named_buffers())) if sent else None,
        post_bn_stats=_statistics(case.network, sent) if sent else None,
        num_images=case.plan.images,
        input_shape=tuple(case.batches.shape[1:]),
        training_settings=TrainingSettings(
            epochs=1,
            optimizer_type="sgd",
            training_batch_size=case.plan.images,
            compute_mode="gradients",
            model_mode=case.plan.mode,
            shuffle_mode="attack",
        ),
        labels=case.labels[v].clone(),
        data_mean=torch.zeros(case.batches.shape[2], 1, 1),
        data_std=torch.ones(case.batches.shape[2], 1, 1),
        num_classes=case.classes,
    )


def _statistics(network: nn.Module, buffers: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Return the running mean and variance of each batch norm, in the network's order."""
    norms = [name for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)]
    return [(buffers[f"{name}.running_mean"].clone(), buffers[f"{name}.running_var"].clone()) for name in norms]
