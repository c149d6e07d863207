"""YAML files on the command line: options for ``--config``, and mappings."""

from __future__ import annotations

import re
from typing import Any

from medpfl.cli.words import option_of, spelled
from medpfl.core.errors import InputError
from medpfl.core.experiments.frontier import is_recommendation
from medpfl.core.experiments.limits import shortened
from medpfl.core.experiments.options import options_in
from medpfl.core.experiments.training import Training
from medpfl.core.experiments.yaml_files import read_yaml
from medpfl.core.user_code.stated import check_stated

__all__ = ["check_files", "files_of", "mapping_of"]


def files_of(words: list[str]) -> list[str]:
    """Return the files given with ``--config``."""
    said = spelled(words)
    return [said[i + 1] for i, word in enumerate(said) if word == "--config"]


def check_files(words: list[str]) -> None:
    """Check the files given with ``--config`` before the parser opens them.

    A user's own YAML file may name the user's code. A recommendation from ``medpfl frontier`` may come from another
    party, so it may name only MedPFL's parts. Options that the command line overrides are not checked in it.

    Raises:
        InputError: a file cannot be read safely, is no mapping, or is a recommendation that names code, a path, a URL
            or a device.
    """
    for path in files_of(words):
        found = read_yaml(path)
        if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
            raise InputError(f"in '{path}': a file for --config needs one line for each option, 'name: value'")
        if "config" in found:
            raise InputError(f"in '{path}': a file for --config cannot include another: remove 'config'")
        if is_recommendation(path):
            _check_recommendation(path, found, {word.partition("=")[0] for word in spelled(words)})


def _check_recommendation(path: str, found: dict[str, Any], said: set[str]) -> None:
    for name, value in found.items():
        if not re.fullmatch(r"[a-z_-]+", name):  # such as 'defense+', which adds to a list
            raise InputError(f"in '{path}': {shortened(name)} is not a plain option name, as a recommendation needs")
        option = option_of(name)
        if name.replace("-", "_") not in _RECOMMENDED:
            raise InputError(f"in '{path}': it sets {option}, which a recommendation must not set: give it yourself")
        if option in said or value is None:
            continue
        if name in _SPECS:
            for text in value if isinstance(value, list) else [value]:
                check_stated(text, name, path, option)
        elif name in _PLACES or (name == "device" and value != "cpu"):
            raise InputError(
                f"in '{path}': it sets {option} {shortened(value)}, but a recommendation must name no path or device: "
                f"give {option if name != 'data' else 'the images'} yourself if you trust that file"
            )


_RECOMMENDED = {name for name in options_in(Training) if name not in ("force", "progress")}
_SPECS = ("model", "attack", "defense", "partition")
_PLACES = ("data", "weights", "validation", "test", "truth", "out")


def mapping_of(path: str) -> dict[str, str]:
    """Return a YAML file's mapping of names to texts.

    Raises:
        InputError: there is no such file, or it holds something else.
    """
    found = read_yaml(path)
    if not isinstance(found, dict) or not all(isinstance(k, str) and isinstance(v, str) for k, v in found.items()):
        raise InputError(f"'{path}' is no mapping: write one line for each name, 'name: path'")
    return found
