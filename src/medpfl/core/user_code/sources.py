"""Digests of the code that a user's object depends on: its modules, and code typed in interactively."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping
from functools import partial, singledispatch
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from medpfl.core.user_code.modules import UNKNOWN, Module, checked, closure, is_own

__all__ = ["modules_of"]

_LONG = 1000
"""Maximum length of a value's ``repr`` for it to be compared."""

_PLAIN = (str, bytes, int, float, complex, bool, type(None), Path)


def modules_of(part: Any) -> dict[str, str]:
    """Return digests, by module name, of all user code behind an object.

    This covers the modules of its class, of that class's bases, and of every object and function that it holds, as well
    as everything that these modules import, at the top or inside a function. For code typed in interactively, it covers
    the classes and functions in use. A digest that begins with `UNKNOWN` explains why there is none.

    Raises:
        InputError: a file was changed after this process imported it.
    """
    homes, loose = _homes(part)
    found = {module.name: checked(module) for module in closure(homes)}
    for one in loose:
        found[f"{one.__module__}.{one.__qualname__}"] = _typed_in(one)
    return found


def _homes(part: Any) -> tuple[list[Module], list[Any]]:
    """Return the user's modules that define an object's classes and functions, and those without a usable module."""
    modules: dict[str, Module] = {}
    loose: dict[int, Any] = {}
    seen: dict[int, Any] = {}
    todo = [part]
    while todo:
        one = todo.pop()
        if isinstance(one, _PLAIN) or id(one) in seen:
            continue
        seen[id(one)] = one  # kept, so that no other object gets its id
        if isinstance(one, ModuleType):
            if is_own(one.__name__, one):
                modules[one.__name__] = Module.of(one.__name__, one)
            continue
        todo += _held(one)
        for kind in _kinds(one):
            name = getattr(kind, "__module__", None) or "__main__"
            module = sys.modules.get(name)
            if name.partition(".")[0] == "medpfl" or (module is not None and not is_own(name, module)):
                continue
            made = None if module is None else Module.of(name, module)
            if made is not None and not made.typed_in:
                modules[name] = made
            if made is None or made.typed_in or _is_stale(kind, sys.modules[name]):
                loose[id(kind)] = kind
    return list(modules.values()), list(loose.values())


def _kinds(one: Any) -> list[Any]:
    """Return the classes or the function that define an object."""
    if isinstance(one, FunctionType):
        return [one]
    return [kind for kind in (one if isinstance(one, type) else type(one)).__mro__ if kind is not object]


def _is_stale(kind: Any, module: ModuleType) -> bool:
    """Return True if a class's module was executed again since, so that its file may differ from the class."""
    held = vars(module).get(kind.__name__)
    return isinstance(kind, type) and kind.__qualname__ == kind.__name__ and isinstance(held, type) and held is not kind


def _held(one: Any) -> list[Any]:
    """List the objects that an object refers to: elements, attributes, closure and default values; none for a class."""
    match one:
        case Mapping():
            held = [*one.keys(), *one.values()]
        case list() | tuple() | set() | frozenset():
            held = list(one)
        case MethodType():
            held = [one.__self__, one.__func__]
        case partial():
            held = [one.func, one.args, one.keywords]
        case FunctionType():
            cells = [cell.cell_contents for cell in one.__closure__ or () if _is_filled(cell)]
            held = [*cells, *(one.__defaults__ or ()), *(one.__kwdefaults__ or {}).values()]
        case type():
            return []
        case _:
            held = [getattr(one, name, None) for kind in type(one).__mro__ for name in _slots(kind)]
    return held + list(getattr(one, "__dict__", {}).values())


def _slots(kind: type) -> tuple[str, ...]:
    named = kind.__dict__.get("__slots__", ())
    return (named,) if isinstance(named, str) else tuple(named)


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _typed_in(one: Any) -> str:
    """Return a digest of a class or function typed in, from its compiled code and the module members it uses."""
    digest = hashlib.sha256()
    try:
        for text in _code(one, {}):
            digest.update(text.encode())
    except _OpaqueError as error:
        return f"{UNKNOWN}{error}"
    return digest.hexdigest()[:16]


