"""The view of a record for ``medpfl inspect``: what it holds, and if it is right. It has no image and no path."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medpfl.core.errors import InputError
from medpfl.core.experiments.groups import Reading
from medpfl.core.messages import about, counted
from medpfl.core.records.masked import Masked
from medpfl.core.records.origin import Pixels
from medpfl.core.records.record import Record
from medpfl.core.records.steps import Step
from medpfl.core.records.truth import Truth, digest_of
from medpfl.core.records.view import RecordView
from medpfl.core.roles import Model
from medpfl.core.user_code.copies import copied
from medpfl.inputs.filters import without_silent
from medpfl.inputs.network import check_taken, network_of
from medpfl.inputs.parts import data_of
from medpfl.inputs.spelling import path_of
from medpfl.models.entering import entering
from medpfl.recording.check import Case, Check, acting_in
from medpfl.recording.client import check_case
from medpfl.recording.contradictions import looked
from medpfl.recording.folder import Neighbors, kept_at
from medpfl.recording.mean import check_mean
from medpfl.recording.pair import compared_records

__all__ = ["named", "truth_at", "view_made", "view_of"]

_FEWEST, _FULL = 5, 6
"""Steps that are listed one by one."""


def view_of(
    record: str | Path,
    truth: str | Path | None = None,
    model: Model | None = None,
    reading: Reading | None = None,
    raw: str | Path | None = None,
) -> RecordView:
    """Return what a record holds, and whether it is right.

    Args:
        record: the record's path.
        truth: a truth file, or images as ``data`` in `medpfl.audit`.
        model: the client's model; without it, the training cannot be repeated.
        reading: how to read images that are no truth file.
        raw: the record of the same update before the client's filters.

    Raises:
        InputError: the record or the truth cannot be read, or the model does not fit.
    """
    path = path_of(record)
    if Masked.is_one(path):
        return _masked(Masked.load(path))
    held = Record.load(path)
    kept = None if truth is None else truth_at(truth, held, reading or Reading())
    notes = [_kept_for_another(held)] if kept is not None and kept.record and kept.record != digest_of(path) else []
    changed = () if raw is None else tuple(compared_records(Record.load(path_of(raw)), held).lines())
    return view_made(held, path, kept, model, notes, changed)


def view_made(
    held: Record,
    path: Path,
    kept: Truth | None,
    model: Model | None,
    notes: Sequence[str] = (),
    filtered: tuple[str, ...] = (),
) -> RecordView:
    """Return the view of a record in memory, which need not be written yet.

    Args:
        held: the record.
        path: its file; other records in the same folder help to find the cause of a wrong one.
        kept: the truth, if it is known.
        model: the client's model, as in `view_of`.
        notes: further texts on what could not be verified.
        filtered: what the client's filters changed.

    Raises:
        InputError: the model does not fit the record, or does not take the images.
    """
    misfits = [f"it does not fit itself: {problem}" for problem in held.misfits()]
    check = Check("wrong") if misfits else _checked(without_silent(held, path), path, kept, model)
    return RecordView(
        verdict=check.verdict,
        finding=misfits[0] if misfits else str(check.cause or ""),
        difference=check.difference,
        contents=dict(_contents(held)),
        steps=tuple(_steps(held)),
        filtered=filtered,
        facts=check.facts,
        open=(*misfits[1:], *notes, *check.open, *_blind(held, kept, model)),
    )


def _kept_for_another(held: Record) -> str:
    """Return the note on a truth file that was kept for another record."""
    text = "the truth file was kept for another record file"
    if held.source is not None and held.source.place == "server":
        return f"{text}, as is usual for a server's record: check that it is of the same client and round"
    return f"{text}: give the one of the same name in private-truth"


def _masked(held: Masked) -> RecordView:
    """Return the view of a masked message: nothing in it can be checked, and nothing attacked."""
    sizes = [t.numel() for t in held.vectors]
    kinds = sorted({str(t.dtype).removeprefix("torch.") for t in held.vectors})
    number = "" if held.source.round is None else f", round {held.source.round}"
    contents = {
        "masked message": f"{counted(len(sizes), 'vector')}, {sum(sizes):,} masked elements, {', '.join(kinds)}",
        "in clear": "nothing" if held.num_samples is None else f"num_samples: {held.num_samples}",
        "global weights": f"{sum(t.numel() for t in held.weights.values()):,} elements, as the server sent them",
        "source": f"{held.source.framework}{number}, recorded at the {held.source.place}",
    }
    return RecordView(
        verdict="unverified",
        contents=contents,
        steps=("unknown",),
        facts=("this is one client's masked message of secure aggregation, not an update",),
        open=(
            "alone, its vectors are random integers, so no audit can attack it. The sum over all clients cannot be "
            "computed from such files either: the shares that remove the masks are not recorded. The server learns the "
            "mean: record the global model before and after the round with medpfl record BEFORE AFTER --clients N",
        ),
    )


def truth_at(truth: str | Path, record: Record, reading: Reading) -> Truth:
    """Return a truth file, or the images at a path as they enter the model.

    Raises:
        InputError: the images cannot be read, have another number or shape than the record states, or are fewer than
            its steps take.
    """
    about(path_of(truth))
    if (found := kept_at(truth, record.clients)) is not None:
        _check_enough(found[0], record)
        return found[0]
    if record.image_shape:
        channels: Any = record.image_shape[0]
        reading = Reading(size=record.image_shape[-1], fit=reading.fit, channels=channels)
    data = data_of(str(truth), reading).images
    if record.images not in (None, len(data)):
        raise InputError(f"the record was made from {counted(record.images, 'image')}, but --truth holds {len(data)}")
    labels = data.labels
    _check_enough(Truth(data.images[:], labels), record)
    if record.classes is not None and set(data.classes) <= set(record.classes):
        labels = torch.tensor([record.classes.index(name) for name in data.classes])[labels]
    return Truth(entering(data.images[:], record.pixels or Pixels()), labels if data.masks is None else data.masks)


def _check_enough(truth: Truth, record: Record) -> None:
    """Raise `InputError` if a step, or the plan without a known order, takes more images than the truth holds."""
    held = len(truth.images)
    taken = max(step.images for step in record.steps.steps) * record.clients
    if truth.order is None:
        taken = max(taken, record.images or 0)
    else:
        held = max(held, len(truth.order))
    if taken > held:
        raise InputError(
            f"the record's steps take {counted(taken, 'image')}, but --truth holds {held}: give the images behind it"
        )


def named(record: Record, network: nn.Module) -> Record:
    """Return the record under a network's names and dtypes; raise `InputError` if it belongs to another network."""
    own = dict(network.named_parameters()) | dict(network.named_buffers())
    bare = record.named_as(own)
    for name, value in {**bare.weights.buffers, **bare.weights.parameters}.items():
        if name not in own or own[name].shape != value.shape:
            raise InputError(
                f"the record does not fit the model: '{name}' has another name or shape there; give --model the model "
                "that the client trained, with the same arguments"
            )
    return bare


