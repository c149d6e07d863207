"""Making records: from a watched loop, or from two states and a plan."""

from __future__ import annotations

import platform
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from medpfl.core.errors import InputError, private
from medpfl.core.messages import say
from medpfl.core.plan import Plan
from medpfl.core.records.origin import Pixels, Source
from medpfl.core.records.record import Record
from medpfl.core.records.steps import Steps
from medpfl.core.records.truth import RETENTION, Truth, digest_of
from medpfl.core.types import Tensors, Update, Weights
from medpfl.core.versions import version_of
from medpfl.models.wrapped import innermost
from medpfl.recording.watching.watch import Watch, watch

__all__ = [
    "UpdateFacts",
    "Written",
    "buffers_in",
    "keep",
    "make_record",
    "origin_of",
    "record",
    "state_of",
    "tell_problems",
]

BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
"""Last words of the names of batch norm's buffers."""


class Written(NamedTuple):
    """Files that were written: the record, and the truth if it was asked for."""

    record: Path
    truth: Path | None


@dataclass(frozen=True, kw_only=True)
class UpdateFacts:
    """Facts about an update besides its tensors and steps, as in `medpfl.core.records.record.Record`.

    Attributes:
        num_samples: number of images that the client states; by default, those of the steps.
        image_shape, classes, defense, pixels, source, filters, clients: as in a record.
    """

    num_samples: int | None = None
    image_shape: tuple[int, ...] | None = None
    classes: Sequence[str] | None = None
    defense: str | None = None
    pixels: Pixels | None = None
    source: Source | None = None
    filters: Sequence[str] = ()
    clients: int = 1


@contextmanager
def record(
    folder: str | Path,
    model: nn.Module,
    *,
    truth: bool = False,
    days: int = RETENTION,
    num_samples: int | None = None,
    classes: Sequence[str] | None = None,
    pixels: Pixels | None = None,
    source: Source | None = None,
) -> Iterator[Watch]:
    """Watch the training in the body, and write a record of its update into a folder.

    After the training nothing is raised, so that its result is not lost: a record that cannot be written, or whose
    training was not seen, is a note on standard error.

    Args:
        folder: folder for the record; it is made if it does not exist.
        model: the model that is trained.
        truth: True also writes pixels, labels and order into ``private-truth`` inside the folder, for this site only.
        days: days for which the truth may be kept; ``medpfl forget`` deletes it.
        num_samples: number of images that the client states; by default, the number of different images seen.
        classes: class names in label order; the record contains them.
        pixels: how images in [0, 1] enter the model, if the loader normalizes them, as in
            ``Pixels(mean=(0.5,), std=(0.25,))``; by default, it is inferred from their values.
        source: the framework around the loop.

    Raises:
        InputError: the folder cannot be made. This is checked before the training.
    """
    bare = innermost(model)
    before = state_of(bare)
    source = source or origin_of("torch")
    facts = UpdateFacts(num_samples=num_samples, classes=classes, pixels=pixels, source=source)
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder {private(folder)} cannot be made: {private(error)}: name another one") from None
    with watch(bare, keep=truth) as seen:
        yield seen
    try:
        made = make_record(before, state_of(bare), seen, facts=facts)
        kept = seen.truth(days) if truth else None
        keep(folder, made, kept)
    except Exception as error:
        say(f"note: this update was not recorded: {error if isinstance(error, InputError) else private(error)}")
        return
    tell_problems(seen, truth, kept)


def tell_problems(seen: Watch, asked: bool, truth: Truth | None) -> None:
    """Print what the watch could not see, and why there is no truth file although it was asked for."""
    for problem in seen.problems:
        say(f"note: while recording: {problem}")
    if asked and truth is None:
        why = "the training was not seen to its end" if seen.broken else "no label was seen"
        say(f"note: no truth file was written, because {why}")


