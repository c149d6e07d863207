"""The audit's side of isolation: the worker process, and the attacks that run in it."""

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
    told_plan,
    told_received,
    told_weights,
    unpacked,
    weights_from,
)

__all__ = ["Isolated", "Scene", "Worker", "absolute", "numerics", "started"]

_LONGEST = 10_000
"""Maximum length of a text from the worker."""


@dataclass(frozen=True)
class Scene:
    """The public settings from which the worker rebuilds the model and the channel.

    Attributes:
        model: recipe for the network, see `medpfl.auditing.isolating.Recipe`.
        layers: spec of the defense whose layers the network contains.
        told: spec of the defense whose disclosure the attacker may use.
        image_shape: shape (C, H, W).
        classes: number of classes in the data.
        device: the device that computes.
    """

    model: Mapping[str, Any]
    layers: str
    told: str
    image_shape: tuple[int, ...]
    classes: int
    device: str


@dataclass(frozen=True)
class AboutAttack:
    """The worker's description of an attack in its process.

    Attributes:
        number: the attack's index in the worker, used in requests.
        spec: the attack's ``repr``.
        name, module, qualname, doc: name, module, qualified name and docstring of the attack's class.
        overrides: the methods among ``check``, ``suited`` and ``prepare`` defined by the class itself.
    """

    number: int
    spec: str
    name: str
    module: str
    qualname: str
    doc: str
    overrides: tuple[str, ...]


class Worker:
    """The process shared by all isolated attacks in an audit.

    Args:
        every: true if built-in attacks run in it too, not only those given as ``file.py:Name`` or
            ``package.module:Name``.
        program: the module to run, as with ``python -m``.

    Attributes:
        system: the operating system's isolation of the process, see `medpfl.isolation.system.active`.
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
        """True if the process has been ended, so that it answers no more requests."""
        return self._process.ended

    def __reduce__(self) -> tuple[type[Worker], tuple[bool]]:
        """Return how another process gets such a worker: it starts its own, which ends with it."""
        return Worker, (self.every,)

    def takes(self, text: str) -> bool:
        """Return True if the attack with this spec runs in the worker."""
        return self.every or is_place(text)

    def attack(self, text: str) -> Isolated:
        """Build the attack from a spec without a sweep. Its code is imported only in the worker.

        Raises:
            InputError: `medpfl.inputs.parts.attacks_of` rejects the spec, or the process ends.
        """
        full = absolute(text)
        try:
            answer = self.ask(text, {"do": "build", "spec": full})
        except InputError as error:  # it names the file by the absolute path that the worker got
            raise InputError(str(error).replace(_place(full), _place(text))) from error.__cause__
        return replace(self.known(answer.head.get("about"), text), spec=full)

    def known(self, told: Any, who: str) -> Isolated:
        """Return a stand-in for an attack built by the worker.

        Args:
            told: the worker's description of it, with the fields of `AboutAttack`.
            who: the attack's name in error messages.

        Raises:
            InputError: the description is unusable.
        """
        try:
            about = AboutAttack(**{**told, "overrides": tuple(told["overrides"])})
            texts = (about.spec, about.name, about.module, about.qualname, about.doc, *about.overrides)
            if type(about.number) is not int or not all(isinstance(t, str) and len(t) < _LONGEST for t in texts):
                raise ValueError
            if not about.name.isidentifier() or not about.spec.isprintable():
                raise ValueError
        except (TypeError, KeyError, ValueError):
            raise InputError(f"attack {who}: its process sent an unusable description of it") from None
        names = {"__module__": about.module, "__qualname__": about.qualname, "__doc__": about.doc}
        return type(about.name, (Isolated,), names)(self, about)

    def ask(self, who: str, head: dict[str, Any], tensors: Mapping[str, Tensor] | None = None) -> Message:
        """Send a request to the worker and return the answer. Progress messages are passed on meanwhile.

        Args:
            who: the attack's name in error messages.
            head, tensors: the request.

        Raises:
            InputError: the attack raised one, the answer is unreadable, or the process ended.
            MemoryError: the attack ran out of memory. The traceback is a note.
            RuntimeError: the attack raised any other exception. The traceback is a note.
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
        except BaseException:  # such as Ctrl-C: the pending answer would be taken for the answer to the next request
            self.close(0.0)
            raise
        if "error" in answer.head:
            raise _raised(answer.head)
        return answer

    def close(self, grace: float = 1.0) -> None:
        """End the process; see `medpfl.isolation.process.Process.end`."""
        self._process.end(grace)


@contextmanager
def started(every: bool = False) -> Iterator[Worker]:
    """Start a worker that ends with the ``with`` block, without a grace period if the block raises an exception."""
    worker = Worker(every)
    try:
        yield worker
    except BaseException:
        worker.close(0.0)
        raise
    worker.close()


