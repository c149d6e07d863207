"""Check that a model's forward pass modifies neither the images nor the model's parameters and buffers."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor, nn

from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.user_code.strangers import explained
from medpfl.federated.ready import prepare

__all__ = ["check_writes"]


def check_writes(network: nn.Module, images: Tensor, plan: Plan) -> None:
    """Run copies of a network in the plan's mode and in eval mode, which scores a training's model.

    Args:
        network: the model; it is not changed.
        images: (N, C, H, W) in the model's input shape; they are not changed.
        plan: the client's plan.

    Raises:
        InputError: the forward pass modifies the images, or a parameter or buffer other than batch-norm statistics.
            Updates would then depend on how often the model was called.
    """
    _check_pass(prepare(network, plan), images, plan.mode)
    if plan.mode != "eval":
        ready = prepare(network, replace(plan, mode="eval"))
        with suppress(_PassError):  # only a training needs eval mode, and reports the failure itself
            _check_pass(ready, images, "eval")


class _PassError(InputError):
    """Error raised inside the forward pass itself."""


def _check_pass(ready: nn.Module, images: Tensor, mode: str) -> None:
    given = images.clone()
    kept = {**dict(ready.named_parameters()), **dict(ready.named_buffers())}
    before = {name: (tensor, tensor._version, tensor.detach().clone()) for name, tensor in kept.items()}
    try:
        # With gradients, as in an update: a model may count its passes outside of updates.
        with torch.random.fork_rng(devices=[]), torch.enable_grad(), explained(f"the model fails in {mode} mode"):
            ready(given)
    except InputError as error:
        raise _PassError(str(error)) from error
    if given._version or not torch.equal(given, images):
        raise InputError(
            f"the forward pass modifies its input images (in {mode} mode): write x = (x - 0.5) / 0.5 instead "
            "of x.sub_(0.5).div_(0.5), and let the first layer not have inplace=True"
        )
    for name, (tensor, version, value) in before.items():
        if tensor._version != version or not torch.equal(tensor.nan_to_num(), value.nan_to_num()):
            kind = "buffer" if name in dict(ready.named_buffers()) else "parameter"
            raise InputError(
                f"the forward pass modifies {kind} '{name}' (in {mode} mode), so updates would depend on how "
                "often the model was called: remove this, or modify it only outside of updates "
                "(if not torch.is_grad_enabled())"
            )