class _OpaqueError(Exception):
    """The code uses something that cannot be compared between processes."""


def _code(one: Any, seen: dict[int, Any]) -> Iterator[str]:
    """Yield texts that distinguish a class, function or value from others."""
    if isinstance(one, _PLAIN):
        yield f"{type(one).__name__} {one!r};"
    elif id(one) not in seen:
        seen[id(one)] = one
        yield from _texts(one, seen)


@singledispatch
def _texts(one: Any, seen: dict[int, Any]) -> Iterator[str]:
    text = repr(one)
    if " at 0x" in text or "..." in text or len(text) > _LONG:
        raise _OpaqueError(f"it was typed in, and uses a {type(one).__name__} that was made there")
    yield f"{type(one).__qualname__} {text};"


@_texts.register
def _(one: ModuleType, seen: dict[int, Any]) -> Iterator[str]:
    yield f"module {one.__name__};"
    if is_own(one.__name__, one):
        yield from (f"{own.name} {checked(own)};" for own in closure([Module.of(one.__name__, one)]))


@_texts.register
def _(one: CodeType, seen: dict[int, Any]) -> Iterator[str]:
    yield f"{one.co_name} {one.co_code.hex()} {one.co_names} {one.co_varnames} {one.co_freevars};"
    yield from _code(one.co_consts, seen)


@_texts.register
def _(one: FunctionType, seen: dict[int, Any]) -> Iterator[str]:
    yield f"function {one.__qualname__};"
    if not _is_of_library(one):
        cells = [cell.cell_contents for cell in one.__closure__ or () if _is_filled(cell)]
        used = {name: one.__globals__[name] for name in sorted(_names(one.__code__)) if name in one.__globals__}
        yield from _code([one.__code__, one.__defaults__, one.__kwdefaults__, cells, used], seen)


@_texts.register
def _(one: type, seen: dict[int, Any]) -> Iterator[str]:
    yield f"class {one.__qualname__};"
    if not _is_of_library(one):
        yield from _code([*one.__bases__, *_members(one)], seen)


@_texts.register(staticmethod)
@_texts.register(classmethod)
@_texts.register(MethodType)
def _(one: Any, seen: dict[int, Any]) -> Iterator[str]:
    yield from _code(one.__func__, seen)


@_texts.register
def _(one: property, seen: dict[int, Any]) -> Iterator[str]:
    yield from _code([one.fget, one.fset], seen)


@_texts.register(list)
@_texts.register(tuple)
def _(one: Any, seen: dict[int, Any]) -> Iterator[str]:
    yield f"{type(one).__name__} {len(one)};"
    for value in one:
        yield from _code(value, seen)


@_texts.register
def _(one: Mapping, seen: dict[int, Any]) -> Iterator[str]:
    for pair in one.items():
        yield from _code(pair, seen)


@_texts.register(set)
@_texts.register(frozenset)
def _(one: Any, seen: dict[int, Any]) -> Iterator[str]:
    yield from sorted("".join(_code(value, dict(seen))) for value in one)


def _is_of_library(kind: Any) -> bool:
    name = kind.__module__ or "__main__"
    module = sys.modules.get(name)
    return not is_own(name, module) if module is not None else name.partition(".")[0] == "medpfl"


def _names(code: CodeType) -> set[str]:
    """Return the names of globals and attributes that code uses, including its nested functions."""
    inner = [_names(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*inner)


_MADE = (
    "__dict__", "__weakref__", "__module__", "__doc__", "__dataclass_fields__", "__dataclass_params__", "__slotnames__",
)  # fmt: skip


def _members(kind: type) -> list[Any]:
    """Return a class's members sorted by name, without those that the interpreter adds to every class."""
    own = {k: v for k, v in vars(kind).items() if k not in _MADE and k != "__abstractmethods__" and "_abc_" not in k}
    return [pair for pair in sorted(own.items(), key=lambda item: item[0]) if _is_written(pair[1])]


def _is_written(value: Any) -> bool:
    """Return True if a class member was written in its source; False for slots and other C-level descriptors."""
    return not type(value).__name__.endswith("_descriptor")
