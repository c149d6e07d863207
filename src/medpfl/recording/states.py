"""``medpfl record`` and ``medpfl inspect``: from options to records and views, with the model that a person names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

from medpfl.core.errors import InputError
from medpfl.core.experiments.recording import Looking, Recording
from medpfl.core.messages import counted
from medpfl.core.plan import Plan
from medpfl.core.records.origin import CHECKPOINTS, Pixels
from medpfl.core.records.truth import Truth
from medpfl.core.records.view import RecordView
from medpfl.core.tensors import shared_prefix
from medpfl.data.images import LabelledImages
from medpfl.inputs.network import network_of
from medpfl.inputs.parts import data_of, model_of
from medpfl.inputs.spelling import path_of
from medpfl.models.entering import entering
from medpfl.models.weights import read_state
from medpfl.recording.check import is_zero
from medpfl.recording.folder import truth_given
from medpfl.recording.record import UpdateFacts, Written, keep, make_record, origin_of
from medpfl.recording.view import view_made, view_of

__all__ = ["RecordingResult", "perform_looking", "perform_recording"]


class RecordingResult(NamedTuple):
    """The result of ``medpfl record``: the files, the view of the record, and the end of the truth's retention."""

    written: Written
    view: RecordView
    expires: str


def perform_recording(asked: Recording) -> RecordingResult:
    """Make a record from two states, check it as far as possible, and return what was written.

    Raises:
        InputError: a file cannot be read, the states belong to different models or are equal, or the images do not fit
            the plan or the model. Then nothing is written.
    """
    if asked.clients > 1 and asked.truth is not None:
        raise InputError("--truth holds one client's images, but --clients averages several: give --truth to the audit")
    data = None if asked.truth is None else data_of(asked.truth, asked.reading).images
    plan, pixels = _plan(asked, data), _pixels(asked)
    if data is not None:
        _check_channels(pixels, data.shape[0])
    before, after = (read_state(path_of(path)) for path in (asked.before, asked.after))
    network = _network(asked, data)
    parameters = None
    if network is not None:
        before, after = (_as_in(network, state, which) for state, which in ((before, "before"), (after, "after")))
        parameters = [name for name, p in network.named_parameters() if p.requires_grad]
    facts = UpdateFacts(
        num_samples=plan.images * asked.clients,
        clients=asked.clients,
        image_shape=None if data is None else data.shape,
        defense=asked.defense,
        pixels=pixels,
        source=origin_of(CHECKPOINTS, round=asked.round),
    )
    made = make_record(before, after, plan, parameters=parameters, facts=facts)
    if is_zero(made):
        raise InputError(
            "the two checkpoints hold equal parameters, so there is no update: give the state before the local "
            "training, and the one after it (a loop must save the first before it trains, or clone its tensors)"
        )
    truth = None
    if data is not None:
        labels = data.labels if data.masks is None else data.masks
        truth = Truth(entering(data.images[:], pixels or Pixels()), labels, days=asked.days)
    folder = path_of(asked.out)
    view = view_made(made, folder / "record.safetensors", truth, None if asked.model is None else model_of(asked.model))
    written = keep(folder, made, truth)  # only now: what ends in an error leaves no private image behind
    return RecordingResult(written, view, "" if truth is None else f"{truth.expires:%Y-%m-%d}")


def perform_looking(asked: Looking) -> RecordView:
    """Return the view of a record.

    Raises:
        InputError: as in `medpfl.recording.view.view_of`.
    """
    model = None if asked.model is None else model_of(asked.model)
    truth = truth_given(asked.truth, path_of(asked.record))
    return view_of(asked.record, truth, model, asked.reading, asked.raw)


def _plan(asked: Recording, data: LabelledImages | None) -> Plan:
    images = asked.local_images or (len(data) if data is not None else None)
    if data is not None and images != len(data):
        raise InputError(
            f"--local-images is {images}, but --truth holds {counted(len(data), 'image')}: give exactly those images"
        )
    batch = min(asked.batch_size, images or asked.batch_size)
    return Plan(
        "FedAvg",
        batch,
        images,
        asked.epochs,
        asked.learning_rate,
        asked.momentum,
        asked.weight_decay,
        dampening=asked.dampening,
        nesterov=asked.nesterov,
        loss=asked.loss,
        label_smoothing=asked.label_smoothing,
        mode=asked.mode,
    )


def _pixels(asked: Recording) -> Pixels | None:
    if (asked.mean is None) != (asked.std is None):
        raise InputError("--mean and --std belong together: give both, or none if pixels enter the model in [0, 1]")
    if asked.mean is None or asked.std is None:
        return Pixels() if asked.truth is not None else None
    mean, std = _numbers("--mean", asked.mean), _numbers("--std", asked.std)
    if min(std) <= 0:
        raise InputError(f"--std is {asked.std}: pixels are divided by it, so give numbers above 0")
    if len(mean) != len(std):
        raise InputError(f"--mean has {counted(len(mean), 'number')} and --std {len(std)}: give as many of both")
    return Pixels(mean=mean, std=std)


def _check_channels(pixels: Pixels | None, channels: int) -> None:
    """Raise `InputError` if a mean per channel is not for the images: a single gray channel would become three."""
    given = 1 if pixels is None or pixels.mean is None else len(pixels.mean)
    if given not in (1, channels):
        of = counted(channels, "channel")
        raise InputError(
            f"--mean and --std have {given} numbers, but the images {of}: give one for each, or one for all"
        )


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(one) for one in text.strip("()[] ").split(","))
    except ValueError:
        raise InputError(f"{option} is {text:.60}: give a number for each channel, such as 0.485,0.456,0.406") from None


def _network(asked: Recording, data: LabelledImages | None) -> nn.Module | None:
    if asked.model is None:
        return None
    reading = asked.reading
    shape = data.shape if data is not None else (reading.channels or 1, reading.size, reading.size)
    return network_of(model_of(asked.model), shape, len(data.classes) if data is not None else 2, 0)


def _as_in(network: nn.Module, state: Mapping[str, Tensor], which: str) -> dict[str, Tensor]:
    """Return a state's entries under the network's names, without a wrapper's prefix and without second names."""
    own = dict(network.named_parameters()) | dict(network.named_buffers())
    prefix = shared_prefix(list(state), list(own))
    bare = {name.removeprefix(prefix): value for name, value in state.items()}
    needed = set(network.state_dict()) & set(own)
    if missing := sorted(needed - bare.keys()):
        raise InputError(
            f"the state {which} the training has no '{missing[0]}': give the state of the model in --model"
        )
    return {name: bare[name] for name in own if name in bare}