def _checked(held: Record, path: Path, kept: Truth | None, model: Model | None) -> Check:
    if kept is None or model is None:
        return _unreplayed(held, kept, model)
    shape, classes = tuple(kept.images.shape[1:]), len(held.classes or ()) or kept.classes
    network = network_of(model, shape, classes, 0)
    bare = named(held, network)
    try:
        if bare.clients > 1:
            return check_mean(network, bare, kept, held=held)
        return check_case(Case(network, bare, kept, Neighbors(path, bare), held))
    except InputError:
        check_taken(copied(network, forget=True), kept.images[:2], bare.steps.steps[0].training)  # names the option
        raise


def _unreplayed(held: Record, kept: Truth | None, model: Model | None) -> Check:
    """Return the check of a record whose training cannot be repeated, without truth or without model."""
    network, bare = None, held
    if model is not None and held.image_shape is not None:
        try:
            network = network_of(model, held.image_shape, len(held.classes or ()) or _outputs(held), 0)
            bare = named(held, network)
        except InputError:
            if held.classes:
                raise
            network, bare = None, held  # the number of classes was a guess
    look = looked(bare, network, kept)
    if look.wrong is not None and (acting := acting_in(held)):
        return Check("unverified", open=(f"{look.wrong.text}: {'; '.join(acting)} may have done so",))
    return Check("wrong" if look.wrong else "unverified", cause=look.wrong, facts=look.facts)


