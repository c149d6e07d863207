"""The user's own modules: how to tell them from others, their imports, and digests of their content.

A module is the user's own unless it belongs to an installed distribution, the standard library or MedPFL. Editable
installs, notebook cells, and modules imported only inside a function are the user's own.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.machinery
import importlib.metadata
import os
import site
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, lru_cache
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, NamedTuple

from medpfl.core.errors import HIDDEN, InputError, private

__all__ = [
    "UNKNOWN",
    "Module",
    "brought",
    "checked",
    "closure",
    "is_own",
    "noticed",
    "own_line",
    "own_modules",
    "quoted",
    "remember",
    "shown_name",
]

UNKNOWN = "unknown: "
"""Prefix of the digest of code that cannot be read; the reason follows."""

_MADE_BY_LIBRARIES = frozenset({"_remote_module_non_scriptable"})
"""Modules that PyTorch writes to a temporary folder."""

_noticed: list[tuple[str, str]] = []
_first: dict[str, tuple[Any, str]] = {}
_brought: dict[str, set[str]] = {}


class Module(NamedTuple):
    """A module that is imported, or that an import would find.

    Attributes:
        name: its name in ``sys.modules``.
        file: its source or machine code file; ``None`` for namespace packages and code typed in.
        loader: its loader, which reads the file if it is in an archive.
        package: the package that relative imports start from.
        folders: folders in which a package looks for its modules.
        loaded: the module itself, if it is imported.
    """

    name: str
    file: str | None
    loader: Any
    package: str
    folders: tuple[str, ...]
    loaded: ModuleType | None = None

    @classmethod
    def of(cls, name: str, module: ModuleType) -> Module:
        """Return the description of an imported module."""
        own = vars(module)  # getattr could trigger a module's __getattr__
        spec = own.get("__spec__")
        file = own.get("__file__") or (spec.origin if spec is not None and spec.has_location else None)
        if not isinstance(file, str) or not Path(file).is_absolute():  # some modules created by code do so
            file = None
        loader = getattr(spec, "loader", None) or own.get("__loader__")
        package = (spec.parent if spec is not None else own.get("__package__")) or ""
        return cls(name, file, loader, package, tuple(own.get("__path__") or ()), module)

    @classmethod
    def expected(cls, spec: importlib.machinery.ModuleSpec) -> Module:
        """Return the description of a module that an import would find."""
        file = spec.origin if spec.has_location else None
        folders = tuple(spec.submodule_search_locations or ())
        return cls(spec.name, file, spec.loader, spec.parent or "", folders)

    @property
    def typed_in(self) -> bool:
        """True if the module has neither a file nor a folder: notebook cells, an interpreter, `exec`."""
        return self.file is None and not self.folders

    def content(self) -> bytes:
        """Return the module's source or machine code; empty for a namespace package."""
        if self.file is None:
            return b""
        try:
            return Path(self.file).read_bytes()
        except OSError:
            try:
                return self.loader.get_data(self.file)  # in a zip file
            except Exception:  # a loader of another kind may raise anything
                return b"unreadable"


def remember(module: ModuleType, before: Iterable[str]) -> None:
    """Record digests of a module that was just imported, and of all user modules that it imports.

    Args:
        module: the imported module.
        before: names of all modules loaded before its import; modules loaded since count as its imports.

    Raises:
        InputError: a file was changed after this process imported it.
    """
    brought(module.__name__, set(sys.modules) - set(before) - {module.__name__})
    for one in closure([Module.of(module.__name__, module)]):
        checked(one)


def brought(importer: str, names: Iterable[str]) -> None:
    """Record which modules a module has imported, in whatever way."""
    loaded = {name: module for name in names if isinstance(module := sys.modules.get(name), ModuleType)}
    own = {name for name, module in _without_libraries(loaded).items() if is_own(name, module)}
    _brought.setdefault(importer, set()).update(own)


def noticed(since: int = 0) -> list[tuple[str, str]]:
    """Return imported modules with their digests, in order of import, from the index `since` on."""
    return _noticed[since:]


def own_modules() -> set[str]:
    """Return the names of all user modules that are currently imported and come from a file."""
    loaded = {name: module for name, module in list(sys.modules.items()) if isinstance(module, ModuleType)}
    made = [Module.of(name, module) for name, module in _without_libraries(loaded).items()]
    return {module.name for module in made if not module.typed_in and is_own(module.name, module)}


