"""Filters of federated-learning frameworks, as records name them, and the defenses that are equal to them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any, NamedTuple

from medpfl import defenses as defense_package
from medpfl.core.errors import InputError
from medpfl.core.records.record import Record
from medpfl.core.roles import NO_DEFENSE, Defense
from medpfl.core.spec import registry
from medpfl.core.user_code.stated import stated
from medpfl.defenses import Clipping, LocalDP, PercentilePrivacy, SVTPrivacy

__all__ = ["STOCK", "Filtered", "defense_in", "defense_of", "without_silent"]

_OURS = re.compile(r"medpfl\.(?:defend|Defense)\((?P<spec>'.*'|\".*\")\)")
"""MedPFL's own mod and filter, which name a defense."""
_SILENT = ("message_size_mod", "arrays_size_mod", "parameters_size_mod")
"""Mods that change nothing."""
_LEFT_OUT = "..."
"""Value of an argument that the recorder did not write."""


class Filtered(NamedTuple):
    """The defense that a record's filters are.

    Attributes:
        defense: all filters together; none if one of them is unknown.
        unknown: texts of the filters whose effect no attack can be told.
    """

    defense: Defense
    unknown: tuple[str, ...] = ()


def defense_in(record: Record, path: Path) -> Filtered:
    """Return the built-in defense that a record's filters are, or else that it states; else no defense.

    The file may come from another party.

    Raises:
        InputError: the record states a defense that is not built in, or one with ``file.py:Name`` or
            ``package.module:Name`` among its arguments.
    """
    found = defense_of(record.filters, path, bool(record.update.buffers))
    if found != Filtered(NO_DEFENSE) or record.defense is None:
        return found
    return Filtered(stated(record.defense, registry(defense_package), "defense", path, "--defense"))


def without_silent(record: Record, path: Path) -> Record:
    """Return the record without those of its filters, and without a defense, that change nothing at the client.

    Its update is then checked like that of a record which states none. What is unknown stays in it.
    """
    buffers = bool(record.update.buffers)
    acting = tuple(text for text in record.filters if not _is_silent(_defense(text, path, buffers)))
    told = record.defense
    with suppress(InputError):
        if told is not None and _is_silent(stated(told, registry(defense_package), "defense", path, "--defense")):
            told = None
    return replace(record, filters=acting, defense=told)


def _is_silent(defense: Defense | None) -> bool:
    """Return True if a defense is known, and changes nothing that leaves the client."""
    return defense is not None and (defense == NO_DEFENSE or defense.where == "server")


def defense_of(filters: Sequence[str], file: Path | str, buffers: bool) -> Filtered:
    """Return the defense that is equal to a record's filters, in their order.

    Known are MedPFL's own, FLARE's ``PercentilePrivacy`` and ``SVTPrivacy`` on differences, and Flower's ``LocalDpMod``
    and clipping mods, if the record states their arguments. Every other text is an unknown filter: nothing that it
    names is run.

    Args:
        filters: the texts in the record, which another party may have written.
        file: the record, for messages.
        buffers: True if the client sends buffers, which Flower's clipping mods count in the norm and change.
    """
    found = {text: _defense(text, file, buffers) for text in filters}
    unknown = tuple(dict.fromkeys(text for text in filters if found[text] is None))
    known = [one for text in filters if (one := found[text]) is not None and one != NO_DEFENSE]
    return Filtered(NO_DEFENSE, unknown) if unknown else Filtered(reduce(or_, known) if known else NO_DEFENSE)


def _defense(text: str, file: Path | str, buffers: bool) -> Defense | None:
    """Return the defense that is equal to one filter; ``None`` if it is unknown."""
    if text.partition("(")[0] in _SILENT:
        return NO_DEFENSE
    try:
        if (own := _OURS.fullmatch(text)) is not None:  # quotes inside may stand as they are
            return stated(own["spec"][1:-1], registry(defense_package), "defense", file, "--defense")
        if "(" not in text or _LEFT_OUT in text:  # not all settings are recorded
            return None
        known = _STOCK if not buffers else {k: v for k, v in _STOCK.items() if not k.endswith("clipping_mod")}
        return stated(text, known, "filter", file, "--defense")
    except (InputError, ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None


def _percentile(percentile: float, gamma: float, data_kinds: Any = None, steps: int = 1) -> Defense:
    _check_kinds(data_kinds)
    return PercentilePrivacy(percentile, gamma, steps)


def _svt(data_kinds: Any = None, **settings: Any) -> Defense:
    _check_kinds(data_kinds)
    if missing := _OF_SVT - settings.keys():
        raise InputError(f"its argument {min(missing)} is not recorded")
    return SVTPrivacy(**settings)


def _check_kinds(kinds: Any) -> None:
    """Raise `InputError` if a FLARE filter acts on weights only, which is something else than on differences."""
    if kinds is not None and "WEIGHT_DIFF" not in kinds:
        raise InputError("it acts on other messages than differences of weights")


def _local_dp(clipping_norm: float, sensitivity: float, epsilon: float, delta: float) -> Defense:
    return LocalDP(clipping_norm, sensitivity, epsilon, delta)


def _clipped(clipping_norm: float) -> Defense:
    return Clipping(clipping_norm)


_OF_SVT = {"fraction", "epsilon", "noise_var", "gamma", "tau", "replace"}
"""Arguments of FLARE's filter without which it is not known. The others are ``None`` in most jobs."""

_STOCK: Mapping[str, Callable[..., Defense]] = {
    "PercentilePrivacy": _percentile,
    "SVTPrivacy": _svt,
    "LocalDpMod": _local_dp,
    "fixedclipping_mod": _clipped,
    "adaptiveclipping_mod": _clipped,
}

STOCK = (*_STOCK, *_SILENT)
"""Names of the frameworks' own filters that are known here."""
