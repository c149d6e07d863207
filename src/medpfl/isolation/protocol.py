"""Messages between the two processes, as JSON and safetensors. Nothing is pickled in either direction."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from medpfl.core.errors import InputError
from medpfl.core.experiments.limits import TEXTS, texts_problem
from medpfl.core.plan import Plan
from medpfl.core.types import Ended, Reconstruction, Tensors, Update, Weights
from medpfl.federated.server import Received
from medpfl.isolation.pipes import DamagedFrameError

__all__ = [
    "Message",
    "packed",
    "plan_in",
    "received_from",
    "reconstruction_from",
    "told_plan",
    "told_received",
    "told_weights",
    "unpacked",
    "weights_from",
]

_NAMES = "tensors"
_FIELDS = ("guesses", "labels", "loss", "steps", "evaluations", "candidates", "trace")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class Message(NamedTuple):
    """A message between the two processes.

    Attributes:
        head: the part sent as JSON.
        tensors: the tensors by name. Their order is kept.
    """

    head: dict[str, Any]
    tensors: dict[str, Tensor]


def packed(message: Message) -> tuple[dict[str, Any], bytes]:
    """Return a message as a frame's header and payload. The header records the tensors' order; safetensors does not."""
    own = {str(i): t.detach().cpu().contiguous().clone() for i, t in enumerate(message.tensors.values())}
    return {**message.head, _NAMES: list(message.tensors)}, save(own) if own else b""


def unpacked(head: dict[str, Any], payload: bytes) -> Message:
    """Return the message in a frame.

    Raises:
        DamagedFrameError: the payload is not safetensors, or its tensors do not match the header.
    """
    names = head.pop(_NAMES, None)
    try:
        found = load(payload) if payload else {}
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RuntimeError) as error:
        raise DamagedFrameError(f"a payload that is not safetensors ({str(error).partition(chr(10))[0]})") from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DamagedFrameError("a header that does not name its tensors")
    if set(found) != {str(i) for i in range(len(names))} or len(set(names)) < len(names):
        raise DamagedFrameError("tensors that do not match its header")
    return Message(head, {name: found[str(i)] for i, name in enumerate(names)})


def told_plan(plan: Plan) -> dict[str, Any]:
    """Return a plan as JSON data."""
    return dataclasses.asdict(plan)


def plan_in(told: dict[str, Any]) -> Plan:
    """Return the plan from the JSON data of `told_plan`."""
    return Plan(**told)


def told_weights(weights: Weights) -> dict[str, Tensor]:
    """Return parameters and buffers in one dictionary, with prefixed names."""
    return {**_grouped("parameter", weights.parameters), **_grouped("buffer", weights.buffers)}


def weights_from(tensors: Tensors) -> Weights:
    """Return the weights from the tensors of `told_weights`; other tensors are ignored."""
    return Weights(_group("parameter", tensors), _group("buffer", tensors))


def told_received(received: Received) -> Message:
    """Return what the server received as a message: the updates as sent, and the grants."""
    first, tensors = received.sent[0], told_weights(received.weights)
    for number, update in enumerate(received.sent):
        tensors |= _grouped(f"update {number}", update.tensors)
        tensors |= _grouped(f"sent buffer {number}", update.buffers or {})
    tensors |= _grouped("mask", received.masks or {})
    beside = {name: getattr(received, name) for name in ("labels", "order", "auxiliary")}
    tensors |= {name: tensor for name, tensor in beside.items() if tensor is not None}
    head = {
        "plans": [told_plan(plan) for plan in received.plans],
        "told": received.told,
        "image_shape": list(received.image_shape),
        "num_classes": received.num_classes,
        "label_shape": list(received.label_shape),
        "kind": first.kind,
        "sends_buffers": first.buffers is not None,
        "num_samples": [update.num_samples for update in received.sent],
        "has_masks": received.masks is not None,
        "gray": received.gray,
    }
    return Message(head, tensors)


def received_from(message: Message, device: torch.device) -> Received:
    """Return what the server received, on a device, from the message of `told_received`."""
    head, tensors = message.head, {name: tensor.to(device) for name, tensor in message.tensors.items()}

    def update(number: int, samples: int | None) -> Update:
        buffers = _group(f"sent buffer {number}", tensors) if head["sends_buffers"] else None
        return Update(_group(f"update {number}", tensors), head["kind"], buffers, samples)

    return Received(
        weights=weights_from(tensors),
        plans=tuple(map(plan_in, head["plans"])),
        sent=tuple(update(i, samples) for i, samples in enumerate(head["num_samples"])),
        told=head["told"],
        image_shape=tuple(head["image_shape"]),
        num_classes=head["num_classes"],
        label_shape=tuple(head["label_shape"]),
        labels=tensors.get("labels"),
        order=tensors.get("order"),
        masks=_group("mask", tensors) if head["has_masks"] else None,
        auxiliary=tensors.get("auxiliary"),
        gray=head["gray"],
    )


def told_reconstruction(made: Any) -> Message:
    """Return a reconstruction as a message.

    Raises:
        TypeError: the attack returned no `Reconstruction`, a field is not a tensor, or texts are none.
    """
    if not isinstance(made, Reconstruction):
        raise TypeError(f"it returned a {type(made).__name__}, not a medpfl.Reconstruction")
    fields = {name: getattr(made, name) for name in _FIELDS}
    for name, value in fields.items():
        if value is not None and not isinstance(value, Tensor):
            raise TypeError(f"the reconstruction's {name} must be a tensor, not a {type(value).__name__}")
    told = {name: getattr(made, name) for name in TEXTS}
    for name, texts in told.items():
        if not isinstance(texts, tuple | list) or not all(isinstance(text, str) for text in texts):
            raise TypeError(f"the reconstruction's {name} must be a tuple of texts")
    return Message(
        {"ended": list(made.ended), "engine": made.engine, **{name: list(texts) for name, texts in told.items()}},
        {name: value for name, value in fields.items() if value is not None},
    )


def reconstruction_from(message: Message, received: Received) -> Reconstruction:
    """Return the reconstruction in an attack's answer after checking every field.

    Values may be infinite or NaN; the rows report those.

    Raises:
        InputError: a field is missing or unknown, has the wrong shape or type, or is a negative number of steps or
            evaluations; or a text breaks the rule of `texts_problem`.
    """
    victims, images, shape = len(received), received.num_images, tuple(received.image_shape)
    each, tensors = (victims, images, *shape), message.tensors
    if unknown := set(tensors) - set(_FIELDS):
        raise InputError(f"the reconstruction has unknown fields: {', '.join(sorted(unknown)[:3])!r}")
    fits: Mapping[str, tuple[tuple[int | None, ...], tuple[torch.dtype, ...]]] = {
        "guesses": (each, _FLOATS),
        "labels": ((victims, images, *received.label_shape), _INTEGERS),
        "loss": ((victims,), _FLOATS),
        "steps": ((victims,), _INTEGERS),
        "evaluations": ((victims,), _INTEGERS),
        "candidates": ((victims, None, images, *shape), _FLOATS),
        "trace": ((victims, None, images, *shape), _FLOATS),
    }
    for name, (wanted, kinds) in fits.items():
        if name in tensors:
            _check(name, tensors[name], wanted, kinds)
        elif name not in ("labels", "candidates", "trace"):
            raise InputError(f"the reconstruction has no {name}")
    for name in ("steps", "evaluations"):
        if bool((tensors[name] < 0).any()):
            raise InputError(f"the reconstruction's {name} must not be below 0")
    return Reconstruction(
        ended=_ended(message.head.get("ended"), victims),
        engine=_engine(message.head.get("engine")),
        **{name: _texts(name, message.head.get(name, []), victims) for name in TEXTS},  # type: ignore[arg-type]
        **{name: tensors.get(name) for name in _FIELDS},  # type: ignore[arg-type]  (required ones were checked)
    )


def _check(name: str, tensor: Tensor, wanted: tuple[int | None, ...], kinds: tuple[torch.dtype, ...]) -> None:
    found = tuple(tensor.shape)
    fits = len(found) == len(wanted) and all(w in (None, f) for w, f in zip(wanted, found, strict=True))
    if not fits or 0 in found:
        words = ", ".join("R" if size is None else str(size) for size in wanted)
        raise InputError(f"the reconstruction's {name}: shape {found}, must be ({words})")
    if tensor.dtype not in kinds:
        word = "real numbers" if kinds is _FLOATS else "whole numbers"
        raise InputError(f"the reconstruction's {name}: type {tensor.dtype}, must be {word}")


def _ended(found: Any, victims: int) -> tuple[Ended, ...]:
    known = get_args(Ended)
    if not isinstance(found, list) or len(found) != victims or any(one not in known for one in found):
        raise InputError(f"the reconstruction's ended must be {victims} words, each one of {', '.join(known)}")
    return tuple(found)


def _engine(found: Any) -> str:
    if not isinstance(found, str) or len(found) > 100 or not found.isprintable():
        raise InputError("the reconstruction's engine must be a short text, such as 'loop'")
    return found


def _texts(name: str, found: Any, victims: int) -> tuple[str, ...]:
    if problem := texts_problem(name, found, victims):
        raise InputError(f"the reconstruction has {problem}")
    return tuple(found)


def finite_share(found: Any) -> float:
    """Return the progress reported by the other process, clamped to [0, 1]; 0 if it is not a finite number."""
    usable = isinstance(found, int | float) and math.isfinite(found)
    return min(max(float(found), 0.0), 1.0) if usable else 0.0


def _grouped(group: str, tensors: Tensors) -> dict[str, Tensor]:
    return {f"{group}/{name}": tensor for name, tensor in tensors.items()}


def _group(group: str, tensors: Tensors) -> dict[str, Tensor]:
    start = f"{group}/"
    return {name[len(start) :]: t for name, t in tensors.items() if name.startswith(start)}
