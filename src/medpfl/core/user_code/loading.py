"""Loading of users' own parts, given as ``path/to/file.py:name`` or ``package.module:name``."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from medpfl.core.errors import InputError, nearest, private
from medpfl.core.user_code.modules import remember
from medpfl.core.user_code.strangers import explained

__all__ = ["at_home", "find", "is_call", "is_place", "parted"]

_IN_FILE = re.compile(r"(.+?\.py):(\s*\w*\s*(?:[(\[|].*)?)", re.DOTALL)
"""A file, whose path may contain parentheses and colons, followed by a name and optional arguments."""
_IN_MODULE = re.compile(r"([^(\[]*):([^:(\[]*(?:[(\[].*)?)", re.DOTALL)


def parted(text: str) -> tuple[str, str] | None:
    """Return a spec's place and the text after its colon, or ``None`` if the spec names no place.

    >>> parted("net (1).py:make(width=8)['logits']")
    ('net (1).py', "make(width=8)['logits']")
    >>> parted("package.module:Class"), parted("LeNet('a:b')")
    (('package.module', 'Class'), None)
    """
    if _is_expression(text):  # a name with arguments; these may contain colons
        return None
    found = _IN_FILE.fullmatch(text) or _IN_MODULE.fullmatch(text)
    return None if found is None else (found[1], found[2])


def _is_expression(text: str) -> bool:
    try:
        ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def is_place(text: str) -> bool:
    """Return True if a spec names its part's place: ``place:name``, with or without arguments."""
    return parted(text) is not None


def at_home(path: str | Path) -> Path:
    """Return a path with ``~`` expanded, or unchanged if there is no such home directory."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def is_call(text: str) -> bool:
    """Return True if a text is meant as a name, with or without arguments, and not as a path.

    >>> is_call("MLP((4,))"), is_call("MLP((4,)"), is_call("runs/a (1)"), is_call("net (1)/round-2")
    (True, True, False, False)
    """
    return re.fullmatch(r"\s*\w+\s*(\(.*\)\s*|\([^)]*)?", text, re.DOTALL) is not None


def find(place: str, name: str, role: str) -> Callable[..., Any]:
    """Return the function or class `name` in a file or a module.

    Args:
        place: a ``.py`` file, which may import its neighbors, or a module importable from the working directory.
            ``~`` is the home directory.
        name: the name of the function or class.
        role: the role's name in error messages ("model", "attack").

    Raises:
        InputError: there is no such file, module or name (the message suggests the nearest), or an import fails.
    """
    module = _load_file(at_home(place), role) if place.endswith(".py") else _import(place, role)
    with explained(f"'{place}' does not give '{name}'"):  # a module may define __getattr__
        found = getattr(module, name, None)
    if not callable(found):
        public = [k for k, v in vars(module).items() if callable(v) and not k.startswith("_")]
        if place.endswith(".py"):  # names that it imports are seldom meant
            public = [k for k in public if getattr(module, k).__module__ == module.__name__] or public
        raise InputError(f"'{place}' has no function or class '{name}'; {nearest(name, public)}")
    return found


def _load_file(path: Path, role: str) -> ModuleType:
    if not path.is_file():
        here = "" if path.is_absolute() else f" (the working directory is '{private(Path.cwd())}')"
        raise InputError(f"there is no {role} file '{path}'{here}")
    spec = importlib.util.spec_from_file_location(_name_of(path), path)
    if spec is None or spec.loader is None:
        raise InputError(f"'{path}' is not a Python file")
    module = importlib.util.module_from_spec(spec)
    # A dataclass or a pickle in the user's file looks its module up by name; its neighbours are imported too.
    before = set(sys.modules)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        with explained(f"importing '{path}' failed", named=True):
            spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    remember(module, before)
    return module


def _name_of(path: Path) -> str:
    """Return a module name for a file, made from the file's name and unique among loaded modules."""
    name = f"medpfl_user_{path.stem}"
    while (other := getattr(sys.modules.get(name), "__file__", None)) and Path(other) != path.absolute():
        name += "~"
    return name


def _import(place: str, role: str) -> ModuleType:
    # As `python -m` does: the user's package is in the working directory.
    sys.path.insert(0, str(Path.cwd()))
    ours = f"give your own {role} as 'file.py:name' or 'package.module:name'"
    try:
        with explained(f"importing '{place}' failed ({ours})", named=True):
            try:
                before = set(sys.modules)
                module = importlib.import_module(place)
                remember(module, before)
                return module
            except ModuleNotFoundError as error:
                raise InputError(
                    f"importing '{place}' failed: there is no module '{error.name}' in this Python: install it with "
                    f"pip; {ours}"
                ) from error
    finally:
        sys.path.pop(0)
