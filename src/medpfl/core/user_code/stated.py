"""Specs read from files that another party may have written: they may name MedPFL's parts, and never run code.

Specs enter in two ways. A spec from the user (command line, Python call, the user's own YAML experiment) goes through
`medpfl.inputs.parts`, which imports the files and modules named in it. A spec from a record, a checkpoint, a run
directory or a recommendation goes only through `stated`. This function also requires the file's name, so the two cannot
be confused.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medpfl.core.errors import InputError
from medpfl.core.experiments.limits import shortened
from medpfl.core.spec import build, check_text, parsed
from medpfl.core.user_code.loading import is_place

__all__ = ["check_stated", "names_of", "stated"]

_WORD = re.compile(r"[A-Za-z0-9_]{0,40}")
"""A text that can be a part's choice, but no path or URL."""
_DEVICE = re.compile(r"(cpu|cuda|mps|xpu|meta|hpu|xla|vulkan|npu)(:?\d+)?", re.IGNORECASE)
_PLACES = ("path", "weights", "url", "device", "file", "folder", "place", "labels")
"""Names of arguments in MedPFL's parts whose value is a place."""
_PUBLISHED = re.compile(r"IMAGENET1K_V\d")
"""Weights published by torchvision, which checks their hash."""


def stated(text: Any, known: Mapping[str, Any], role: str, file: Path | str, option: str) -> Any:
    """Build the part stated in a file.

    Args:
        text: the spec in the file; it is checked before anything is built.
        known: the role's registry, and nothing else.
        role: the role's name in error messages ("defense").
        file: the file that contains the spec.
        option: the option by which the user can give the part instead ("--defense").

    Raises:
        InputError: the text is no spec of a MedPFL part; it names code, a path, a URL or a device; or an argument is
            unknown or out of bounds.
    """
    check_stated(text, role, file, option)
    try:
        return build(text, known, role)
    except InputError as error:
        raise InputError(f"in '{file}': {error}; give {option} yourself") from None
    except Exception as error:  # a part may reject a value with another error; a bad file is no bug of MedPFL
        raise InputError(f"in '{file}': {role} '{text}' cannot be built: {error}; give {option} yourself") from None


def check_stated(text: Any, role: str, file: Path | str, option: str) -> None:
    """Raise `InputError` if a spec in a file could name code, a path, a URL or a device."""
    if not isinstance(text, str):
        raise InputError(f"in '{file}': {role} is {shortened(text)}: it must be a text")
    trust = f"give {option} yourself if you trust that file"
    try:
        check_text(text, role)
        if is_place(text) or text.partition("(")[0].strip().endswith(".py"):
            raise InputError(f"{role} {shortened(text)} names code: a file may name parts of MedPFL only")
        _check_node(parsed(text, (), role), role)
    except InputError as error:
        raise InputError(f"in '{file}': {error}; {trust}") from None


def names_of(text: str, role: str) -> list[str]:
    """Return the names of the parts in a spec that passed `check_stated`."""
    nodes, found = [parsed(text, (), role)], []
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.BinOp):
            nodes += [node.right, node.left]
        else:
            found.append(ast.unparse(node.func if isinstance(node, ast.Call) else node))
    return found


def _check_node(node: ast.expr, role: str) -> None:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        _check_node(node.left, role)
        _check_node(node.right, role)
        return
    call = node if isinstance(node, ast.Call) else ast.Call(func=node, args=[], keywords=[])
    if not isinstance(call.func, ast.Name):
        raise InputError(f"{role} '{shortened(ast.unparse(node))}' is not a spec of a part of MedPFL")
    for keyword in call.keywords:
        _check_argument(keyword.value, keyword.arg or "**", call.func.id)
    for place, argument in enumerate(call.args):
        # No MedPFL part takes a place as its first argument. Later positions could be places, so treat them as such.
        _check_argument(argument, "" if place == 0 else _PLACES[0], call.func.id)


def _check_argument(node: ast.expr, key: str, name: str) -> None:
    """Check that an argument consists of numbers, choices, and tuples of these; check nested parts too."""
    if isinstance(node, ast.Call | ast.Name):
        _check_node(node, f"part of {name}")
        return
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError):
        if isinstance(node, ast.BinOp) and all(isinstance(n, ast.Constant) for n in (node.left, node.right)):
            return  # a ratio, as papers write it
        if isinstance(node, ast.Tuple | ast.List):  # of parts
            for one in node.elts:
                _check_argument(one, key, name)
            return
        raise InputError(f"{name}: '{shortened(ast.unparse(node))}' is not a literal") from None
    for text in _texts(value):
        if _PUBLISHED.fullmatch(text):
            continue
        if key in _PLACES or not _WORD.fullmatch(text) or _DEVICE.fullmatch(text):
            raise InputError(f"{name} is given {shortened(text)}, which may be a path, a URL or a device")


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, bytes):
        return [repr(value)]
    if isinstance(value, dict):
        return [text for pair in value.items() for one in pair for text in _texts(one)]
    return [text for one in value for text in _texts(one)] if isinstance(value, tuple | list | set) else []
