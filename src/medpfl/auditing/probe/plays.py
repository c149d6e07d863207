"""Repeated rounds with one part of a defense, under different seeds, images and scales."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from medpfl.auditing.aggregation import aggregates, check_sum, summed
from medpfl.core.drawn_layers import Drawn
from medpfl.core.errors import InputError, resolved
from medpfl.core.plan import Plan
from medpfl.core.roles import NO_DEFENSE, Defense, State
from medpfl.core.types import Batch, Channel, Tensors, Update, Weights
from medpfl.core.user_code.modules import quoted
from medpfl.federated.client import ClientRound, checked_sent, client_round
from medpfl.federated.draws import Draws, draw
from medpfl.federated.local import local_update
from medpfl.federated.ready import prepare
from medpfl.runs.environment import explained

__all__ = ["STAND_IN", "PartPlayer", "Play", "Stage", "Unusable", "apart", "disclosed", "draw_seed"]

STAND_IN = 0.5
"""Largest squared distance, over squared norm, between a smooth `apply` and the exact map behind it. `Signs` has 0.3;
a permutation or random signs have 2."""

_MOST_CLIENTS = 64
"""Largest number of clients in a probed sum, which starts from two and uses the fewest that the defense allows."""


class Unusable(Exception):  # noqa: N818  (a finding, which never leaves the probe)
    """An error because a disclosure cannot be used or compared."""

    def __str__(self) -> str:
        return f"the disclosure cannot be used: {super().__str__()}"


class Diverged(Unusable):
    """An error because values are not finite and cannot be compared."""

    def __str__(self) -> str:
        return Exception.__str__(self)


class Play(NamedTuple):
    """One round: the sent update, and what its disclosure says about it; all tensors by parameter name.

    For a sum over clients, `raw`, `given` and `told` are means over the clients.

    Attributes:
        sent: the update at the server.
        raw: the undefended update for the same images on the server's model.
        given: the channel's input: the undefended update for the client's training images, with all its draws.
        told: `given` after the channel's known part.
        channel: the disclosed channel, with its precision, bounds and moment.
    """

    sent: Tensors
    raw: Tensors
    given: Tensors
    told: Tensors
    channel: Channel


class Stage:
    """Clients with a plan and a model, ready to repeat the same round.

    Batch order and dropout masks are drawn once, so rounds differ only in images, scale and the defense's draws.

    Args:
        model: the model as the server sends it, with its weights.
        plan: every client's plan.
        batches: one or more batches with the plan's number of images; if there is only one, its negative is the second.
        seed: seed for order and masks.
    """

    def __init__(self, model: nn.Module, plan: Plan, batches: Sequence[Batch], seed: int) -> None:
        negative = Batch(1 - batches[0].images, batches[0].labels)
        self.network, self.plan, self.seed = model, plan, seed
        self.batches = [batches[0], batches[1] if len(batches) > 1 else negative]
        self.model, self.weights = prepare(model, plan), Weights.of(model)
        drawn = [torch.Generator().manual_seed(seed) for _ in self.batches]
        self.draws = [draw(self.model, b, plan, g) for b, g in zip(self.batches, drawn, strict=True)]
        self._raw: dict[int, Update] = {}

    def on(self, model: nn.Module) -> Stage:
        """Return the same clients with another model, or this stage if the model is the same."""
        return self if model is self.network else Stage(model, self.plan, self.batches, self.seed)

    def round(self, defense: Defense, state: State, place: int, generator: torch.Generator) -> ClientRound:
        """Run a client's round under a defense, on the batch at `place`."""
        with explained("the defense failed in the probe"):
            return client_round(
                self.model, self.weights, self.batches[place], self.plan, defense, state, generator, self.draws[place]
            )

    def raw(self, place: int) -> Update:
        """Return the undefended update for the batch at `place`."""
        if place not in self._raw:
            self._raw[place] = self.round(NO_DEFENSE, {}, place, torch.Generator()).raw
        return self._raw[place]

    def local(
        self, batch: Batch, place: int, moment: Callable[[Tensors], Tensors] | None, neutral: Sequence[str] = ()
    ) -> Tensors:
        """Return a local update's tensors, with `moment` inside the steps and without the `neutral` layers' draws."""
        draws = self.draws[place]
        kept = Draws(draws.order, {k: m for k, m in draws.masks.items() if k not in neutral}, draws.chosen)
        return local_update(self.model, batch, self.plan, self.weights, kept, moment=moment).tensors


