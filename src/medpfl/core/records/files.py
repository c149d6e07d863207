"""Safetensors files with JSON in their header, checked before a tensor is read: another party may have written them."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from medpfl.core.atomic_files import SHARED, oddity_of, write
from medpfl.core.errors import InputError
from medpfl.core.experiments.limits import NAME, shortened

__all__ = ["holds", "opened", "put"]

_KINDS = {"medpfl-update": "a record", "medpfl-truth": "a truth file"}
"""Keys of MedPFL's files, which a message tells apart."""
_HEADER_BYTES = 1 << 24
_TENSORS = 100_000
_AXES, _SIDE = 16, 1 << 40
_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
"""Bytes of one element by the format's name for its dtype."""


def put(path: Path, key: str, about: Mapping[str, Any], tensors: Mapping[str, Tensor], mode: int = SHARED) -> None:
    """Write tensors, with a JSON object under `key` in the file's metadata."""
    own = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    write(path, save(own, {"format": "pt", key: json.dumps(about, allow_nan=False)}), mode)


def holds(path: Path, key: str) -> bool:
    """Return True if a path is a file whose header contains a key."""
    if not path.is_file():  # opening a named pipe would block
        return False
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            return key.encode() in file.read(min(length, _HEADER_BYTES))
    except (OSError, struct.error):
        return False


def opened(path: Path, key: str, what: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the JSON object under `key`, and the tensors.

    The sizes that the header states are compared with the file's own size before memory is allocated.

    Args:
        path: the file.
        key: the key in the file's metadata, which is also the object's entry ``format``.
        what: name of such a file for messages, such as ``record``.

    Raises:
        InputError: the file cannot be read, is damaged, or is not such a file.
    """
    about = _about(_header(path, what), path, key, what)
    try:
        with safe_open(path, "pt") as file:
            return about, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError, KeyError) as error:
        raise InputError(f"'{path}' cannot be read as a {what}: {str(error)[:200]}") from None


def _header(path: Path, what: str) -> dict[str, Any]:
    """Return a file's header after checking that it describes exactly the bytes after it."""
    if odd := oddity_of(path):
        raise InputError(f"'{path}' cannot be read as a {what}: {odd}")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
            if length > min(size - 8, _HEADER_BYTES):
                raise ValueError("its header is longer than the file, or than 16 MiB")
            header = json.loads(file.read(length), object_pairs_hook=_once, parse_constant=_no_constant)
        if not isinstance(header, dict):
            raise ValueError("its header is no JSON object")
        _check_tensors({k: v for k, v in header.items() if k != "__metadata__"}, size - 8 - length)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"'{path}' cannot be read as a {what}: {str(error)[:200]}") from None
    return header


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("its header names an entry twice")
    return made


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"its header holds {name}, which is no JSON number")


def _check_tensors(entries: dict[str, Any], room: int) -> None:
    """Raise ValueError unless the tensors fill the file's data, with plain names, shapes and dtypes."""
    if len(entries) > _TENSORS:
        raise ValueError(f"it holds {len(entries)} tensors, at most {_TENSORS} are allowed")
    spans = []
    for name, entry in entries.items():
        if len(name) > NAME or not name.isprintable():
            raise ValueError(f"a tensor's name is {shortened(name)}")
        if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
            raise ValueError(f"the entry of tensor {shortened(name)} is incomplete")
        shape, span = entry["shape"], entry["data_offsets"]
        if not isinstance(shape, list) or len(shape) > _AXES or not all(_whole(n, _SIDE) for n in shape):
            raise ValueError(f"tensor {shortened(name)} has the shape {shortened(shape)}")
        if not isinstance(span, list) or len(span) != 2 or not all(_whole(n, room) for n in span):
            raise ValueError(f"tensor {shortened(name)} lies outside of the file")
        count = 1
        for side in shape:
            count *= side
        width = _BYTES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
        if width is None or count * width != span[1] - span[0]:
            raise ValueError(f"tensor {shortened(name)} has another size than its shape and dtype say")
        spans.append(tuple(span))
    place = 0
    for begin, end in sorted(spans):
        if begin != place:
            raise ValueError("its tensors overlap or leave gaps")
        place = end
    if place != room:
        raise ValueError(f"its header describes {place} bytes of data, but the file holds {room}")


def _whole(value: Any, most: int) -> bool:
    return type(value) is int and 0 <= value <= most


def _about(header: dict[str, Any], path: Path, key: str, what: str) -> dict[str, Any]:
    metadata = header.get("__metadata__")
    held = metadata if isinstance(metadata, dict) else {}
    text = held.get(key)
    if text is None:
        for one, kind in _KINDS.items():
            if one in held:
                remedy = "give the record first, and its truth file to --truth"
                raise InputError(f"'{path}' is {kind}, not a {what}: {remedy}")
        remedy = "make one with medpfl.record or medpfl.Record(...).save(path)"
        raise InputError(f"'{path}' is a safetensors file, but not a {what}: {remedy}")
    try:
        about = json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
        if about["format"] == key:
            return about
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    raise InputError(f"the header of '{path}' is damaged")
