"""Spec strings such as ``"LaplaceNoise(scale=1/300)"``, to and from objects.

They contain only literals, ratios of literals, and known names. `eval` is never used.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import math
import re
import types
import typing
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from medpfl.core.errors import InputError, nearest
from medpfl.core.experiments.limits import NESTING, SPEC, SWEEP, check_numbers

__all__ = [
    "Part",
    "build",
    "check_names",
    "check_part",
    "check_text",
    "construct",
    "expand",
    "lacking",
    "parsed",
    "registry",
    "shown",
    "signature",
    "summary",
    "with_argument",
]


class Part:
    """A frozen dataclass whose ``repr`` is its spec string: its `shown` fields, and those that differ from the default.

    >>> @dataclasses.dataclass(frozen=True, repr=False)
    ... class Noise(Part):
    ...     scale: float = shown(0.01)
    ...     relative: bool = False
    >>> Noise(), Noise(0.1, relative=True)
    (Noise(scale=0.01), Noise(scale=0.1, relative=True))
    """

    def __repr__(self) -> str:
        given = [
            f"{f.name}={getattr(self, f.name)!r}"
            for f in dataclasses.fields(self)  # type: ignore[arg-type]  (parts are dataclasses)
            if f.repr and (f.metadata.get("shown") or getattr(self, f.name) != _default(f))
        ]
        return f"{type(self).__name__}({', '.join(given)})"


def lacking(part: Any, method: str) -> InputError:
    """Return the error for a part whose class does not define a method of its role."""
    return InputError(f"the class {type(part).__name__} does not define {method}, which its role needs: add it")


def shown(default: Any) -> Any:
    """Return a dataclass field that a spec string always states."""
    return dataclasses.field(default=default, metadata={"shown": True})


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def registry(package: Any) -> dict[str, Any]:
    """Return a package's registry: the members named in its ``__all__``."""
    return {name: getattr(package, name) for name in package.__all__}


def summary(member: Any) -> str:
    """Return the first line of a member's docstring."""
    return (inspect.getdoc(member) or "").partition("\n")[0]


def signature(member: Any) -> str:
    """Return a registry member's arguments with their defaults, as written in a spec."""
    fields = dataclasses.fields(member) if dataclasses.is_dataclass(member) and isinstance(member, type) else ()
    return ", ".join(f.name if _default(f) is dataclasses.MISSING else f"{f.name}={_default(f)!r}" for f in fields)


def build(text: str, known: Mapping[str, Any], role: str = "part", nested: Mapping[str, Any] | None = None) -> Any:
    """Build the object described by a spec string; ``"A() | B()"`` composes with the parts' own ``|``.

    Args:
        text: ``Name``, ``Name(arg=literal, ...)`` or several of these joined by ``|``.
        known: the allowed names and their members.
        role: the role's name in error messages ("attack", "defense").
        nested: the allowed names inside arguments, and their members.

    Raises:
        InputError: a name (the message suggests the nearest), argument or value is wrong.
    """
    return _build(parsed(text, known, role), known, role, nested or {})


def check_names(text: str, known: Iterable[str], role: str) -> None:
    """Raise the `InputError` of `build` if a text is no spec or names no known part, without importing the parts."""
    nodes = [parsed(text, known, role)]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            nodes += [node.right, node.left]
        else:
            _called(node, known, role)


def check_text(text: str, role: str) -> None:
    """Raise `InputError` if a text is too long or too deeply nested for a spec.

    Args:
        text: the spec, with or without a place before it.
        role: the role's name in error messages.
    """
    if len(text) > SPEC:
        raise InputError(f"{role} '{text[:40]}...' has {len(text)} characters: a spec has at most {SPEC}")
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    if deepest > NESTING:
        raise InputError(
            f"{role} '{text[:40]}...' is nested too deeply: at most {NESTING} levels of brackets are allowed"
        )


def parsed(text: str, known: Iterable[str], role: str) -> ast.expr:
    """Return a spec's syntax tree, whose depth is bounded.

    Raises:
        InputError: the text is no Python expression (the message suggests the nearest known name), or is too long or
            too deeply nested.
    """
    check_text(text, role)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "1if" and the like: an error below says that it is no spec
            node = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError):  # ValueError: a null byte
        raise InputError(
            f"{role} '{text}' is not a spec: write Name or Name(argument=value); {nearest(text, known)}"
        ) from None
    except (RecursionError, MemoryError):  # the parser raises these for thousands of minus signs
        node = None
    if node is None or _depth(node) > _DEEPEST:
        raise InputError(f"{role} '{text[:40]}...' is nested too deeply, or joins too many parts")
    return node