class PartPlayer:
    """A player for rounds with one part of a defense.

    Args:
        part: a part that acts at the client, or sums over clients.
        stage: clients with the model as the server sends it.
        generator: generator for the part's `model` moment, whose result the server sees.

    Raises:
        InputError: the part does not work with this model and plan.
    """

    def __init__(self, part: Defense, stage: Stage, generator: torch.Generator) -> None:
        self.part = part
        with explained("the defense failed in the probe"):
            model, self.state = part.model(stage.network, part.init(), generator)
        self.stage = stage.on(model)
        before = _drawing(stage.model)
        self.own = [name for name in _drawing(self.stage.model) if name not in before]
        self.inside = part.acts("gradient")
        self.trains = self.inside or part.acts("batch")
        self.drifts = self.inside and stage.plan.steps > 1
        self.clients = _clients_of(part, stage.plan) if aggregates(part) else 1
        self._known: dict[tuple[int, float, bool], Tensors] = {}
        self._neutral: dict[int, Tensors] = {}

    def play(self, seed: int, first: int = 0, scale: float = 1.0) -> Play:
        """Run one round.

        Args:
            seed: seed for all of the part's draws.
            first: place of the first client's batch; other clients keep theirs.
            scale: factor on the update before the part gets it; for a part that acts inside local steps, factor on each
                step's gradients.

        Raises:
            Unusable: the disclosure is no channel, or does not fit the update.
        """
        generator = torch.Generator().manual_seed(seed)
        places = [first, *(client % 2 for client in range(1, self.clients))]
        rounds = [self._round(place, scale, generator) for place in places]
        sent, stayed = self._seen(rounds, generator)
        _check_finite(rounds, sent)
        channel = disclosed(self.part, sent, self.stage.plan)
        clients = [(rounds[i], places[i]) for i in stayed]
        raw = [_times(self._undefended(place), scale) for _, place in clients]
        given = [self._input(played, place, scale, channel) for played, place in clients]
        told = [_through(channel, tensors, sent.tensors) for tensors in given]
        return Play(sent.tensors, _mean(raw), _mean(given), _mean(told), channel)

    def middle(self, seed: int) -> Tensors:
        """Return the sent tensors for the mean of both batches' updates, if the part acts in `update` alone."""
        one, other = (self.stage.raw(place) for place in (0, 1))
        mean = one.replace(_mean([one.tensors, other.tensors]))
        with explained("the defense failed in the probe"):
            return self.part.update(mean, self.state, torch.Generator().manual_seed(seed))[0].tensors

    def _round(self, place: int, scale: float, generator: torch.Generator) -> ClientRound:
        if self.trains:
            defense = _Scaled(self.part, scale) if scale != 1 else self.part
            return self.stage.round(defense, self.state, place, generator)
        raw = self.stage.raw(place)
        raw = raw.replace(_times(raw.tensors, scale))
        with explained("the defense failed in the probe"):
            sent, state = checked_sent(self.part.update(raw, self.state, generator), self.part, raw)
        return ClientRound(self.stage.batches[place], self.stage.draws[place], raw, sent, state)

    def _seen(self, rounds: list[ClientRound], generator: torch.Generator) -> tuple[Update, list[int]]:
        if self.clients == 1:
            return rounds[0].sent, [0]
        group = tuple((client, torch.arange(0)) for client in range(self.clients))
        with explained("the defense failed in the probe"):
            made = summed(self.part, group, rounds, generator).exchange
        return made.mean, [i for i in range(self.clients) if i not in made.dropped]

    def _input(self, played: ClientRound, place: int, scale: float, channel: Channel) -> Tensors:
        """Return the input of the channel's known part, with the channel's moment inside the steps if it has one."""
        if not self.inside:
            return played.raw.tensors if self.trains or scale == 1 else _times(self.stage.raw(place).tensors, scale)
        key = (place, scale, channel.moment is None)
        if key not in self._known or self.part.acts("batch"):
            with _used("its moment"):
                self._known[key] = self.stage.local(played.batch, place, _scaled(channel.moment, scale))
        return self._known[key]

    def _undefended(self, place: int) -> Tensors:
        if not self.own:
            return self.stage.raw(place).tensors
        if place not in self._neutral:
            self._neutral[place] = self.stage.local(self.stage.batches[place], place, None, self.own)
        return self._neutral[place]


class _Scaled(Defense):
    """A defense that gets scaled gradients, or a scaled update if it does not act inside the steps."""

    def __init__(self, inner: Defense, scale: float) -> None:
        self.inner, self.scale = inner, scale

    def batch(self, value: Batch, state: State, generator: torch.Generator) -> tuple[Batch, State]:
        return self.inner.batch(value, state, generator)

    def gradient(self, value: Tensors, state: State, generator: torch.Generator) -> tuple[Tensors, State]:
        return self.inner.gradient(_times(value, self.scale), state, generator)

    def summed(self, parts: Iterator[Tensors], state: State, generator: torch.Generator) -> Any:
        return self.inner.summed((_times(part, self.scale) for part in parts), state, generator)

    def update(self, value: Update, state: State, generator: torch.Generator) -> tuple[Update, State]:
        scale = 1.0 if self.acts("gradient") else self.scale
        return self.inner.update(value.replace(_times(value.tensors, scale)), state, generator)

    def acts(self, moment: str) -> bool:
        return self.inner.acts(moment)


