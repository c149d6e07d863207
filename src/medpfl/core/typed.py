"""Rows of JSON, checked field by field when they are read back: the file may be damaged, or another party's."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any, TypeVar

from medpfl.core.errors import InputError

__all__ = ["typed"]

T = TypeVar("T")


def typed(kind: type[T], row: Any) -> T:
    """A row as the dataclass that it is of.

    Args:
        kind: the dataclass; lists of the row become tuples where it has them.
        row: what JSON holds.

    Raises:
        InputError: no object; a field that is missing, unknown, of another type, or not finite.
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
