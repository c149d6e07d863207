"""Attacks that run in a process of their own, as this process sees them."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medpfl.core import progress
from medpfl.core.errors import InputError
from medpfl.core.plan import Plan
from medpfl.core.roles import Attack
from medpfl.core.trace import traced
from medpfl.core.types import Reconstruction, Weights
from medpfl.core.user_code.loading import at_home, is_place, parted
from medpfl.federated.server import Received
from medpfl.isolation.pipes import DamagedFrameError
from medpfl.isolation.process import Process
from medpfl.isolation.protocol import (
    Message,
    finite_share,
    packed,
    reconstruction_from,
    told_of,
    told_received,
    told_weights,
    unpacked,
    weights_from,
)

__all__ = ["Isolated", "Scene", "Worker", "absolute", "numerics", "started"]

_LONGEST = 10_000
"""Characters of a text that the worker says of an attack."""


@dataclass(frozen=True)
class Scene:
    """How the worker makes the model again, and the channel; all of it is public.

    Attributes:
        model: recipe of the network, see `medpfl.auditing.isolating.Recipe`.
        layers: spec of the defense whose layers it has.
        told: spec of the defense that says what it discloses.
        image_shape: (C, H, W).
        classes: of the data.
        device: of the computation.
    """

    model: Mapping[str, Any]
    layers: str
    told: str
    image_shape: tuple[int, ...]
    classes: int
    device: str


@dataclass(frozen=True)
class About:
    """What the worker says of an attack that it made.

    Attributes:
        number: by which it is called.
        spec: its ``repr``.
        name, module, qualname, doc: of its class.
        overrides: those of ``check``, ``suited`` and ``prepare`` that it has of its own.
    """

    number: int
    spec: str
    name: str
    module: str
    qualname: str
    doc: str
    overrides: tuple[str, ...]


class Worker:
    """The process that all isolated attacks of an audit share.

    Args:
        every: whether attacks of ours run in it too, and not only those that are given by their place.
        program: the module that it runs.
    """

    def __init__(self, every: bool = False, program: str = "medpfl.isolation.worker") -> None:
        self.every = every
        self._process = Process(program)
        self.system: list[str] = []
        try:
            begin = {"path": _search_path(), "folder": str(Path.cwd()), "numerics": numerics()}
            found = self.ask("your own attack", begin).head.get("system")
            self.system = [text for text in found if isinstance(text, str)] if isinstance(found, list) else []
        except BaseException:
            self.close(0.0)
            raise

    @property
    def number(self) -> int:
        """The process id."""
        return self._process.number

    @property
    def ended(self) -> bool:
        """The process has ended, and answers no more."""
        return self._process.ended

    def takes(self, text: str) -> bool:
        """Whether the attack of a spec runs in the worker."""
        return self.every or is_place(text)

    def attack(self, text: str) -> Isolated:
        """The attack that a spec without a sweep describes; nothing of it is imported here.

        Raises:
            InputError: what `medpfl.inputs.parts.attacks_of` raises, and a process that ends.
        """
        full = absolute(text)
        try:
            answer = self.ask(text, {"do": "build", "spec": full})
        except InputError as error:  # which names the file by the place where the worker finds it
            raise InputError(str(error).replace(_place(full), _place(text))) from error.__cause__
        return self.known(answer.head.get("about"), text)

    def known(self, told: Any, who: str) -> Isolated:
        """An attack that the worker has made and tells about."""
        try:
            about = About(**{**told, "overrides": tuple(told["overrides"])})
            texts = (about.spec, about.name, about.module, about.qualname, about.doc, *about.overrides)
            if type(about.number) is not int or not all(isinstance(t, str) and len(t) < _LONGEST for t in texts):
                raise ValueError
            if not about.name.isidentifier() or not about.spec.isprintable():
                raise ValueError
        except (TypeError, KeyError, ValueError):
            raise InputError(f"attack {who}: its process said something of it that cannot be used") from None
        names = {"__module__": about.module, "__qualname__": about.qualname, "__doc__": about.doc}
        return type(about.name, (Isolated,), names)(self, about)

    def ask(self, who: str, head: dict[str, Any], tensors: Mapping[str, Tensor] | None = None) -> Message:
        """The worker's answer to a request.

        Args:
            who: the attack, for messages.
            head, tensors: the request.

        Raises:
            InputError: what the attack raises as one, an answer that cannot be read, or a process that ended.
            MemoryError, RuntimeError: anything else that the attack raises, with its traceback as a note.
        """
        if self._process.ended:
            raise InputError(f"attack {who}: its process has ended")
        self._process.name = who
        try:
            self._process.pipe.send(*packed(Message(head, dict(tensors or {}))))
            while True:
                answer = unpacked(*self._process.pipe.receive())
                if "progress" not in answer.head:
                    break
                progress.report(finite_share(answer.head["progress"]))
        except EOFError:
            why = self._process.how_it_ended()
            self.close(0.0)
            raise InputError(f"attack {who}: {why}") from None
        except DamagedFrameError as error:
            self.close(0.0)
            raise InputError(f"attack {who}: its process answered with {error}") from None
        except (
            BaseException
        ):  # such as Ctrl-C: the answer that is under way would be taken for that to the next request
            self.close(0.0)
            raise
        if "error" in answer.head:
            raise _raised(answer.head)
        return answer

    def close(self, grace: float = 1.0) -> None:
        """Ends the process; see `medpfl.isolation.process.Process.end`."""
        self._process.end(grace)


@contextmanager
def started(every: bool = False) -> Iterator[Worker]:
    """A worker that ends with the block, at once where something is raised in it."""
    worker = Worker(every)
    try:
        yield worker
    except BaseException:
        worker.close(0.0)
        raise
    worker.close()


@dataclass(frozen=True, eq=False, repr=False)
class Isolated(Attack):
    """An attack that the worker runs. It has the attack's ``repr``, and its class the attack's name.

    Attributes:
        worker: where it runs.
        about: what the worker says of it.
        scene: how the worker makes the model; ``None``: not said yet, see `on`.
    """

    worker: Worker
    about: About
    scene: Scene | None = None

    def on(self, scene: Scene) -> Isolated:
        """The same attack on a model."""
        return replace(self, scene=scene)

    def __repr__(self) -> str:
        return self.about.spec

    def __eq__(self, other: object) -> bool:
        """Whether it is the same attack, wherever it runs."""
        home = (type(other).__module__, type(other).__qualname__)
        return isinstance(other, Attack) and repr(self) == repr(other) and home == _home(self)

    def __hash__(self) -> int:
        return hash(self.about.spec)

    def modules(self) -> dict[str, str]:
        """Return digests by name of the modules of the user's own behind it, as they are now.

        They are those of `medpfl.core.user_code.sources.modules_of`, and all others that its process has imported.

        Raises:
            InputError: a file was changed after its process imported it, or the answer cannot be used.
        """
        found = self._ask({"do": "modules"}).head.get("modules")
        pairs = found.items() if isinstance(found, dict) else [(None, None)]
        if not all(isinstance(text, str) and len(text) < _LONGEST for pair in pairs for text in pair):
            raise InputError(f"attack {self!r}: its process gave no digests of its code")
        return {str(name): str(digest) for name, digest in pairs}

    def __call__(self, seen: Any, generator: torch.Generator) -> Reconstruction:
        """The attack's guesses, seen to be what they must be.

        Args:
            seen: a `medpfl.federated.server.Received`, of which the worker makes the observation.
            generator: whose state is handed over; it stays as it is.

        Raises:
            InputError: also for an answer that is no reconstruction of these victims.
        """
        assert isinstance(seen, Received)
        told = told_received(seen)
        head = {"do": "attack", "scene": self._scene(), "most": traced(), **told.head}
        answer = self._ask(head, {**told.tensors, "generator": generator.get_state()})
        try:
            return reconstruction_from(answer, seen)
        except InputError as error:
            raise InputError(f"attack {self!r}: {error}") from None

    def check(self, model: nn.Module, plans: tuple[Plan, ...], image_shape: tuple[int, ...]) -> None:
        """Raises `InputError` if it cannot attack this model."""
        if "check" in self.about.overrides:
            head = {"do": "check", "plans": [told_of(plan) for plan in plans], "image_shape": list(image_shape)}
            self._ask({**head, "scene": self._scene()}, told_weights(Weights.of(model)))

    def suited(self, model: nn.Module) -> tuple[Attack, ...]:
        """Itself with settings for such a model, each in the worker too."""
        if "suited" not in self.about.overrides:
            return ()
        found = self._ask({"do": "suited", "scene": self._scene()}, told_weights(Weights.of(model))).head.get("found")
        return tuple(self.worker.known(told, repr(self)) for told in (found if isinstance(found, list) else ())[:100])

    def prepare(self, model: nn.Module) -> nn.Module:
        """The model with the weights that an active server sends.

        Raises:
            InputError: the attack changes more of it than weights, which cannot be sent without running its code here.
        """
        if "prepare" not in self.about.overrides:
            return model
        own = Weights.of(model)
        answer = self._ask({"do": "prepare", "scene": self._scene()}, told_weights(own))
        sent, changed = weights_from(answer.tensors), copy.deepcopy(model)
        tensors = {**sent.parameters, **sent.buffers}
        ours = {**own.parameters, **own.buffers}
        if {k: (t.shape, t.dtype) for k, t in tensors.items()} != {k: (t.shape, t.dtype) for k, t in ours.items()}:
            raise InputError(f"attack {self!r}: the weights that it chose are not those of the model")
        with torch.no_grad():
            for name, tensor in (*changed.named_parameters(), *changed.named_buffers()):
                tensor.copy_(tensors[name])
        return changed

    def _scene(self) -> dict[str, Any]:
        assert self.scene is not None
        return {**vars(self.scene), "image_shape": list(self.scene.image_shape)}

    def _ask(self, head: dict[str, Any], tensors: Mapping[str, Tensor] | None = None) -> Message:
        return self.worker.ask(repr(self), {**head, "attack": self.about.number}, tensors)


def absolute(text: str) -> str:
    """A spec whose place, if it is a file, is found from any working directory.

    >>> absolute("DLG(steps=3)"), absolute("/a/b (1).py:Mine()"), absolute("package.module:Mine")
    ('DLG(steps=3)', '/a/b (1).py:Mine()', 'package.module:Mine')
    """
    place = _place(text)
    return f"{at_home(place).absolute()}{text[len(place) :]}" if place.endswith(".py") else text


def _place(text: str) -> str:
    found = parted(text)
    return found[0] if found else ""


def numerics() -> dict[str, Any]:
    """Settings of this process that decide the last bits of a result."""
    return {
        "threads": torch.get_num_threads(),
        "dtype": str(torch.get_default_dtype()).removeprefix("torch."),
        "matmul": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn": [torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32],
    }


def _search_path() -> list[str]:
    return [os.path.abspath(place) for place in sys.path if isinstance(place, str)]  # noqa: PTH100 (zips too)


def _home(attack: Attack) -> tuple[str, str]:
    return type(attack).__module__, type(attack).__qualname__


def _raised(head: dict[str, Any]) -> Exception:
    """What the attack raised in the worker, to be raised here."""
    kinds = {"input": InputError, "memory": MemoryError}
    kind = kinds.get(head["error"], RuntimeError) if isinstance(head["error"], str) else RuntimeError
    error = kind(str(head.get("text", ""))[:_LONGEST])
    if head.get("trace"):
        error.add_note(f"In the attack's process:\n{str(head['trace'])[:_LONGEST]}")
    return error