def _without_libraries(loaded: Mapping[str, ModuleType]) -> dict[str, ModuleType]:
    """Return the modules without those of libraries' packages. Asks once for a package: torch has 2,000 modules."""
    tops = {name.partition(".")[0] for name in loaded}
    libraries = {top for top in tops & loaded.keys() if not is_own(top, loaded[top])}
    return {name: module for name, module in loaded.items() if name.partition(".")[0] not in libraries}


def quoted(error: BaseException, text: str | None = None, named: bool = False) -> str:
    """Return an exception's text for a message, marked as private if the user's code or the operating system raised it.

    A library's message is about shapes and types. The user's own code may say anything, and the operating system names
    files. The name of a module that cannot be imported is not private.

    Args:
        error: the exception.
        text: its text, if not its own first line.
        named: True if the exception's class stands in place of a private text.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    own = (not frames or _is_own_frame(frames[-1])) and not isinstance(error, ImportError)
    text = text or f"{error}".partition("\n")[0] or type(error).__name__
    if own or isinstance(error, OSError):
        return private(
            text, f"{type(error).__name__}, its message is {HIDDEN}" if named else f"its message is {HIDDEN}"
        )
    return text


def own_line(error: BaseException) -> str:
    """Return the place in user code where an exception occurred, as `` (mine.py, line 12)``; ``""`` if there is none.

    The result is marked as private.
    """
    lines = [(frame, line) for frame, line in traceback.walk_tb(error.__traceback__) if _is_own_frame(frame)]
    if not lines:
        return ""
    frame, line = lines[-1]
    return private(f" ({Path(frame.f_code.co_filename).name}, line {line})", "")


def _is_own_frame(frame: FrameType) -> bool:
    name = frame.f_globals.get("__name__", "__main__")
    module = sys.modules.get(name)
    return module is None or is_own(name, module)


def shown_name(module: str) -> str:
    """Return a module's name for messages; for a file given by its path, the file's name."""
    return module.removeprefix("medpfl_user_").replace("~", "")


def is_own(name: str, module: Module | ModuleType) -> bool:
    """Return True if a module belongs to no installed distribution, nor to the standard library or MedPFL."""
    top = name.partition(".")[0]
    if top in ("medpfl", *_MADE_BY_LIBRARIES):
        return False
    if top != name and isinstance(whole := sys.modules.get(top), ModuleType) and not is_own(top, whole):
        return False  # including code that an installed package generated and imported
    made = Module.of(name, module) if isinstance(module, ModuleType) else module
    if made.file is not None:
        return _is_own_file(top, made.file)
    if made.folders:
        return any(_is_own_file(top, folder) for folder in made.folders)
    return top == "__main__" or (top not in sys.stdlib_module_names and top not in _distributions())


@lru_cache(maxsize=10_000)
def _is_own_file(top: str, file: str) -> bool:
    path = os.path.realpath(file)
    for folder in _site_folders():
        if _within(path, [folder]):  # an extension module may use only the last part of its name
            inside = Path(path).relative_to(folder).parts[0].partition(".")[0]
            return not {top, inside} & _distributions().keys()
    return not _within(path, _library_folders()) and not any(
        _within(path, [place]) for place in _elsewhere(top) if place
    )


def _within(path: str, folders: Iterable[str]) -> bool:
    return any(path == folder or path.startswith(folder + os.sep) for folder in folders)


@cache
def _library_folders() -> tuple[str, ...]:
    places = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), str(Path(os.__file__).parent)}
    return tuple(os.path.realpath(place) for place in places if place)


@cache
def _site_folders() -> tuple[str, ...]:
    places = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()}
    places |= {site.getusersitepackages()}
    return tuple(os.path.realpath(place) for place in places if place)


@cache
def _distributions() -> Mapping[str, list[importlib.metadata.Distribution]]:
    """Return installed distributions by the names of their top-level modules.

    Does as `importlib.metadata.packages_distributions`, which takes ten times as long: it parses every file's name.
    """
    found: dict[str, list[importlib.metadata.Distribution]] = {}
    for one in importlib.metadata.distributions():
        for top in _tops(one):
            found.setdefault(top, []).append(one)
    return found


def _tops(distribution: importlib.metadata.Distribution) -> set[str]:
    """Return the names of a distribution's top-level modules, as stated, or else as its list of files shows."""
    if stated := distribution.read_text("top_level.txt"):
        return set(stated.split())
    record = distribution.read_text("RECORD")
    files = map(str, distribution.files or ()) if record is None else record.splitlines()
    parts = [file.lstrip('"').partition(",")[0].partition("/") for file in files]
    return {first if rest else first.partition(".")[0] for first, _, rest in parts}


