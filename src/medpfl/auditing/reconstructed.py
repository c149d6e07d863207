"""Checks of an attack's reconstruction before it is scored."""

from __future__ import annotations

from typing import Any, get_args

import torch
from torch import Tensor

from medpfl.core.errors import InputError
from medpfl.core.experiments.limits import TEXTS, texts_problem
from medpfl.core.types import Ended, Observation, Reconstruction
from medpfl.core.user_code.strangers import explained

__all__ = ["check_reconstruction"]


def check_reconstruction(guess: Any, seen: Observation, attack: str) -> None:
    """Raise `InputError`, which names the attack, for a result that violates the description of `Reconstruction`.

    Args:
        guess: the attack's return value.
        seen: observation of V victims with N images each.
        attack: the attack's spec.
    """
    if not isinstance(guess, Reconstruction):
        raise InputError(f"{attack} returned a {type(guess).__name__}: it must return a medpfl.Reconstruction")
    with explained(f"{attack} returned a result that cannot be checked"):
        if problem := _problem(guess, seen):
            raise InputError(f"{attack} returned {problem}")


def _problem(guess: Reconstruction, seen: Observation) -> str:
    """Return the first problem with a reconstruction; ``""`` if there is none."""
    victims, images = len(seen), seen.num_images
    labels = (victims, images, *seen.label_shape)
    # For each field: its shape (None: any size), its kind, and the meaning of the shape.
    expected: dict[str, tuple[tuple[int | None, ...], str, str]] = {
        "guesses": ((victims, images, *seen.image_shape), "float32 or float64", "(victims, images, *image_shape)"),
        "labels": (labels, "integer", "(victims, images, *label_shape)"),
        "loss": ((victims,), "real", "(victims,)"),
        "steps": ((victims,), "integer", "(victims,)"),
        "evaluations": ((victims,), "integer", "(victims,)"),
        "candidates": (
            (victims, None, images, *seen.image_shape),
            "float32 or float64",
            "(victims, any, images, *image_shape)",
        ),
        "trace": (
            (victims, None, images, *seen.image_shape),
            "float32 or float64",
            "(victims, any, images, *image_shape)",
        ),
    }
    for name, (shape, kind, words) in expected.items():
        value = getattr(guess, name)
        if value is None and name in ("labels", "candidates", "trace"):
            continue
        if problem := _unlike(value, shape, kind):
            said = str(tuple("any" if side is None else side for side in shape)).replace("'any'", "any")
            return f"{name} {problem}: expected a tensor of {kind} numbers of shape {said}, which is {words}"
    told = next(filter(None, (texts_problem(name, getattr(guess, name), victims) for name in TEXTS)), "")
    return _ended(guess, victims) or told or _nonfinite(guess)


def _unlike(value: Any, shape: tuple[int | None, ...], kind: str) -> str:
    if not isinstance(value, Tensor):
        return f"of type {type(value).__name__}"
    if value.layout is not torch.strided or value.is_meta:
        return "without values in memory"
    if value.ndim != len(shape) or any(e not in (None, own) for own, e in zip(value.shape, shape, strict=True)):
        return f"of shape {tuple(value.shape)}"
    real = value.is_floating_point()
    whole = not real and not value.is_complex() and not value.is_quantized
    fits = {
        "float32 or float64": value.dtype in (torch.float32, torch.float64),
        "real": real or whole,
        "integer": whole and value.dtype != torch.bool,
    }
    return "" if fits[kind] else f"of {value.dtype}"


def _ended(guess: Reconstruction, victims: int) -> str:
    known = get_args(Ended)
    ended = guess.ended
    if not isinstance(ended, tuple | list) or len(ended) != victims:
        found = f"of length {len(ended)}" if isinstance(ended, tuple | list) else f"of type {type(ended).__name__}"
        return f"ended {found}: expected a tuple of length {victims}, one word for each victim"
    if unknown := [word for word in ended if word not in known]:
        return f"ended with {unknown[0]!r}: it must be one of {', '.join(known)}"
    return "" if guess.engine in ("vmap", "loop") else f"engine {guess.engine!r}: it must be 'vmap' or 'loop'"


def _nonfinite(guess: Reconstruction) -> str:
    """Return a problem if guesses are not finite but not reported as ``"nonfinite"``."""
    for victim, (own, ended) in enumerate(zip(guess.guesses, guess.ended, strict=True)):
        if ended != "nonfinite" and not bool(own.isfinite().all()):
            return (
                f"guesses that are not finite (NaN or infinity) for victim {victim}, reported as '{ended}': "
                "expected numbers in [0, 1], or ended 'nonfinite' for that victim"
            )
    return ""