def make_record(
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    trained: Watch | Plan | Steps,
    *,
    parameters: Sequence[str] | None = None,
    sent: Literal["weights", "difference", "gradient"] = "weights",
    facts: UpdateFacts | None = None,
) -> Record:
    """Return the record of an update from the model's state before the training and what left the client.

    Args:
        before: state dict before the training.
        after: state dict that left the client: new weights, or as `sent` says a difference or a gradient by name.
        trained: a watch that saw the training, the plan, or the steps.
        parameters: names of the trained parameters; by default those that the watch saw, or else all that are not
            buffers by their names (see `buffers_in`).
        sent: kind of the tensors in `after`. Buffers in it are always the values after the training.
        facts: further facts. A watch knows the image shape and the range of pixels.

    Raises:
        InputError: the states do not have the same entries and shapes, or no training step was seen.
    """
    known = facts or UpdateFacts()
    steps = trained.steps() if isinstance(trained, Watch) else trained
    if isinstance(trained, Watch):
        parameters = parameters or trained.parameters or None
        shape, pixels = known.image_shape or trained.image_shape, known.pixels or trained.pixels
        known = replace(known, image_shape=shape, pixels=pixels, source=_on_device(known.source, trained.device))
    before, after = _same_names(before, after, whole=sent == "weights")
    names = _trained_in(before, parameters)
    weights = Weights({k: before[k] for k in before if k in names}, {k: before[k] for k in before if k not in names})
    tensors = {k: _difference(before[k], after[k]) if sent == "weights" else after[k] for k in weights.parameters}
    buffers = {k: after[k] for k in weights.buffers if k in after}
    each = None if steps.images is None else steps.images * known.clients
    count = known.num_samples if known.num_samples is not None else each
    return Record(
        Update(tensors, "gradient" if sent == "gradient" else "difference", buffers, count),
        _plan_of(steps, None if count is None else count // known.clients),
        weights,
        known.image_shape,
        None if known.classes is None else tuple(known.classes),
        known.defense,
        tuple(known.filters),
        known.source,
        known.pixels,
        known.clients,
    )


def keep(folder: str | Path, made: Record, truth: Truth | None = None, name: str | None = None) -> Written:
    """Write a record, and the client's truth if there is one, and return the paths.

    Args:
        folder: folder for the record; the truth goes into ``private-truth`` inside it.
        made: the record.
        truth: the private images, labels and order.
        name: the record's file name; by default ``round-0003-<random>.safetensors``, or ``update-...`` without a round.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    number = None if made.source is None else made.source.round
    start = "update" if number is None else f"round-{number:04d}"
    path = folder / (name or f"{start}-{secrets.token_hex(4)}.safetensors")
    made.save(path)
    try:
        return Written(path, None if truth is None else truth.of(digest_of(path)).save(folder, path.name))
    except BaseException:
        path.unlink(missing_ok=True)  # a record whose truth is missing would be audited as if none had been asked for
        raise


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of a model's parameters and buffers by name, each once."""
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: t.detach().cpu().clone() for name, t in own.items()}


def buffers_in(state: Mapping[str, Tensor]) -> set[str]:
    """Return the names of the entries that are buffers by their names and dtypes.

    These are batch norm's ``running_mean``, ``running_var`` and ``num_batches_tracked``, and all tensors of integers.
    """
    return {k for k, t in state.items() if k.rpartition(".")[2] in BUFFERS or not t.is_floating_point()}


def origin_of(
    framework: str,
    packages: Sequence[str] = (),
    round: int | None = None,
    place: Literal["client", "server"] = "client",
) -> Source:
    """Return the source for a framework, with the versions of Python, torch, MedPFL and other packages."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}  # with its build, such as "+cu130"
    return Source(framework, versions | {name: version_of(name) for name in ("medpfl", *packages)}, round, place)


def _on_device(source: Source | None, device: str) -> Source | None:
    """Return a source that states the device: a replay on a CPU rounds otherwise than a GPU."""
    if source is None:
        return None
    return replace(source, versions={**source.versions, "device": device})


def _plan_of(steps: Plan | Steps, images: int | None) -> Plan | Steps:
    if isinstance(steps, Plan):
        return steps
    try:
        return steps.regular(images)
    except InputError:
        return steps


def _same_names(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], whole: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return both states on the CPU; raise `InputError` unless they have the same entries and shapes."""
    one, other = ({k: t.detach().cpu() for k, t in state.items()} for state in (before, after))
    missing = sorted(one.keys() - other.keys()) if whole else []
    for name in [*missing, *sorted(other.keys() - one.keys())]:
        where = "before" if name in one else "after"
        raise InputError(f"'{name}' is only in the state {where} the training: give two states of the same model")
    for name, value in other.items():
        if one[name].shape != value.shape:
            shapes = f"{tuple(one[name].shape)} before and {tuple(value.shape)} after the training"
            raise InputError(f"'{name}' has the shape {shapes}: give two states of the same model")
    return one, other


def _trained_in(before: Tensors, parameters: Sequence[str] | None) -> set[str]:
    if parameters is None:
        return set(before) - buffers_in(before)
    if unknown := set(parameters) - set(before):
        raise InputError(f"the parameter '{min(unknown)}' is not in the state: name the model's own parameters")
    return set(parameters)


def _difference(before: Tensor, after: Tensor) -> Tensor:
    """Return new minus old, in at least float32: the difference of two half-precision numbers may need more digits."""
    kind = torch.promote_types(torch.promote_types(before.dtype, after.dtype), torch.float32)
    return after.to(kind) - before.to(kind)