@cache
def _elsewhere(top: str) -> tuple[str, ...]:
    """Return folders outside ``site-packages`` into which pip installed such a distribution (``--target``)."""
    found = []
    for made in _distributions().get(top, ()):
        if made.read_text("RECORD") is not None:  # not the metadata beside the source of an editable install
            found.append(os.path.realpath(str(made.locate_file(""))))
    return tuple(found)


def closure(modules: Iterable[Module]) -> list[Module]:
    """Return the modules and all user modules that they import, directly or not, already imported or not."""
    found: dict[str, Module] = {}
    todo = list(modules)
    while todo:
        one = todo.pop()
        if one.name not in found:
            found[one.name] = one
            names = [*_imported(one), *_brought.get(one.name, ())]
            todo += [other for name in names for other in _named(name, one) if is_own(other.name, other)]
    return [found[name] for name in sorted(found)]


def _imported(module: Module) -> Iterator[str]:
    """Yield the full names of all possible modules in a source's import statements, including those in functions."""
    for node in _statements(module.content()) if module.file is not None else ():
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        else:
            above = module.package.split(".")[: len(module.package.split(".")) + 1 - node.level] if node.level else []
            whole = ".".join([*above, *([node.module] if node.module else [])])
            yield whole
            yield from (f"{whole}.{alias.name}" for alias in node.names if whole)


@lru_cache(maxsize=1000)  # a run asks for each of its parts, at its beginning and at its end
def _statements(source: bytes) -> tuple[ast.Import | ast.ImportFrom, ...]:
    """Return all import statements in a source; none in machine code."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):  # machine code, or no Python
        return ()
    return tuple(node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom))


def _named(name: str, importer: Module) -> Iterator[Module]:
    """Yield the packages that contain a named module, then the module, as far as they exist."""
    beside = [str(Path(importer.file).parent)] if importer.file is not None else []
    folders: tuple[str, ...] | None = None
    whole = ""
    for word in filter(None, name.split(".")):
        whole = f"{whole}.{word}".lstrip(".")
        module = sys.modules.get(whole)
        if module is not None and not isinstance(module, ModuleType):
            return
        one = Module.of(whole, module) if module is not None else _expected(whole, folders, beside)
        if one is None:
            return
        yield one
        folders = one.folders
        if not is_own(whole, one):
            return


def _expected(name: str, folders: tuple[str, ...] | None, beside: list[str]) -> Module | None:
    """Return the module that an import of a name would find, without importing it."""
    if folders is not None and not folders:
        return None
    for finder in [*sys.meta_path, importlib.machinery.PathFinder]:
        place = None if folders is None else list(folders)
        if finder is importlib.machinery.PathFinder and place is None:
            place = [*sys.path, *beside, str(Path.cwd())]
        try:
            spec = finder.find_spec(name, place)
        except Exception:  # a finder that somebody else installed
            continue
        if spec is not None:
            return Module.expected(spec)
    return None


def checked(module: Module) -> str:
    """Return the digest of a module's content, and record it in the first call after its import or reload.

    The digest is 16 hex digits, or `UNKNOWN` with the reason for code that was typed in. Modules that are not imported
    are not recorded.

    Raises:
        InputError: the content of an imported module differs from what was recorded.
    """
    digest = f"{UNKNOWN}it was typed in" if module.typed_in else hashlib.sha256(module.content()).hexdigest()[:16]
    if module.loaded is None:
        return digest
    version = module.loaded.__spec__ or module.loaded  # an import and a reload make a new one
    before = _first.get(module.name)
    if before is None or before[0] is not version:
        _first[module.name] = (version, digest)
        _noticed.append((module.name, digest))
    elif before[1] != digest:
        raise InputError(
            f"the code of the module {shown_name(module.name)} changed after it had been imported, so the running code "
            "differs from the file: restart Python"
        )
    return digest
