"""Training checkpoints: one directory per round (``round-5``) with the global model and its origin."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from medpfl import defenses as defense_package
from medpfl import models as model_package
from medpfl.core.atomic_files import PRIVATE, write
from medpfl.core.errors import InputError, listed
from medpfl.core.experiments.limits import ROUNDS, check_classes, check_image_shape, check_whole
from medpfl.core.roles import NO_DEFENSE, Defense, Model
from medpfl.core.spec import registry, shown
from medpfl.core.tensors import oddity
from medpfl.core.types import Weights
from medpfl.core.user_code.stated import check_stated, names_of, stated
from medpfl.core.verdicts import UNDEFENDED
from medpfl.models.sized import built
from medpfl.runs.environment import generator_of

__all__ = [
    "STATE",
    "WEIGHTS",
    "AboutCheckpoint",
    "Checkpoint",
    "checkpoint_at",
    "is_checkpoint",
    "keep",
    "put_weights",
    "round_folder",
]

WEIGHTS, STATE = "weights.safetensors", "state.safetensors"
_ABOUT, _VERSION = "medpfl-round", 1


@dataclass(frozen=True)
class AboutCheckpoint:
    """A checkpoint's description of itself. It contains no image, patient, class name or path.

    Attributes:
        round: round number.
        model, defense: specs.
        image_shape: (C, H, W).
        classes: number of model outputs.
        seed: the training's seed.
    """

    round: int
    model: str
    defense: str
    image_shape: tuple[int, ...]
    classes: int
    seed: int


@dataclass(frozen=True, repr=False)
class Checkpoint(Model):
    """The global model after a round of training, including layers added by the training's defense.

    Attributes:
        path: path of the weights; it appears in no output.
        about: the checkpoint's description of itself.
        trained: the model's spec.
        defense: spec of the training's defense.
        round: the round after which it was saved.
    """

    path: Path = field(repr=False)
    about: AboutCheckpoint = field(repr=False)
    trained: str = ""
    defense: str = UNDEFENDED
    round: int = shown(0)

    def build(self, image_shape: tuple[int, ...], num_classes: int, seed: int) -> nn.Module:
        """Return the trained network; `num_classes` and `seed` are ignored.

        Raises:
            InputError: the image shape differs from the one in training, the model cannot be built from its spec, or
                the weights do not fit it.
        """
        about = self.about
        if tuple(image_shape) != about.image_shape:
            channels, *sides = about.image_shape
            raise InputError(
                f"the checkpoint was trained on images of {about.image_shape}, but these are {tuple(image_shape)}: "
                f"use --size {sides[-1]} --channels {channels}"
            )
        network = self.layers()
        put_weights(network, self.path)
        return network

    def layers(self) -> nn.Module:
        """Return the network without its trained weights.

        Raises:
            InputError: the model cannot be built from its spec.
        """
        network, defense = self._network(), self._defense()
        # The same draws as in the training, so that the defense adds the same layers.
        network, _ = defense.model(network, defense.init(), generator_of(self.about.seed, "model"))
        return network

    def _defense(self) -> Defense:
        known = registry(defense_package)
        if not set(names_of(self.about.defense, "defense")) <= known.keys():
            return NO_DEFENSE  # the user's own defense, whose code the folder does not hold
        return stated(self.about.defense, known, "defense", self.path, f"--model with --weights '{self.path}'")

    def _network(self) -> nn.Module:
        known = registry(model_package)
        try:
            if unknown := set(names_of(self.about.model, "model")) - known.keys():
                raise InputError(f"there is no model '{min(unknown)}' in MedPFL")
            model = stated(self.about.model, known, "model", self.path, "--model")
        except InputError as error:
            raise InputError(
                f"the checkpoint's model {self.about.model} is not stored in its folder ({error}): give "
                f"the model itself as --model, with --weights '{self.path}'"
            ) from None
        try:
            return built(model, self.about.image_shape, self.about.classes, 0)
        except InputError as error:
            raise InputError(f"the checkpoint's {self.about.model:.80} cannot be built: {error}") from None


def keep(out: Path, about: AboutCheckpoint, network: nn.Module, weights: Weights, state: bytes) -> None:
    """Write a round's directory, whole or not at all, and delete the training state from two rounds earlier.

    Only the owner can read the state: it may hold what clients kept back (error feedback).
    """
    part, folder = out / f".round-{about.round}", round_folder(out, about.round)
    for old in (part, folder):
        shutil.rmtree(old, ignore_errors=True)
    part.mkdir()
    put_state(network, weights)
    tensors = {**network.state_dict(), **weights.buffers, **weights.parameters}
    own = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    # One entry only: the order of several would differ from run to run.
    header = {_ABOUT: json.dumps({"version": _VERSION, **about.__dict__})}
    write(part / WEIGHTS, save(own, header))
    write(part / STATE, state, PRIVATE)
    part.rename(folder)
    (round_folder(out, about.round - 2) / STATE).unlink(missing_ok=True)


def round_folder(out: Path, number: int) -> Path:
    """Return the path of a round inside a training's directory."""
    return out / f"round-{number}"


