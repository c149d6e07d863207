"""What a model's forward pass writes: it may change neither the images nor anything that the model keeps."""

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
    """Pass images through copies of a network, in the plan's mode and in eval mode, in which a training judges it.

    Args:
        network: the model, which is not changed.
        images: (N, C, H, W) that it takes; they are not changed.
        plan: of the client.

    Raises:
        InputError: the forward pass writes into the images, or into a parameter or buffer; batch norm's statistics
            aside. An update would depend on how often the model was called.
    """
    _check_pass(prepare(network, plan), images, plan.mode)
    if plan.mode != "eval":
        ready = prepare(network, replace(plan, mode="eval"))
        with suppress(_PassError):  # only a training needs this mode, and says so itself
            _check_pass(ready, images, "eval")


class _PassError(InputError):
    """The pass did not come to its end."""


def _check_pass(ready: nn.Module, images: Tensor, mode: str) -> None:
    given = images.clone()
    kept = {**dict(ready.named_parameters()), **dict(ready.named_buffers())}
    before = {name: (tensor, tensor._version, tensor.detach().clone()) for name, tensor in kept.items()}
    try:
        # With gradients, as in an update: a model may well count its passes outside of one.
        with torch.random.fork_rng(devices=[]), torch.enable_grad(), explained(f"the model fails in {mode} mode"):
            ready(given)
    except InputError as error:
        raise _PassError(str(error)) from error
    if given._version or not torch.equal(given, images):
        raise InputError(
            f"the forward pass writes into the images that it is given (in {mode} mode): write x = (x - 0.5) / 0.5 in "
            "place of x.sub_(0.5).div_(0.5), and take no layer with inplace=True as the first"
        )
    for name, (tensor, version, value) in before.items():
        if tensor._version != version or not torch.equal(tensor.nan_to_num(), value.nan_to_num()):
            kind = "buffer" if name in dict(ready.named_buffers()) else "parameter"
            raise InputError(
                f"the forward pass writes into {kind} '{name}' (in {mode} mode), so that an update would depend on how "
                "often the model was called: leave it out, or write only outside of updates "
                "(if not torch.is_grad_enabled())"
            )
