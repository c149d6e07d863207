"""Isolated attacks as seen by the audit's process."""

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
"""Maximum characters of a text that the worker sends about an attack."""


@dataclass(frozen=True)
class Scene:
    """Public information from which the worker rebuilds the model and the channel.

    Attributes:
        model: recipe of the network, see `medpfl.auditing.isolating.Recipe`.
        layers: spec of the defense that added layers to the network.
        told: spec of the defense that provides the disclosure.
        image_shape: (C, H, W).
        classes: number of classes in the data.
        device: device for the computation.
    """

    model: Mapping[str, Any]
    layers: str
    told: str
    image_shape: tuple[int, ...]
    classes: int
    device: str


@dataclass(frozen=True)
class About:
    """The worker's description of an attack in its process.

    Attributes:
        number: the attack's number in requests.
        spec: the attack's ``repr``.
        name, module, qualname, doc: properties of the attack's class.
        overrides: methods overridden by the class, among ``check``, ``suited`` and ``prepare``.
    """

    number: int
    spec: str
    name: str
    module: str
    qualname: str
    doc: str
    overrides: tuple[str, ...]


class Worker:
    """The process shared by all isolated attacks of an audit.

    Args:
        every: True to run MedPFL's own attacks in it too, and not only those given by a path.
        program: module to run in the process.
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
        """True after the process has ended; it no longer answers."""
        return self._process.ended

    def takes(self, text: str) -> bool:
        """Return True if a spec's attack runs in the worker."""
        return self.every or is_place(text)

    def attack(self, text: str) -> Isolated:
        """Return the attack for a single spec, without importing its code here.

        Raises:
            InputError: an error from `medpfl.inputs.parts.attacks_of`, or the process ended.
        """
        full = absolute(text)
        try:
            answer = self.ask(text, {"do": "build", "spec": full})
        except InputError as error:  # whose message has the worker's path of the file
            raise InputError(str(error).replace(_place(full), _place(text))) from error.__cause__
        return self.known(answer.head.get("about"), text)

    def known(self, told: Any, who: str) -> Isolated:
        """Return an attack in the worker, from the worker's description of it.

        Raises:
            InputError: the description is invalid.
        """
        try:
            about = About(**{**told, "overrides": tuple(told["overrides"])})
            texts = (about.spec, about.name, about.module, about.qualname, about.doc, *about.overrides)
            if type(about.number) is not int or not all(isinstance(t, str) and len(t) < _LONGEST for t in texts):
                raise ValueError
            if not about.name.isidentifier() or not about.spec.isprintable():
                raise ValueError
        except (TypeError, KeyError, ValueError):
            raise InputError(f"attack {who}: its process sent an invalid description") from None
        names = {"__module__": about.module, "__qualname__": about.qualname, "__doc__": about.doc}
        return type(about.name, (Isolated,), names)(self, about)

    def ask(self, who: str, head: dict[str, Any], tensors: Mapping[str, Tensor] | None = None) -> Message:
        """Send a request and return the worker's answer.

        Args:
            who: the attack's name, for error messages.
            head, tensors: the request.

        Raises:
            InputError: the attack raised one, the answer cannot be read, or the process ended.
            MemoryError, RuntimeError: any other error from the attack, with its traceback as a note.
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
        except BaseException:  # such as Ctrl-C: the pending answer would be taken for the next request's
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
    """Yield a worker that ends with the block, or at once if the block raises."""
    worker = Worker(every)
    try:
        yield worker
    except BaseException:
        worker.close(0.0)
        raise
    worker.close()


@dataclass(frozen=True, eq=False, repr=False)
class Isolated(Attack):
    """An attack that the worker runs. It has the original's ``repr``, and its class has the original's name.

    Attributes:
        worker: the process in which it runs.
        about: the worker's description of it.
        scene: data from which the worker rebuilds the model; ``None`` until `on` sets it.
    """

    worker: Worker
    about: About
    scene: Scene | None = None

    def on(self, scene: Scene) -> Isolated:
        """Return the same attack for a model."""
        return replace(self, scene=scene)

    def __repr__(self) -> str:
        return self.about.spec

    def __eq__(self, other: object) -> bool:
        """Return True if the other is the same attack, whichever process it runs in."""
        home = (type(other).__module__, type(other).__qualname__)
        return isinstance(other, Attack) and repr(self) == repr(other) and home == _home(self)

    def __hash__(self) -> int:
        return hash(self.about.spec)

    def modules(self) -> dict[str, str]:
        """Return current digests, by name, of the user's modules behind the attack.

        These are the modules of `medpfl.core.user_code.sources.modules_of`, and all others that the process has
        imported.

        Raises:
            InputError: a file was changed after the process imported it, or the answer is invalid.
        """
        found = self._ask({"do": "modules"}).head.get("modules")
        pairs = found.items() if isinstance(found, dict) else [(None, None)]
        if not all(isinstance(text, str) and len(text) < _LONGEST for pair in pairs for text in pair):
            raise InputError(f"attack {self!r}: its process sent no valid digests of its code")
        return {str(name): str(digest) for name, digest in pairs}

    def __call__(self, seen: Any, generator: torch.Generator) -> Reconstruction:
        """Run the attack and return its reconstruction, after checking its format.

        Args:
            seen: a `medpfl.federated.server.Received`, from which the worker makes the observation.
            generator: random generator whose state is sent to the worker; it does not advance.

        Raises:
            InputError: any error from `Worker.ask`, or the answer is not a reconstruction of these victims.
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
        """Check that the attack can attack this model.

        Raises:
            InputError: it cannot.
        """
        if "check" in self.about.overrides:
            head = {"do": "check", "plans": [told_of(plan) for plan in plans], "image_shape": list(image_shape)}
            self._ask({**head, "scene": self._scene()}, told_weights(Weights.of(model)))

    def suited(self, model: nn.Module) -> tuple[Attack, ...]:
        """Return the attack with settings suited to this model, each run in the worker too."""
        if "suited" not in self.about.overrides:
            return ()
        found = self._ask({"do": "suited", "scene": self._scene()}, told_weights(Weights.of(model))).head.get("found")
        return tuple(self.worker.known(told, repr(self)) for told in (found if isinstance(found, list) else ())[:100])

    def prepare(self, model: nn.Module) -> nn.Module:
        """Return the model with the weights that an active server sends.

        Raises:
            InputError: the attack changes more than the weights; sending this would require running its code here.
        """
        if "prepare" not in self.about.overrides:
            return model
        own = Weights.of(model)
        answer = self._ask({"do": "prepare", "scene": self._scene()}, told_weights(own))
        sent, changed = weights_from(answer.tensors), copy.deepcopy(model)
        tensors = {**sent.parameters, **sent.buffers}
        ours = {**own.parameters, **own.buffers}
        if {k: (t.shape, t.dtype) for k, t in tensors.items()} != {k: (t.shape, t.dtype) for k, t in ours.items()}:
            raise InputError(f"attack {self!r}: the weights that it returned do not fit the model")
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
    """Return a spec in which a file path is absolute, so that it is found from any working directory.

    >>> absolute("DLG(steps=3)"), absolute("/a/b (1).py:Mine()"), absolute("package.module:Mine")
    ('DLG(steps=3)', '/a/b (1).py:Mine()', 'package.module:Mine')
    """
    place = _place(text)
    return f"{at_home(place).absolute()}{text[len(place) :]}" if place.endswith(".py") else text


def _place(text: str) -> str:
    found = parted(text)
    return found[0] if found else ""


def numerics() -> dict[str, Any]:
    """Return this process's settings that affect the last bits of a result."""
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
    """Return the attack's error in the worker, to be raised here."""
    kinds = {"input": InputError, "memory": MemoryError}
    kind = kinds.get(head["error"], RuntimeError) if isinstance(head["error"], str) else RuntimeError
    error = kind(str(head.get("text", ""))[:_LONGEST])
    if head.get("trace"):
        error.add_note(f"In the attack's process:\n{str(head['trace'])[:_LONGEST]}")
    return error
