"""Checks of names and paths before torch is imported, which takes seconds."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from glob import glob
from pathlib import Path

from medpfl.core.errors import InputError, nearest, private
from medpfl.core.spec import check_names, expand
from medpfl.core.threat import ThreatModel
from medpfl.core.user_code.loading import at_home, is_call, is_place, parted

__all__ = [
    "check_model_name",
    "check_source",
    "check_words",
    "is_pattern",
    "is_there",
    "matching",
    "names_a_source",
    "names_in",
    "path_of",
]

_CALL = re.compile(r"\s*(\w+)\s*\((.*)", re.DOTALL)
_MODULE = re.compile(r"[^\W\d]\w*(\.\w+)*:\s*[^\W\d]\w*\s*(\(.*)?", re.DOTALL)
"""A data source in a module; a path with a colon is seldom one."""


def check_words(
    data: str = "samples",
    *,
    model: str | None = None,
    attack: Iterable[str] = (),
    defense: Iterable[str] = (),
    grant: Iterable[str] = (),
) -> None:
    """Check that parts, grants and paths exist, with the same errors as the audit would raise later.

    Raises:
        InputError: one of them does not exist.
    """
    ThreatModel(tuple(grant))
    if model is not None and not at_home(model).exists():
        check_model_name(model)
        _check("model", "models", [model])
    _check("attack", "attacks", attack)
    _check("defense", "defenses", defense)
    if names_a_source(data):
        _check("data source", "data", [data])
    else:
        check_source(data)


def _check(role: str, package: str, specs: Iterable[str]) -> None:
    known = names_in(package)
    for spec in (one for text in specs if not is_place(text) for one in expand(text)):
        if not (spec.endswith(".py") or spec.partition("(")[0].endswith(".py")):  # a file without a name after it
            check_names(spec, known, role)


def names_a_source(data: str) -> bool:
    """Return True if data is a spec, ``Name(argument=value)`` or ``place:Name``, and not an existing path.

    >>> names_a_source("Dicom('a (1)', size=32)"), names_a_source("data/no such (folder)"), names_a_source("data (2)")
    (True, False, False)
    >>> names_a_source("mine.py:Mine(size=32)"), names_a_source("lab.data:Mine"), names_a_source("data/site:1")
    (True, True, False)
    """
    if is_there(data):
        return False
    if (found := parted(data)) is not None:
        return found[0].endswith(".py") or _MODULE.fullmatch(data) is not None
    call = _CALL.fullmatch(data)
    if call is None:
        return False
    return call[1] in names_in("data") or any(mark in call[2] for mark in ("'", '"', "="))


def is_pattern(data: str) -> bool:
    """Return True if a text is a pattern for several files, such as ``updates/site-*/round-*``, and no existing path.

    >>> is_pattern("updates/site-*/*"), is_pattern("updates/site-1"), is_pattern("Dicom('a*')")
    (True, False, False)
    """
    return (
        any(mark in data for mark in "*?[")
        and _CALL.fullmatch(data) is None
        and not names_a_source(data)
        and not is_there(data)
    )


def matching(pattern: str) -> list[Path]:
    """Return the paths that match a pattern, sorted; ``**`` matches folders at any depth."""
    return sorted(map(Path, glob(str(path_of(pattern)), recursive=True)))  # noqa: PTH207 (it may be absolute)


def is_there(data: str) -> bool:
    """Return True if the path exists; ``~`` stands for the home directory."""
    try:
        return path_of(data).exists()
    except (InputError, OSError):  # not a valid path, or too long
        return False


def path_of(data: str | Path) -> Path:
    """Return a user's path with ``~`` expanded to the home directory.

    Raises:
        InputError: the home directory is unknown, or the path holds a null byte.
    """
    if "\0" in str(data):
        raise InputError(f"{str(data)!r} holds a null byte, which a path cannot contain")
    try:
        return Path(data).expanduser()
    except RuntimeError:
        raise InputError(f"'{data}' starts with the home directory of an unknown user") from None


def check_source(data: str) -> None:
    """Check that the images' path exists.

    Raises:
        InputError: it does not.
    """
    if data == "samples":
        return
    if is_pattern(data):
        if not matching(data):
            raise InputError(f"no file has a name like '{private(data)}': check the pattern, and put it in quotes")
        return
    place = path_of(data)
    try:
        there = place.exists()
    except OSError as error:
        raise InputError(f"there is no folder or record '{private(data)}' ({error.strerror})") from None
    if not there:
        if "/" in data:
            where = private(Path.cwd())
            raise InputError(f"there is no folder or record '{private(data)}' (the working directory is '{where}')")
        raise InputError(f"there is no folder or record '{private(data)}' here; {nearest(data, ['samples'])}")


def check_model_name(model: str) -> None:
    """Check that a model that looks like a path exists.

    Raises:
        InputError: it does not.
    """
    if "/" in model and not is_call(model) and not is_place(model) and not at_home(model).exists():
        raise InputError(
            f"model '{model}': this training or round directory does not exist; a model can also be a spec, "
            "file.py:name or package.module:name"
        )


def names_in(package: str) -> list[str]:
    """Return the ``__all__`` of a MedPFL package or module, such as ``"attacks.matching"``, without importing it."""
    place = Path(__file__).parents[1].joinpath(*package.split("."))
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    raise AssertionError(f"medpfl.{package} has no plain __all__")