_DEEPEST = 4 * NESTING
"""Maximum depth of a spec's syntax tree."""


def _depth(node: ast.AST) -> int:
    level, deep = [node], 0
    while level:
        level, deep = [child for one in level for child in ast.iter_child_nodes(one)], deep + 1
    return deep


def _called(node: ast.expr, known: Iterable[str], role: str) -> tuple[str, ast.Call]:
    """Return the known name that a spec calls, and the call itself."""
    call = node if isinstance(node, ast.Call) else ast.Call(func=node, args=[], keywords=[])
    if ast.unparse(node).lower() == "none" and (absent := f"No{role.capitalize()}") in known:
        raise InputError(f"there is no {role} '{ast.unparse(node)}'; did you mean '{absent}'?")
    if not isinstance(call.func, ast.Name):
        raise InputError(f"{role} '{ast.unparse(node)}' is not a spec: write Name or Name(argument=value)")
    if call.func.id not in known:
        raise InputError(f"there is no {role} '{call.func.id}'; {nearest(call.func.id, known)}")
    return call.func.id, call


def _build(node: ast.expr, known: Mapping[str, Any], role: str, nested: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        left, right = (_build(side, known, role, nested) for side in (node.left, node.right))
        if not hasattr(left, "__or__"):
            raise InputError(f"'{ast.unparse(node)}': {role} specs cannot be joined by |; give each one separately")
        return left | right
    name, call = _called(node, known, role)
    args = [_value(a, name, role, nested) for a in call.args]
    kwargs = {k.arg or "**": _value(k.value, name, role, nested) for k in call.keywords}
    return construct(known[name], name, args, kwargs, role)


def construct(make: Any, name: str, args: list[Any], kwargs: dict[str, Any], role: str) -> Any:
    """Return ``make(*args, **kwargs)``; raise `InputError` for a wrong argument, with the nearest valid one."""
    parameters = inspect.signature(make).parameters
    free = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key in kwargs:
        if key not in parameters and not free:
            known = list(parameters)
            hint = nearest(key, known) if known else "it takes none"
            raise InputError(f"{role} '{name}' has no argument '{key}'; {hint}")
    try:
        bound = inspect.signature(make).bind(*args, **kwargs)
        for key, value in bound.arguments.items():
            if parameters[key].annotation not in ("Any", Any):
                _check_kind(key, value, parameters[key].default)
        if _is_ours(make):
            _check_arguments(make, bound.arguments)
        return make(*args, **kwargs)
    except InputError as error:
        raise InputError(f"{role} '{name}': {error}") from None
    except TypeError as error:
        raise InputError(f"{role} '{name}': {error}") from error


def _is_ours(make: Any) -> bool:
    return getattr(make, "__module__", "").startswith("medpfl.")


def check_part(part: Any) -> None:
    """Raise `InputError` if one of MedPFL's parts was built with a value of the wrong type, or an unreasonable number.

    This is for objects given in a Python call; `construct` checks specs.
    """
    if _is_ours(type(part)) and dataclasses.is_dataclass(part):
        own = {f.name: getattr(part, f.name) for f in dataclasses.fields(part) if f.repr and f.init}
        try:
            _check_arguments(type(part), own)
        except InputError as error:
            raise InputError(f"'{type(part).__name__}': {error}") from None
        for value in own.values():
            check_part(value)


def _check_arguments(make: Any, given: Mapping[str, Any]) -> None:
    """Check each value against the part's type annotation, and each number against the bounds for all parts."""
    try:
        hints = typing.get_type_hints(make) if isinstance(make, type) else {}
    except NameError:  # a type that only type checkers import
        hints = {}
    for key, value in given.items():
        if key in hints and not _is_of(value, hints[key]):
            raise InputError(f"{key} is {value!r}: it must be {_word(hints[key])}")
        check_numbers(key, value)


def _is_of(value: Any, hint: Any) -> bool:
    """Return True if a value has a type; only numbers, texts, tuples and parts are checked, others pass."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_is_of(value, one) for one in inner)
    if origin is typing.Literal:
        return type(value) in {type(one) for one in inner}  # the part itself checks the value
    if origin is tuple:
        return isinstance(value, tuple | list) and all(_is_of(one, inner[0]) for one in value)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    plain = hint in (str, bool, type(None)) or (isinstance(hint, type) and issubclass(hint, Part))
    return isinstance(value, hint) if plain else True


def _word(hint: Any) -> str:
    """Return a type in plain words."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_word(one) for one in inner)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(repr, inner))
    if origin is tuple:
        return f"a tuple in which each element is {_word(inner[0])}"
    words = {bool: "True or False", int: "a whole number", float: "a number", str: "a text", type(None): "None"}
    return words.get(hint, f"a {getattr(hint, '__name__', hint)}")


def _check_kind(key: str, value: Any, default: Any) -> None:
    """Check that a value has its default's type: a number for a number, a text for a text."""
    kinds: tuple[type, ...] = (int, float) if isinstance(default, float) else (type(default),)
    if isinstance(default, bool | int | float | str) and (
        not isinstance(value, kinds) or isinstance(value, bool) is not isinstance(default, bool)
    ):
        word = {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}[type(default)]
        raise InputError(f"{key} is {value!r}: it must be {word}, such as {default!r}")


def _value(node: ast.expr, name: str, role: str, nested: Mapping[str, Any]) -> Any:
    try:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            return ast.literal_eval(node.left) / ast.literal_eval(node.right)
        return ast.literal_eval(node)
    # TypeError: a list as a key, or a text divided; OverflowError: a ratio of numbers of hundreds of digits
    except (ValueError, TypeError, ZeroDivisionError, OverflowError):
        pass
    if isinstance(node, ast.Call | ast.Name) and nested:
        return _build(node, nested, f"part of {role} {name}", nested)
    raise InputError(f"{role} '{name}': '{ast.unparse(node)}' is not a literal (a number, a 'text', True, None, ...)")


def expand(text: str) -> list[str]:
    """Return the specs of a sweep, expanding every ``geom(first, last, n)`` and ``lin(first, last, n)`` in it.

    >>> expand("TopK(keep=lin(0.2, 0.4, 3))")
    ['TopK(keep=0.2)', 'TopK(keep=0.3)', 'TopK(keep=0.4)']
    >>> expand("LaplaceNoise(scale=geom(0.001, 0.1, 3))")
    ['LaplaceNoise(scale=0.001)', 'LaplaceNoise(scale=0.01)', 'LaplaceNoise(scale=0.1)']
    >>> expand("TopK(keep=geom(0.1, 0.5, 3))")  # between the ends, four digits
    ['TopK(keep=0.1)', 'TopK(keep=0.2236)', 'TopK(keep=0.5)']
    >>> expand("DLG")
    ['DLG']
    """
    check_text(text, "spec")
    between = _SWEEP.split(text)[::3]
    points = [_points(kind, arguments) for kind, arguments in _SWEEP.findall(text)]
    if (count := math.prod(map(len, points))) > SWEEP:
        raise InputError(f"'{text}' expands to {count} specs: a sweep may have at most {SWEEP}")
    return [
        "".join(itertools.chain.from_iterable(itertools.zip_longest(between, values, fillvalue="")))
        for values in itertools.product(*points)
    ]


def with_argument(text: str, name: str, value: Any) -> str:
    """Return a part's spec with a keyword argument set to another value.

    >>> with_argument("GradInv(steps=2000, tv=1e-06)", "steps", 150), with_argument("DLG", "steps", 3)
    ('GradInv(tv=1e-06, steps=150)', 'DLG(steps=3)')
    """
    node = ast.parse(text.strip(), mode="eval").body
    call = node if isinstance(node, ast.Call) else ast.Call(func=node, args=[], keywords=[])
    call.keywords = [k for k in call.keywords if k.arg != name] + [ast.keyword(name, ast.Constant(value))]
    return ast.unparse(call)


_SWEEP = re.compile(r"\b(geom|lin)\(([^()]*)\)")


def _points(kind: str, arguments: str) -> list[str]:
    try:
        first, last, count = (ast.literal_eval(a.strip()) for a in arguments.split(","))
        if type(count) is not int or not 1 <= count <= SWEEP:
            raise ValueError
        ratios = [i / max(count - 1, 1) for i in range(count)]
        if kind == "lin":
            values = [first * (1 - r) + last * r for r in ratios]
        else:
            values = [math.exp(math.log(first) + (math.log(last) - math.log(first)) * r) for r in ratios]
            values[1:-1] = [v if math.isclose(v, round(v)) else float(f"{v:.4g}") for v in values[1:-1]]
        if not all(map(math.isfinite, values)):
            raise ValueError
    except (ValueError, TypeError, SyntaxError, OverflowError):
        raise InputError(
            f"'{kind}({arguments})' is not a sweep: write lin(first, last, count), or geom(first, last, count) "
            f"with first and last above 0; the count is a whole number from 1 to {SWEEP}"
        ) from None
    return [f"{v:.12g}" for v in values]
