"""Validation of JSON rows, field by field: the file may be damaged or come from another party."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any, TypeVar

from medpfl.core.errors import InputError

__all__ = ["typed"]

T = TypeVar("T")


def typed(kind: type[T], row: Any) -> T:
    """Return a JSON row as an instance of a dataclass.

    Args:
        kind: the dataclass. Lists in the row become tuples if its fields are tuples.
        row: the object from JSON.

    Raises:
        InputError: the row is not an object, or a field is missing, unknown, of the wrong type, or not finite.
    """
    from pydantic import ValidationError

    if not isinstance(row, Mapping):
        raise InputError(f"it holds a {type(row).__name__}, not an object")
    try:
        return _adapter(kind).validate_json(json.dumps(dict(row)))  # as JSON, where a list may be a tuple
    except ValidationError as error:
        wrong = error.errors()[0]
        raise InputError(f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg'].lower()}") from None


@functools.cache
def _adapter(kind: type[Any]) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)
