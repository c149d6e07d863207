"""Where a user's own part is: ``path/to/file.py:name`` or ``package.module:name``."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from medpfl.core.errors import InputError, nearest

__all__ = ["find", "is_place"]


def is_place(text: str) -> bool:
    """Whether a spec says where its part is: ``place:name``, with or without arguments."""
    return ":" in text.partition("(")[0]


def find(place: str, name: str, role: str) -> Callable[..., Any]:
    """The function or class `name` of a file or a module.

    Args:
        place: a ``.py`` file, whose neighbors it may import, or a module, as seen from the working directory.
        name: what is looked for in it.
        role: the word for it in error messages ("model", "attack").

    Raises:
        InputError: no such file, module or name (with the nearest right one), or an import that fails.
    """
    module = _load_file(Path(place), role) if place.endswith(".py") else _import(place, role)
    found = getattr(module, name, None)
    if not callable(found):
        public = [k for k, v in vars(module).items() if callable(v) and not k.startswith("_")]
        raise InputError(f"'{place}' has no function or class '{name}'; {nearest(name, public)}")
    return found


def _load_file(path: Path, role: str) -> ModuleType:
    if not path.is_file():
        raise InputError(f"there is no {role} file '{path}'")
    spec = importlib.util.spec_from_file_location(f"medpfl_user_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InputError(f"'{path}' is not a Python file")
    module = importlib.util.module_from_spec(spec)
    # A dataclass or a pickle in the user's file looks its module up by name; its neighbours are imported too.
    sys.modules[spec.name] = module
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's file may raise anything
        raise InputError(f"importing '{path}' failed: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    return module


def _import(place: str, role: str) -> ModuleType:
    # As `python -m` does: the user's package lies where the user is.
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        raise InputError(
            f"importing '{place}' failed: there is no module '{error.name}' in this Python: install it with pip; your "
            f"own {role} is given as 'file.py:name' or 'package.module:name'"
        ) from error
    except Exception as error:  # so may the user's package
        raise InputError(
            f"importing '{place}' failed: {type(error).__name__}: {error}; your own {role} is given as "
            "'file.py:name' or 'package.module:name'"
        ) from error
    finally:
        sys.path.pop(0)
