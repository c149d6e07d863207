"""A directory for each round of a training, ``round-5``: the global model, and where it came from."""

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
    "About",
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
class About:
    """What a checkpoint says of itself. It names no image, patient, class or path.

    Attributes:
        round: its number.
        model, defense: specs.
        image_shape: (C, H, W).
        classes: outputs that the model was built for.
        seed: of the training.
    """

    round: int
    model: str
    defense: str
    image_shape: tuple[int, ...]
    classes: int
    seed: int


@dataclass(frozen=True, repr=False)
class Checkpoint(Model):
    """The global model of a round of a training, with the layers that the training's defense put into it.

    Attributes:
        path: of the weights; it is kept out of everything that is written.
        trained: spec of the model.
        defense: spec of the training's defense.
        round: after which it was saved.
    """

    path: Path = field(repr=False)
    about: About = field(repr=False)
    trained: str = ""
    defense: str = UNDEFENDED
    round: int = shown(0)

    def build(self, image_shape: tuple[int, ...], num_classes: int, seed: int) -> nn.Module:
        """The trained network; the seed says nothing.

        Raises:
            InputError: images of another shape than it was trained on, a model that cannot be made from its
                spec, or weights that do not fit it.
        """
        about = self.about
        if tuple(image_shape) != about.image_shape:
            channels, *sides = about.image_shape
            raise InputError(
                f"the checkpoint was trained on images of {about.image_shape}, these are {tuple(image_shape)}: "
                f"--size {sides[-1]} --channels {channels}"
            )
        network = self.layers()
        put_weights(network, self.path)
        return network

    def layers(self) -> nn.Module:
        """The network without its trained weights.

        Raises:
            InputError: a model that cannot be made from its spec.
        """
        network, defense = self._network(), self._defense()
        # The same draws as the training's: layers that the defense put in.
        network, _ = defense.model(network, defense.init(), generator_of(self.about.seed, "model"))
        return network

    def _defense(self) -> Defense:
        known = registry(defense_package)
        if not set(names_of(self.about.defense, "defense")) <= known.keys():
            return NO_DEFENSE  # the user's own, which the folder does not hold: its layers would not fit
        return stated(self.about.defense, known, "defense", self.path, f"--model with --weights '{self.path}'")

    def _network(self) -> nn.Module:
        known = registry(model_package)
        try:
            if unknown := set(names_of(self.about.model, "model")) - known.keys():
                raise InputError(f"there is no model '{min(unknown)}' in MedPFL")
            model = stated(self.about.model, known, "model", self.path, "--model")
        except InputError as error:
            raise InputError(
                f"the checkpoint was trained from {self.about.model}, which its folder does not hold ({error}): give "
                f"the model itself as --model, with --weights '{self.path}'"
            ) from None
        try:
            return built(model, self.about.image_shape, self.about.classes, 0)
        except InputError as error:
            raise InputError(f"the checkpoint's {self.about.model:.80} cannot be built: {error}") from None


def keep(out: Path, about: About, network: nn.Module, weights: Weights, state: bytes) -> None:
    """Writes a round's directory, whole or not at all; older states but that of the round before go.

    The state is readable by its owner alone: it may hold what clients have kept back (error feedback).
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
    """Where a round lies in a training's directory."""
    return out / f"round-{number}"


def put_weights(network: nn.Module, path: Path) -> None:
    """Loads a checkpoint's weights into a network, in place.

    Raises:
        InputError: a damaged file, or weights of another model.
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
        raise InputError(f"the checkpoint '{path.parent}' is of another model:{listed(sorted(problems))}")
    put_state(network, Weights(tensors))


def put_state(network: nn.Module, weights: Weights) -> None:
    """Copies tensors into the network's own, by name."""
    given = {**weights.buffers, **weights.parameters}
    with torch.no_grad():
        for own in (dict(network.named_parameters()), dict(network.named_buffers())):
            for name, tensor in own.items():
                tensor.copy_(given[name])


def _checked(about: About) -> About:
    """What a file says of itself, if it can be true; raises `ValueError` if not."""
    for name, kind in (("round", int), ("model", str), ("defense", str), ("seed", int)):
        if type(value := getattr(about, name)) is not kind:
            raise ValueError(f"its header says {name} {value!r:.40}")
    check_whole("round", about.round, 0, ROUNDS)
    check_classes(about.classes)
    return replace(about, image_shape=check_image_shape(about.image_shape))


def is_checkpoint(path: Any) -> bool:
    """Whether something is the directory of a training, or of one of its rounds."""
    return isinstance(path, str | Path) and bool(path) and Path(path).is_dir() and _rounds(Path(path)) != []


def checkpoint_at(path: Path, number: int | None = None) -> Checkpoint:
    """The model of a round.

    Args:
        path: of the training's directory, or of a round's.
        number: of the round; ``None``: the last one, or the round of the directory.

    Raises:
        InputError: no such round, or a damaged file.
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


def _read(path: Path) -> tuple[dict[str, Tensor], About]:
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})[_ABOUT])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        if about.pop("version") != _VERSION:
            raise ValueError("it is of another version")
        return tensors, _checked(About(**about))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(f"'{path}' is no checkpoint of a training, or damaged: {error}") from None
