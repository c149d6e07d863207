"""The worker's answers to requests: it rebuilds attack, model and observation from public data and runs the attack."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

import torch
from torch import nn

from medpfl.auditing.defense_parts import at_client
from medpfl.core import progress
from medpfl.core.drawn_layers import DRAWN
from medpfl.core.errors import InputError, OutOfMemoryError, listed
from medpfl.core.plan import Plan
from medpfl.core.roles import Attack, Defense, Model
from medpfl.core.trace import tracing
from medpfl.core.types import Weights
from medpfl.core.user_code.global_draws import seeded
from medpfl.core.user_code.modules import own_line, own_modules, quoted
from medpfl.core.user_code.sources import modules_of
from medpfl.core.user_code.strangers import reason
from medpfl.federated.ready import prepare
from medpfl.federated.server import observation
from medpfl.inputs.checkpoint import AboutCheckpoint, Checkpoint
from medpfl.inputs.network import mapping_pixels, network_of
from medpfl.inputs.parts import attacks_of, defenses_of, model_of
from medpfl.isolation.pipes import Pipe
from medpfl.isolation.protocol import (
    Message,
    packed,
    plan_in,
    received_from,
    told_reconstruction,
    told_weights,
    unpacked,
    weights_from,
)

__all__ = ["Answers"]

_LONGEST = 1_000
"""Maximum length of an error text. The parent would truncate a longer one and so lose the mark at its end."""

_APART = 0.1
"""Minimum number of seconds between two progress messages."""
_MOMENTS = ("check", "suited", "prepare")


class Answers:
    """The worker's request handler, which answers one request at a time.

    Args:
        pipe: connection to the parent.
        folder: the parent's working directory, from which ``package.module:Name`` is imported.
        numerics: the parent's numerical settings, see `medpfl.isolation.parent.numerics`.
    """

    def __init__(self, pipe: Pipe, folder: str, numerics: dict[str, Any]) -> None:
        self.pipe, self.folder = pipe, folder
        self.attacks: list[Attack] = []
        self._known: dict[str, Callable[[Message], Message]] = {
            "build": self._build,
            "modules": self._modules,
            "check": self._check,
            "suited": self._suited,
            "prepare": self._prepare,
            "attack": self._attack,
        }
        _set(numerics)

    def answer(self) -> None:
        """Read one request and send the answer, or a description of the exception it caused.

        Raises:
            EOFError: the parent has ended.
        """
        request = unpacked(*self.pipe.receive())
        try:
            made = self._known[request.head["do"]](request)
            frame = packed(made)
        except BaseException as error:  # third-party code may also call sys.exit
            frame = packed(Message(_told(error), {}))
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):  # third-party code may have replaced or closed it
                stream.flush()
        self.pipe.send(*frame)

    def _build(self, request: Message) -> Message:
        with self._at_home():
            (attack,) = attacks_of([request.head["spec"]])
        return Message({"about": self._about(attack)}, {})

    def _modules(self, request: Message) -> Message:
        # They include the attack's own module. A file given by its path may be executed several times.
        loaded = [sys.modules[name] for name in own_modules() - {"__main__"} if name in sys.modules]
        found = {name: digest for module in loaded for name, digest in modules_of(module).items()}
        found.pop("__main__", None)  # this program
        return Message({"modules": found}, {})

    def _check(self, request: Message) -> Message:
        head, weights = request.head, weights_from(request.tensors)
        plans = tuple(map(plan_in, head["plans"]))
        network = self._network(head["scene"], weights, plans[0])
        self._named(request).check(network, plans, tuple(head["image_shape"]))
        return Message({}, {})

    def _suited(self, request: Message) -> Message:
        network = self._network(request.head["scene"], weights_from(request.tensors))
        return Message({"found": [self._about(one) for one in self._named(request).suited(network)]}, {})

    def _prepare(self, request: Message) -> Message:
        network = self._network(request.head["scene"], weights_from(request.tensors))
        before = _layers(network)
        changed = self._named(request).prepare(network)
        if not isinstance(changed, nn.Module) or _layers(changed) != before:
            raise InputError(
                f"{self._named(request)!r} changes the model's layers, but an attack in a separate process can change "
                "only the weights: use --no-isolate to run it in the audit's own process"
            )
        return Message({}, told_weights(Weights.of(changed)))

    def _attack(self, request: Message) -> Message:
        head, scene = request.head, request.head["scene"]
        state = request.tensors.pop("generator")
        received = received_from(request, torch.device(scene["device"]))
        network = self._network(scene, received.weights, received.plans[0])
        seen = observation(network, received, self._defense(scene["told"]))
        generator = torch.Generator()
        generator.set_state(state)
        with tracing(head["most"]), progress.listening(_Says(self.pipe)), seeded(generator):
            made = self._named(request)(seen, generator)
        return told_reconstruction(made)

    def _named(self, request: Message) -> Attack:
        return self.attacks[request.head["attack"]]

    def _about(self, attack: Attack) -> dict[str, Any]:
        self.attacks.append(attack)
        kind = type(attack)
        return {
            "number": len(self.attacks) - 1,
            "spec": repr(attack),
            "name": kind.__name__,
            "module": kind.__module__,
            "qualname": kind.__qualname__,
            "doc": (kind.__doc__ or "")[:1000],
            "overrides": [name for name in _MOMENTS if getattr(kind, name) is not getattr(Attack, name)],
        }

    def _network(self, scene: dict[str, Any], weights: Weights, plan: Plan | None = None) -> nn.Module:
        """Build the network with these weights. Given a plan, prepare it for local training under the plan."""
        made, defense = self._made(scene["model"]), self._defense(scene["layers"])
        network = made() if callable(made) else network_of(made, tuple(scene["image_shape"]), scene["classes"], 0)
        if (pixels := scene["model"].get("pixels")) is not None:
            network = mapping_pixels(network, pixels)
        network = network.to(scene["device"])
        if plan is not None:
            network, _ = defense.model(network, defense.init(), torch.Generator().manual_seed(0))
            network = prepare(network, plan)
        _fill(network, weights)
        return network

    def _made(self, recipe: dict[str, Any]) -> Model | Callable[[], nn.Module]:
        if "trained" in recipe:
            about = AboutCheckpoint(**{**recipe["trained"], "image_shape": tuple(recipe["trained"]["image_shape"])})
            return Checkpoint(None, about).layers  # type: ignore[arg-type]  (its weights come with the request)
        with self._at_home():
            return model_of(recipe["spec"])

    def _defense(self, spec: str) -> Defense:
        with self._at_home():
            return at_client(defenses_of([spec])[-1])

    @contextlib.contextmanager
    def _at_home(self) -> Iterator[None]:
        """Import modules in this context as from the parent's working directory."""
        sys.path.insert(0, self.folder)
        try:
            yield
        finally:
            with contextlib.suppress(ValueError):
                sys.path.remove(self.folder)