def draw_seed(generator: torch.Generator) -> int:
    """Draw a seed for another generator."""
    return int(torch.randint(2**62, (), generator=generator))


def disclosed(defense: Defense, sent: Update, plan: Plan, before: Channel | None = None) -> Channel:
    """Return a defense's channel, after the earlier parts' channel if there is one.

    Raises:
        Unusable: `disclose` raises an error, or its result does not fit the update.
    """
    with _used("disclose"):
        channel = defense.disclose(sent, plan) if before is None else defense.disclose(sent, plan, before)
    if not isinstance(channel, Channel):
        raise Unusable(f"disclose returns {type(channel).__name__}, not a Channel")
    for what in ("precision", "bounds"):
        told = getattr(channel, what)
        if told is not None:
            _check(told, sent.tensors, what)
            if any(bool((t < 0).any()) for t in told.values()):
                raise Unusable(f"its {what} holds negative numbers")
    return channel


def _through(channel: Channel, tensors: Tensors, like: Tensors) -> Tensors:
    with _used("apply"), torch.no_grad():
        told = channel(tensors)
    _check(told, like, "apply")
    if channel.exact is None:
        return told
    with _used("exact"), torch.no_grad():
        exact = channel.exact(tensors)
    _check(exact, like, "exact")
    if apart(told, exact) > STAND_IN:
        raise Unusable("its apply differs too much from its exact map to guide an attack")
    return exact


def _check(told: Any, like: Tensors, what: str) -> None:
    if not isinstance(told, Mapping) or not all(isinstance(t, Tensor) for t in told.values()):
        raise Unusable(f"its {what} does not give tensors by parameter name")
    if told.keys() != like.keys():
        odd = sorted(map(str, told.keys() ^ like.keys()))
        raise Unusable(f"its {what} and the update differ in the parameter '{odd[0]}'")
    for name, tensor in told.items():
        if tensor.shape != like[name].shape:
            raise Unusable(f"its {what} for '{name}' has shape {tuple(tensor.shape)}, not {tuple(like[name].shape)}")
        if not bool(tensor.isfinite().all()):
            raise Unusable(f"its {what} for '{name}' holds values that are not finite")


def _check_finite(rounds: Sequence[ClientRound], sent: Update) -> None:
    if not all(finite(played.raw.tensors) for played in rounds):
        raise Diverged("the client's update is not finite, so the disclosure cannot be compared with it")
    if not finite(sent.tensors):
        raise Diverged("the defense sends values that are not finite, although the client's update is finite")


@contextmanager
def _used(what: str) -> Iterator[None]:
    """Turn any error in a defense's own code into a finding."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        # A message from the user's own code may name a patient, and this goes into shared files.
        said = resolved(quoted(error), shown=False)
        raise Unusable(f"{what} raises {type(error).__name__}: {said}") from error


def _clients_of(part: Defense, plan: Plan) -> int:
    for clients in range(2, _MOST_CLIENTS):
        try:
            check_sum(part, clients, plan)
        except InputError:
            continue
        return clients
    check_sum(part, _MOST_CLIENTS, plan)
    return _MOST_CLIENTS


def _drawing(model: nn.Module) -> list[str]:
    return [name for name, layer in model.named_modules() if isinstance(layer, Drawn)]


def apart(one: Tensors, other: Tensors) -> float:
    """Return the squared distance between two updates, divided by the larger squared norm."""
    gap = sum(float((t.double() - other[name].double()).square().sum()) for name, t in one.items())
    sizes = [sum(float(t.double().square().sum()) for t in tensors.values()) for tensors in (one, other)]
    return gap / max(sizes) if max(sizes) else 0.0


def finite(tensors: Tensors) -> bool:
    """Return True if all values are finite."""
    return all(bool(t.isfinite().all()) for t in tensors.values())


def _times(tensors: Tensors, scale: float) -> Tensors:
    return tensors if scale == 1 else {name: t * scale for name, t in tensors.items()}


def _scaled(moment: Callable[[Tensors], Tensors] | None, scale: float) -> Callable[[Tensors], Tensors] | None:
    if scale == 1:
        return moment
    return lambda tensors: (moment or dict)(_times(tensors, scale))


def _mean(many: Sequence[Tensors]) -> Tensors:
    if len(many) == 1:
        return many[0]
    return {name: torch.stack([one[name] for one in many]).mean(0) for name in many[0]}
