"""Functions that share options: the public ones have the arguments of their classes, and say so."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, fields
from inspect import signature
from typing import get_type_hints

import pytest

import medpfl
from medpfl.auditing.records.run import RecordOptions
from medpfl.core.experiments.signatures import taking


@dataclass(frozen=True)
class Case:
    place: str
    number: int = 3
    _: KW_ONLY
    fast: bool = False


@taking(Case)
def told(case: Case) -> str:
    """Return the case as a text."""
    return repr(case)


def test_a_function_takes_the_arguments_of_its_class():
    assert told("x", 4, fast=True) == "Case(place='x', number=4, fast=True)"
    assert told(place="x") == "Case(place='x', number=3, fast=False)"
    assert str(signature(told)) == "(place: 'str', number: 'int' = 3, *, fast: 'bool' = False) -> 'str'"
    assert get_type_hints(told) == {"place": str, "number": int, "fast": bool, "return": str}
    assert (told.__name__, told.__doc__) == ("told", "Return the case as a text.")


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ((), {}, r"told\(\) missing a required argument: 'place'"),
        (("x",), {"fats": True}, r"told\(\) got an unexpected keyword argument 'fats'"),
        (("x", 1, True), {}, r"told\(\) too many positional arguments"),
    ],
)
def test_a_wrong_argument_is_an_error_of_the_function(given, options, message):
    with pytest.raises(TypeError, match=message):
        told(*given, **options)


@pytest.mark.parametrize(
    ("door", "places"),
    [
        (medpfl.audit_record, {"record", "truth"}),
        (medpfl.audit_federation, {"records", "truth"}),
    ],
    ids=["audit_record", "audit_federation"],
)
def test_the_audits_of_records_share_their_options(door, places):
    found = signature(door).parameters
    assert found.keys() == places | {one.name for one in fields(RecordOptions)}
    assert all(name in door.__doc__ for name in found), "each is described"
    by_place = [name for name, one in found.items() if one.kind is one.POSITIONAL_OR_KEYWORD]
    first = ["record", "truth", "model"] if "record" in places else ["records", "model"]
    assert by_place == first
