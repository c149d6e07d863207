"""Replaces paths in written texts by keyed hashes."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any, TypeVar

from medpfl.core.types import Finding
from medpfl.runs.study_key import Key

__all__ = ["Cloak"]

T = TypeVar("T")

_LITERAL = re.compile(r"(?<!\w)b?(?:'(?:[^'\\\n]|\\.)*'|\"(?:[^\"\\\n]|\\.)*\")(?!\w)")
_CALL = re.compile(r"\s*[\w.]+\(.*", re.DOTALL)
_SUFFIXES = (
    "bin|bmp|ckpt|csv|dcm|dicom|gz|h5|hdf5|jpeg|jpg|json|mat|mha|mhd|nii|nrrd|npy|npz|onnx|pickle|pkl|png|pt|pth|py|"
    "safetensors|tar|tif|tiff|toml|tsv|txt|xml|yaml|yml|zip"
)
_FILE = re.compile(rf"\S.*\.(?:{_SUFFIXES})", re.IGNORECASE)
_TEXTS = ("attack", "defense", "model", "data", "plan", "certificate", "found_by", "unread")
"""Fields of a row that hold a spec, or a text by the attack."""
_SHORT = 4
"""Shorter paths than this are replaced only inside quotes."""


class Cloak:
    """Replaces every quoted path in a text by a hash, the same for the same path and key.

    Args:
        key: the study's key; ``None`` leaves texts as they are, as in a run that writes nothing.
        parts: the run's parts; paths in their fields are replaced everywhere, quoted or not.
    """

    def __init__(self, key: Key | None, parts: Iterable[Any] = ()) -> None:
        self.key = key
        self.known = {path for part in parts for path in _paths_in(part)} if key is not None else set()

    def __call__(self, value: T) -> T:
        """Replace paths in a text, in a finding, or in all texts (keys included) of a JSON-like value."""
        return value if self.key is None else self._whole(value)

    def _whole(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, Finding):
            return dataclasses.replace(value, **{name: self._text(getattr(value, name)) for name in _TEXTS})
        if isinstance(value, Mapping):
            return type(value)({self._whole(k): self._whole(v) for k, v in value.items()})  # type: ignore[call-arg]
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(self._whole, value))
        return type(value)(map(self._whole, value)) if isinstance(value, list | tuple) else value

    def _text(self, text: str) -> str:
        text = _LITERAL.sub(self._literal, text) if "'" in text or '"' in text else text
        for path in sorted(self.known, key=len, reverse=True):  # unquoted, as in a custom __repr__
            if len(path) >= _SHORT and path in text:
                text = text.replace(path, self._token(path))
        return text

    def _literal(self, found: re.Match[str]) -> str:
        try:
            text = ast.literal_eval(found[0])
        except (SyntaxError, ValueError):  # an apostrophe in a sentence
            return found[0]
        if isinstance(text, bytes):
            text = text.decode(errors="replace")
        if text in self.known or _is_path(text):
            return repr(self._token(text))
        inside = self._text(text)
        return found[0] if inside == text else repr(inside)

    def _token(self, path: str) -> str:
        assert self.key is not None
        return f"path-{self.key.tag('path', path)[:12]}"


def _is_path(text: str) -> bool:
    if _CALL.fullmatch(text):  # a spec: its arguments are checked one by one
        return False
    return "/" in text or "\\" in text or text.startswith("~") or _FILE.fullmatch(text) is not None


def _paths_in(part: Any) -> set[str]:
    """Return the paths in the fields of a part and of its nested parts."""
    found: set[str] = set()
    seen: dict[int, Any] = {}
    todo = [(part, False)]
    while todo:
        one, own = todo.pop()
        if id(one) in seen:
            continue
        seen[id(one)] = one
        if isinstance(one, PurePath) or (isinstance(one, str) and (_is_path(one) or (own and _exists(one)))):
            found.add(str(one))
        elif isinstance(one, Mapping):
            todo += [(value, own) for pair in one.items() for value in pair]
        elif isinstance(one, list | tuple | set | frozenset):
            todo += [(value, own) for value in one]
        elif dataclasses.is_dataclass(one) and not isinstance(one, type):
            # MedPFL's own parts never name a file without a suffix, so "relu" is no path even if such a file exists.
            own = not type(one).__module__.startswith("medpfl.")
            todo += [(getattr(one, field.name, None), own) for field in dataclasses.fields(one) if field.repr]
    return found


def _exists(text: str) -> bool:
    try:
        return len(text) >= _SHORT and Path(text).exists()
    except (OSError, ValueError):
        return False
