"""Check what an attack returns against what it was given, before anything is scored."""

from __future__ import annotations

from typing import Any, get_args

import torch
from torch import Tensor

from medpfl.core.errors import InputError
from medpfl.core.types import Ended, Observation, Reconstruction
from medpfl.core.user_code.strangers import explained

__all__ = ["check_reconstruction"]


def check_reconstruction(guess: Any, seen: Observation, attack: str) -> None:
    """Raise `InputError`, which names the attack, for a result that is not what `Reconstruction` says.

    Args:
        guess: what the attack returned.
        seen: V victims of N images each.
        attack: its spec.
    """
    if not isinstance(guess, Reconstruction):
        raise InputError(f"{attack} returned a {type(guess).__name__}: it must return a medpfl.Reconstruction")
    with explained(f"{attack} returned what cannot be looked at"):
        if problem := _problem(guess, seen):
            raise InputError(f"{attack} returned {problem}")


def _problem(guess: Reconstruction, seen: Observation) -> str:
    """The first thing that is wrong; ``""`` if nothing is."""
    victims, images = len(seen), seen.num_images
    labels = (victims, images, *seen.label_shape)
    # By field: its shape, where None stands for any number, its kind, and what the shape means.
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
            return f"{name} {problem}: expected is a tensor of {kind} numbers of shape {said}, that is {words}"
    return _ended(guess, victims) or _nonfinite(guess)


def _unlike(value: Any, shape: tuple[int | None, ...], kind: str) -> str:
    if not isinstance(value, Tensor):
        return f"that are a {type(value).__name__}"
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
        found = f"of length {len(ended)}" if isinstance(ended, tuple | list) else f"that is a {type(ended).__name__}"
        return f"ended {found}: expected is a tuple of length {victims}, one word for each victim"
    if unknown := [word for word in ended if word not in known]:
        return f"ended with {unknown[0]!r}: the words are {', '.join(known)}"
    return "" if guess.engine in ("vmap", "loop") else f"engine {guess.engine!r}: it is 'vmap' or 'loop'"


def _nonfinite(guess: Reconstruction) -> str:
    """Guesses that are not finite are an outcome only where the attack says so."""
    for victim, (own, ended) in enumerate(zip(guess.guesses, guess.ended, strict=True)):
        if ended != "nonfinite" and not bool(own.isfinite().all()):
            return (
                f"guesses that are not finite (NaN or infinity) for victim {victim}, of which it says '{ended}': "
                "expected are numbers in [0, 1], or ended 'nonfinite' for that victim"
            )
    return ""