def put_weights(network: nn.Module, path: Path) -> None:
    """Load a checkpoint's weights into a network, in place.

    Raises:
        InputError: the file is damaged, or the weights belong to another model.
    """
    tensors, _ = _read(path)
    own = Weights.of(network)
    known = {**own.buffers, **own.parameters}
    problems = [f"{k}: in the model, not in the checkpoint" for k in known if k not in tensors]
    problems += [
        f"{k}: in the checkpoint, not in the model" for k in tensors if k not in {**network.state_dict(), **known}
    ]
    problems += [
        f"{k}: {tuple(tensors[k].shape)} in the checkpoint, {tuple(t.shape)} in the model"
        for k, t in known.items()
        if k in tensors and tensors[k].shape != t.shape
    ]
    problems += [f"{k}: {why}" for k, t in tensors.items() if (why := oddity(t))]
    if problems:
        raise InputError(f"the checkpoint '{path.parent}' belongs to another model:{listed(sorted(problems))}")
    put_state(network, Weights(tensors))


def put_state(network: nn.Module, weights: Weights) -> None:
    """Copy tensors into the network's own, matched by name."""
    given = {**weights.buffers, **weights.parameters}
    with torch.no_grad():
        for own in (dict(network.named_parameters()), dict(network.named_buffers())):
            for name, tensor in own.items():
                tensor.copy_(given[name])


def _checked(about: AboutCheckpoint) -> AboutCheckpoint:
    """Return a checkpoint's description after checking its values.

    Raises:
        ValueError: a value is not possible.
    """
    for name, kind in (("round", int), ("model", str), ("defense", str), ("seed", int)):
        if type(value := getattr(about, name)) is not kind:
            raise ValueError(f"its header says {name} {value!r:.40}")
    check_whole("round", about.round, 0, ROUNDS)
    check_classes(about.classes)
    return replace(about, image_shape=check_image_shape(about.image_shape))


def is_checkpoint(path: Any) -> bool:
    """Return True if `path` is the directory of a training or of one of its rounds."""
    return isinstance(path, str | Path) and bool(path) and Path(path).is_dir() and _rounds(Path(path)) != []


def checkpoint_at(path: Path, number: int | None = None) -> Checkpoint:
    """Return the checkpoint of a round.

    Args:
        path: directory of a training or of a round.
        number: round number; ``None`` takes the last round, or the directory's own.

    Raises:
        InputError: the round does not exist, or a file is damaged.
    """
    rounds = _rounds(path)
    chosen = rounds[-1:] if number is None else [r for r in rounds if r.name == round_folder(path, number).name]
    if not chosen:
        known = ", ".join(r.name.removeprefix("round-") for r in rounds[:20])
        raise InputError(f"'{path}' has no round {number}: there are {known}")
    file = chosen[0] / WEIGHTS
    _, about = _read(file)
    for role, spec in (("model", about.model), ("defense", about.defense)):
        check_stated(spec, role, file, "--model" if role == "model" else "--model and --weights")
    return Checkpoint(file, about, about.model, about.defense, about.round)


def _rounds(path: Path) -> list[Path]:
    if (path / WEIGHTS).is_file():
        return [path]
    found = [p for p in path.glob("round-*") if p.name[6:].isdecimal() and (p / WEIGHTS).is_file()]
    return sorted(found, key=lambda p: int(p.name[6:]))


def _read(path: Path) -> tuple[dict[str, Tensor], AboutCheckpoint]:
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})[_ABOUT])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        if about.pop("version") != _VERSION:
            raise ValueError("it has another format version")
        return tensors, _checked(AboutCheckpoint(**about))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(f"'{path}' is not a training checkpoint, or it is damaged: {error}") from None