class _Says:
    """A progress listener that reports to the parent, at most every `_APART` seconds."""

    def __init__(self, pipe: Pipe) -> None:
        self.pipe, self.latest = pipe, 0.0

    def __call__(self, share: float, said: Callable[[], str]) -> None:
        now = monotonic()
        if now - self.latest >= _APART:
            self.latest = now
            self.pipe.send(*packed(Message({"progress": float(share)}, {})))


def _fill(network: nn.Module, weights: Weights) -> None:
    """Copy the weights into a rebuilt network, in place.

    Raises:
        InputError: the network's tensors differ from the weights in name, shape or type.
    """
    given = {**weights.buffers, **weights.parameters}
    parameters = dict(network.named_parameters())
    own = {**parameters, **dict(network.named_buffers())}
    problems = [f"{k}: only in the rebuilt model" for k in own if k not in given and not k.endswith(DRAWN)]
    problems += [f"{k}: missing in the rebuilt model" for k in weights.parameters if k not in parameters]
    problems += [
        f"{k}: {tuple(t.shape)} {t.dtype}, but {tuple(own[k].shape)} {own[k].dtype} in the rebuilt model"
        for k, t in given.items()
        if k in own and (own[k].shape != t.shape or own[k].dtype != t.dtype)
    ]
    if problems:
        raise InputError(
            "the model differs when it is rebuilt for an attack in a separate process "
            f"(use --no-isolate to run the attack in the audit's own process):{listed(sorted(problems))}"
        )
    with torch.no_grad():
        for name, tensor in own.items():
            if name in given:
                tensor.copy_(given[name])
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in weights.parameters)


def _layers(network: nn.Module) -> list[Any]:
    """Describe the network without its weights' values: layer names, types and settings, and weight names."""
    layers = [(name, type(layer), layer.extra_repr(), layer.training) for name, layer in network.named_modules()]
    weights = Weights.of(network)
    return [*layers, *weights.parameters, *weights.buffers]


def _set(numerics: dict[str, Any]) -> None:
    torch.set_num_threads(numerics["threads"])
    torch.set_default_dtype(getattr(torch, numerics["dtype"]))
    torch.set_float32_matmul_precision(numerics["matmul"])
    torch.use_deterministic_algorithms(numerics["deterministic"])
    cudnn = torch.backends.cudnn
    cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32 = numerics["cudnn"]


def _told(error: BaseException) -> dict[str, Any]:
    """Return an exception's kind, text and traceback. The text carries the marks of `medpfl.core.errors.private`."""
    kind = "memory" if isinstance(error, MemoryError | torch.OutOfMemoryError | OutOfMemoryError) else "other"
    if isinstance(error, InputError) and kind == "other":
        return {"error": "input", "text": f"{error}", "trace": ""}
    text = quoted(error, reason(error)[:_LONGEST], named=True) + own_line(error)
    return {"error": kind, "text": text, "trace": "".join(traceback.format_exception(error))}
