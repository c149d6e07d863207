"""Safe reading of YAML files: only small regular files with plain values and limited nesting are accepted.

Thus no file can make the program hang or fill its memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medpfl.core.atomic_files import oddity_of
from medpfl.core.errors import InputError
from medpfl.core.experiments.limits import CONFIG_BYTES, NESTING, YAML_NODES

__all__ = ["read_text", "read_yaml"]


def read_text(path: str | Path, most: int = CONFIG_BYTES) -> str:
    """Return the text of a small file.

    Raises:
        InputError: it is no regular file (a pipe or device could block forever), has more than `most` bytes, or is not
            in UTF-8.
    """
    path = Path(path)
    try:
        if why := oddity_of(path):
            raise InputError(f"in '{path}': {why}")
        if (size := path.stat().st_size) > most:
            raise InputError(f"in '{path}': the file has {size} bytes, at most {most} are read")
        return path.read_bytes().decode("utf-8-sig")
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path, or no UTF-8
        if isinstance(error, InputError):
            raise
        why = (
            "it cannot be read as text, because it is not in UTF-8"
            if isinstance(error, UnicodeDecodeError)
            else _reason(error)
        )
        raise InputError(f"in '{path}': {why}") from None


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).lower()


def read_yaml(path: str | Path) -> Any:
    """Return a YAML file's content as lists, dictionaries, texts and numbers.

    Raises:
        InputError: `read_text` fails, or the file is not YAML, contains anchors or aliases (which can expand a few
            lines to billions) or tags (which could build objects), or has too many levels or nodes.
    """
    import yaml

    text = read_text(path)
    try:
        _check_events(yaml.parse(text, Loader=yaml.SafeLoader), path)
        return yaml.safe_load(text)
    except InputError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:  # ValueError: the date 2024-99-99
        raise InputError(f"in '{path}': it cannot be read as YAML: {str(error).partition(chr(10))[0]}") from None


def _check_events(events: Any, path: str | Path) -> None:
    import yaml

    depth = 0
    for nodes, event in enumerate(events):
        opens = isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent)
        depth += opens - isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent)
        if getattr(event, "anchor", None) is not None:  # an alias has one too
            raise InputError(f"in '{path}': it uses an anchor or an alias ('&name', '*name'): write out each value")
        if getattr(event, "tag", None) is not None:
            raise InputError(f"in '{path}': it uses the tag {event.tag}: write plain texts, numbers and lists")
        if depth > NESTING:
            raise InputError(f"in '{path}': it is nested too deeply: at most {NESTING} levels are read")
        if nodes > YAML_NODES:
            raise InputError(f"in '{path}': it holds more than {YAML_NODES} values")
