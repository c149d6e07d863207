"""Mistakes that an experiment's words alone show, before torch is imported, which takes seconds."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path

from medpfl.core.errors import InputError, nearest
from medpfl.core.place import is_place
from medpfl.core.spec import check_names, expand
from medpfl.core.threat import ThreatModel

__all__ = ["check_model", "check_source", "check_words", "names_in"]


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
    if model is not None and not Path(model).exists():
        check_model(model)
        _check("model", "models", [model])
    _check("attack", "attacks", attack)
    _check("defense", "defenses", defense)
    if "(" not in data or Path(data).exists():
        check_source(data)
    else:
        _check("data source", "data", [data])


def _check(role: str, package: str, specs: Iterable[str]) -> None:
    known = names_in(package)
    for spec in (one for text in specs if not is_place(text) for one in expand(text)):
        if not spec.partition("(")[0].endswith(".py"):  # a place without its name
            check_names(spec, known, role)


def check_source(data: str) -> None:
    """Raises `InputError` if there is nothing at the path of the images."""
    if data != "samples" and not Path(data).expanduser().exists():
        if "/" in data:
            raise InputError(f"there is no folder or record '{data}' (the working directory is '{Path.cwd()}')")
        raise InputError(f"there is no folder or record '{data}' here; {nearest(data, ['samples'])}")


def check_model(model: str) -> None:
    """Raises `InputError` for a model that is meant as a path, at which nothing is."""
    if "/" in model.partition("(")[0] and not is_place(model) and not Path(model).exists():
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
