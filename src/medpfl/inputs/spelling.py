"""Mistakes that an experiment's words alone show, before torch is imported, which takes seconds."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from pathlib import Path

from medpfl.core.errors import InputError, nearest, private
from medpfl.core.spec import check_names, expand
from medpfl.core.threat import ThreatModel
from medpfl.core.user_code.loading import at_home, is_call, is_place

__all__ = ["check_model_name", "check_source", "check_words", "is_there", "names_a_source", "names_in", "path_of"]

_CALL = re.compile(r"\s*(\w+)\s*\((.*)", re.DOTALL)


def check_words(
    data: str = "samples",
    *,
    model: str | None = None,
    attack: Iterable[str] = (),
    defense: Iterable[str] = (),
    grant: Iterable[str] = (),
) -> None:
    """Raises `InputError`, as the audit itself would later, for names of parts, grants and places that do not exist."""
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
        if not (spec.endswith(".py") or spec.partition("(")[0].endswith(".py")):  # a place without its name
            check_names(spec, known, role)


def names_a_source(data: str) -> bool:
    """Return whether data is given as a spec, ``Name(argument=value)``: what is there under that name is a path.

    >>> names_a_source("Dicom('a (1)', size=32)"), names_a_source("data/no such (folder)"), names_a_source("data (2)")
    (True, False, False)
    """
    call = _CALL.fullmatch(data)
    if call is None or is_there(data):
        return False
    return call[1] in names_in("data") or any(mark in call[2] for mark in ("'", '"', "="))


def is_there(data: str) -> bool:
    """Return whether there is something at a path; ``~`` stands for the home."""
    try:
        return path_of(data).exists()
    except (InputError, OSError):  # no path at all, or one that is too long to be one
        return False


def path_of(data: str | Path) -> Path:
    """Return a path that a person wrote, with ``~`` as the home.

    Raises:
        InputError: there is no such home, or a null byte.
    """
    if "\0" in str(data):
        raise InputError(f"{str(data)!r} holds a null byte, which no path does")
    try:
        return Path(data).expanduser()
    except RuntimeError:
        raise InputError(f"'{data}' starts with the home of a user who is not known here") from None


def check_source(data: str) -> None:
    """Raises `InputError` if there is nothing at the path of the images."""
    if data == "samples":
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
    """Raises `InputError` for a model that is meant as a path, at which nothing is."""
    if "/" in model and not is_call(model) and not is_place(model) and not at_home(model).exists():
        raise InputError(
            f"model '{model}': there is no such directory of a training or of its round; a spec, file.py:name and "
            "package.module:name are models too"
        )


def names_in(package: str) -> list[str]:
    """The ``__all__`` of one of our packages or modules, such as ``"attacks.matching"``, read and not imported."""
    place = Path(__file__).parents[1].joinpath(*package.split("."))
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    raise AssertionError(f"medpfl.{package} has no plain __all__")