def _outputs(held: Record) -> int:
    """Return the number of outputs of the last parameter's layer."""
    shapes = [(), *(t.shape for t in held.update.tensors.values())]
    return shapes[-1][0] if shapes[-1] else 2


def _blind(held: Record, kept: Truth | None, model: Model | None) -> Iterator[str]:
    """Yield what cannot be verified without truth or model."""
    if kept is None or model is None:
        missing = " and ".join(word for word, one in (("--truth", kept), ("--model", model)) if one is None)
        yield (
            f"not verifiable beyond names, shapes and counters without {missing}: learning rate, momentum, weights, "
            "labels and pixels can be wrong without a sign"
        )
    if reason := held.steps.irregularity():
        yield f"an audit cannot attack this update: {reason}"


def _contents(held: Record) -> Iterator[tuple[str, str]]:
    parameters, buffers = held.weights.parameters, held.weights.buffers
    count = sum(t.numel() for t in parameters.values())
    kinds = sorted({str(t.dtype).removeprefix("torch.") for t in held.update.tensors.values()})
    if held.clients > 1:
        yield "clients", f"mean over {held.clients} clients, each with the steps below"
    yield "update", f"{held.update.kind} of {len(parameters)} parameters, {count:,} elements, {', '.join(kinds)}"
    yield "norm", f"{float(held.update.norm()):.4g}"
    sent = "not sent" if held.update.buffers is None else f"{len(held.update.buffers)} sent, {len(buffers)} before"
    yield "buffers", sent
    yield "images", _or_unknown(held.images)
    yield "num_samples", "not sent" if held.update.num_samples is None else str(held.update.num_samples)
    yield "image shape", _or_unknown(held.image_shape and " x ".join(map(str, held.image_shape)))
    yield "pixels", _pixels(held.pixels)
    yield "defense", held.defense or "none stated"
    yield "filters", "; ".join(held.filters) or "none stated"
    source = held.source
    if source is not None:
        number = "" if source.round is None else f", round {source.round}"
        yield "source", f"{source.framework}{number}, recorded at the {source.place}"
        yield "versions", ", ".join(f"{name} {text}" for name, text in source.versions.items()) or "unknown"


def _or_unknown(value: Any) -> str:
    return "unknown" if value is None else str(value)


def _pixels(pixels: Pixels | None) -> str:
    if pixels is None:
        return "unknown"
    told = ", inferred from the images' values" if pixels.inferred else ""
    if pixels.mean is not None:
        return f"enter as (x - {list(pixels.mean)}) / {list(pixels.std or ())}{told}"
    return f"enter in the range {pixels.low:g} to {pixels.high:g}{told}"


def _steps(held: Record) -> Iterator[str]:
    if not held.steps.are_known:
        yield "unknown"
        return
    runs = [(len(list(same)), step) for step, same in groupby(held.steps.steps)]
    for count, step in runs[:_FEWEST] if len(runs) > _FULL else runs:
        yield f"{count} x {_step(step)}"
    if len(runs) > _FULL:
        yield f"and {sum(count for count, _ in runs[_FEWEST:])} more steps"


def _step(step: Step) -> str:
    told = ", ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in step.settings.items() if v)
    modes = set(step.modes.values()) or {step.training}
    mode = "mixed modes" if len(modes) > 1 else f"{'train' if modes == {True} else 'eval'} mode"
    how = f"{step.optimizer}({told})" if step.optimizer else "gradient"
    extra = [f"autocast {step.precision}"] if step.precision else []
    extra += [f"{step.passes} passes"] if step.passes > 1 else []
    extra += [f"gradient {step.change}"] if step.change else []
    return ", ".join([counted(step.images, "image"), how, step.loss or "unknown loss", mode, *extra])
