"""Obfuscation is not protection: a change that an attacker with the code could undo is never evidence for safety."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from medpfl import Victims, audit
from medpfl.core.roles import Defense
from medpfl.core.types import Channel
from medpfl.core.verdicts import LEAKS, NO_LEAK
from tests.auditing.audit_cases import some_images

pytestmark = pytest.mark.slow  # they share a fixture that takes seconds

MODEL, ATTACK = "MLP((16,), activation='sigmoid')", "iDLG(steps=25)"


def flat(tensors):
    return torch.cat([t.flatten() for t in tensors.values()])


def shaped(vector, like):
    parts = vector.split([t.numel() for t in like.values()])
    return {name: part.view_as(t) for (name, t), part in zip(like.items(), parts, strict=True)}


class Obfuscation(Defense):
    """A defense that changes an update by its code alone, and discloses the change if `told`."""

    def changed(self, tensors):
        raise NotImplementedError

    def update(self, value, state, generator):
        return value.replace(self.changed(value.tensors)), state

    def disclose(self, sent, plan=None, before=None):
        before = before or Channel()
        return before.then(self.changed) if self.told else before  # type: ignore[attr-defined]


@dataclass(frozen=True, repr=False)
class Permuted(Obfuscation):
    told: bool = False

    def changed(self, tensors):
        vector = flat(tensors)
        return shaped(vector[torch.randperm(len(vector), generator=torch.Generator().manual_seed(7))], tensors)


@dataclass(frozen=True, repr=False)
class Flipped(Obfuscation):
    told: bool = False

    def changed(self, tensors):
        vector = flat(tensors)
        signs = torch.randint(2, vector.shape, generator=torch.Generator().manual_seed(7)) * 2 - 1
        return shaped(vector * signs, tensors)


@dataclass(frozen=True, repr=False)
class Shifted(Obfuscation):
    told: bool = False

    def changed(self, tensors):
        return {name: t + 0.5 for name, t in tensors.items()}


@dataclass(frozen=True, repr=False)
class FixedNoise(Obfuscation):
    told: bool = False

    def changed(self, tensors):
        vector = flat(tensors)
        return shaped(vector + torch.randn(vector.shape, generator=torch.Generator().manual_seed(7)), tensors)


@dataclass(frozen=True, repr=False)
class LastOnly(Obfuscation):
    told: bool = False

    def changed(self, tensors):
        last = list(tensors)[-2:]
        return {name: t if name in last else t * 0 for name, t in tensors.items()}


@dataclass(frozen=True, repr=False)
class Liar(Flipped):
    """A defense that flips signs but discloses strong noise."""

    def disclose(self, sent, plan=None, before=None):
        return (before or Channel()).then(precision={k: torch.full_like(t, 1e-4) for k, t in sent.tensors.items()})


@pytest.fixture(scope="module")
def found():
    kinds = [kind(told) for kind in (Permuted, Flipped, Shifted, FixedNoise, LastOnly) for told in (False, True)]
    report = audit(MODEL, some_images(16), attacks=[ATTACK], defenses=[*kinds, Liar()], victims=Victims(images=8))
    return {(cell.defense, cell.knows_defense): cell for cell in report.summary}, report.settings.disclosure


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Permuted, Flipped, Shifted, FixedNoise, LastOnly], ids=lambda kind: kind.__name__)
def test_what_is_not_disclosed_is_never_no_leak(kind, found):
    cells, disclosure = found
    own = [cell for (defense, _), cell in cells.items() if defense == repr(kind())]
    assert own
    assert own[0].union.verdict != NO_LEAK
    assert disclosure[repr(kind())]["silent"]
    for cell in own:
        assert cell.verdict == LEAKS or {"undisclosed", "misdisclosed"} & set(cell.flags)


@pytest.mark.parametrize("kind", [Permuted, Flipped, Shifted], ids=lambda kind: kind.__name__)
def test_what_is_disclosed_is_read_back_as_without_it(kind, found):
    cells, disclosure = found
    bare, told = cells["NoDefense()", None], cells[repr(kind(True)), True]
    assert bare.asr.value > 0.5
    assert bare.asr.low <= told.asr.value <= bare.asr.high
    assert told.label_accuracy.value == bare.label_accuracy.value == 1.0
    assert told.union.verdict == LEAKS
    assert disclosure[repr(kind(True))]["problems"] == []


def test_labels_are_inferred_from_the_last_layer_alone(found):
    cells, _ = found
    told = cells[repr(LastOnly(True)), True]
    assert told.label_accuracy.value == 1.0
    assert told.union.verdict != NO_LEAK or told.label_verdict == LEAKS


def test_a_disclosure_that_lies_is_caught(found):
    cells, disclosure = found
    assert disclosure[repr(Liar())]["problems"]
    own = [cell for (defense, _), cell in cells.items() if defense == repr(Liar())]
    assert own
    assert all(cell.union.verdict != NO_LEAK for cell in own)