@dataclass(frozen=True, eq=False, repr=False)
class Isolated(Attack):
    """A stand-in for an attack that runs in the worker. It has the attack's ``repr``; its class has the attack's name.

    Attributes:
        worker: the worker that runs the attack.
        about: the worker's description of the attack.
        spec: spec with its file's absolute path, from which another worker can build the attack; ``""`` for a variant.
        scene: settings from which the worker rebuilds the model; ``None`` until `on` sets them.
    """

    worker: Worker
    about: AboutAttack
    spec: str = ""
    scene: Scene | None = None

    def on(self, scene: Scene) -> Isolated:
        """Return the same attack on the scene's model."""
        return replace(self, scene=scene)

    def __reduce__(self) -> Any:
        """Return how another process gets this attack: from a worker of its own."""
        return _again, (self.worker, self.spec, self.scene)

    def __repr__(self) -> str:
        return self.about.spec

    def __eq__(self, other: object) -> bool:
        """Return True if both are the same attack, whichever process they run in."""
        home = (type(other).__module__, type(other).__qualname__)
        return isinstance(other, Attack) and repr(self) == repr(other) and home == _home(self)

    def __hash__(self) -> int:
        return hash(self.about.spec)

    def modules(self) -> dict[str, str]:
        """Return digests, by module name, for the user's modules behind the attack.

        They cover all the user's modules imported by the worker, and the results of
        `medpfl.core.user_code.sources.modules_of` for each.

        Raises:
            InputError: a file was changed after the worker imported it, or the answer is unusable.
        """
        found = self._ask({"do": "modules"}).head.get("modules")
        pairs = found.items() if isinstance(found, dict) else [(None, None)]
        if not all(isinstance(text, str) and len(text) < _LONGEST for pair in pairs for text in pair):
            raise InputError(f"attack {self!r}: its process sent no digests of its code")
        return {str(name): str(digest) for name, digest in pairs}

    def __call__(self, seen: Any, generator: torch.Generator) -> Reconstruction:
        """Run the attack in the worker and return its reconstruction after checking it.

        Args:
            seen: a `medpfl.federated.server.Received`, from which the worker builds the observation.
            generator: random generator. The worker draws from a copy; the generator itself does not advance.

        Raises:
            InputError: as for `Worker.ask`, or the answer is not a reconstruction that fits these victims.
            MemoryError, RuntimeError: as for `Worker.ask`.
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
        """Raise `InputError` if the attack does not work on this model."""
        if "check" in self.about.overrides:
            head = {"do": "check", "plans": [told_plan(plan) for plan in plans], "image_shape": list(image_shape)}
            self._ask({**head, "scene": self._scene()}, told_weights(Weights.of(model)))

    def suited(self, model: nn.Module) -> tuple[Attack, ...]:
        """Return variants of the attack with settings for this model, which run in the worker too."""
        if "suited" not in self.about.overrides:
            return ()
        found = self._ask({"do": "suited", "scene": self._scene()}, told_weights(Weights.of(model))).head.get("found")
        return tuple(self.worker.known(told, repr(self)) for told in (found if isinstance(found, list) else ())[:100])

    def prepare(self, model: nn.Module) -> nn.Module:
        """Return the model with the weights that an active server sends.

        Raises:
            InputError: the attack changes more than the weights. Such a change would require its code in this process.
        """
        if "prepare" not in self.about.overrides:
            return model
        own = Weights.of(model)
        answer = self._ask({"do": "prepare", "scene": self._scene()}, told_weights(own))
        sent, changed = weights_from(answer.tensors), copy.deepcopy(model)
        tensors = {**sent.parameters, **sent.buffers}
        ours = {**own.parameters, **own.buffers}
        if {k: (t.shape, t.dtype) for k, t in tensors.items()} != {k: (t.shape, t.dtype) for k, t in ours.items()}:
            raise InputError(f"attack {self!r}: its weights do not match the model's in name, shape and type")
        with torch.no_grad():
            for name, tensor in (*changed.named_parameters(), *changed.named_buffers()):
                tensor.copy_(tensors[name])
        return changed

    def _scene(self) -> dict[str, Any]:
        assert self.scene is not None
        return {**vars(self.scene), "image_shape": list(self.scene.image_shape)}

    def _ask(self, head: dict[str, Any], tensors: Mapping[str, Tensor] | None = None) -> Message:
        return self.worker.ask(repr(self), {**head, "attack": self.about.number}, tensors)


def _again(worker: Worker, spec: str, scene: Scene | None) -> Isolated:
    return replace(worker.attack(spec), scene=scene)


def absolute(text: str) -> str:
    """Return a spec with its file, if any, as an absolute path, valid from any working directory.

    >>> absolute("DLG(steps=3)"), absolute("/a/b (1).py:Mine()"), absolute("package.module:Mine")
    ('DLG(steps=3)', '/a/b (1).py:Mine()', 'package.module:Mine')
    """
    place = _place(text)
    return f"{at_home(place).absolute()}{text[len(place) :]}" if place.endswith(".py") else text


def _place(text: str) -> str:
    found = parted(text)
    return found[0] if found else ""


def numerics() -> dict[str, Any]:
    """Return this process's settings for threads, precision and determinism, which affect rounding."""
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
    """Rebuild the attack's exception from the worker's answer."""
    kinds = {"input": InputError, "memory": MemoryError}
    kind = kinds.get(head["error"], RuntimeError) if isinstance(head["error"], str) else RuntimeError
    error = kind(str(head.get("text", ""))[:_LONGEST])
    if head.get("trace"):
        error.add_note(f"In the attack's process:\n{str(head['trace'])[:_LONGEST]}")
    return error
