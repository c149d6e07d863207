"""Activations that can be inverted."""

from __future__ import annotations

import torch
from torch import nn

from medpfl.attacks.inversion.layers import Activation

__all__ = ["activation"]


def activation(name: str, layer: nn.Module) -> Activation | None:
    """Return a layer's inverse and slope as `Activation`; ``None`` for an unknown layer."""
    if isinstance(layer, nn.Sigmoid):
        return Activation(name, torch.logit, lambda h: h * (1 - h), 0.0, 1.0)
    if isinstance(layer, nn.Tanh):
        return Activation(name, torch.atanh, lambda h: 1 - h.square(), -1.0, 1.0)
    if isinstance(layer, nn.ReLU):
        return Activation(name, lambda h: h, lambda h: (h > 0).to(h), 0.0, dead=True)
    if isinstance(layer, nn.LeakyReLU) and layer.negative_slope > 0:
        rate = layer.negative_slope
        return Activation(
            name, lambda h: torch.where(h > 0, h, h / rate), lambda h: torch.where(h > 0, 1.0, rate).to(h)
        )
    if isinstance(layer, nn.ELU) and layer.alpha > 0:
        alpha = layer.alpha
        return Activation(
            name,
            lambda h: torch.where(h > 0, h, torch.log1p(h.clamp(max=0) / alpha)),
            lambda h: torch.where(h > 0, 1.0, h + alpha),
            -alpha,
        )
    return None
