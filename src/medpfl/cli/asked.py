"""The words of a command as a typed experiment."""

from __future__ import annotations

from inspect import signature
from typing import TypeVar

from jsonargparse import Namespace

from medpfl.cli.config_files import files_of
from medpfl.cli.words import option_of, spelled
from medpfl.core.errors import InputError
from medpfl.core.experiments.options import OptionError, Options, options_in
from medpfl.inputs.spelling import check_words

__all__ = ["experiment_from", "spelled_right"]

T = TypeVar("T", bound=Options)


def experiment_from(kind: type[T], given: Namespace, words: list[str]) -> T:
    """Return the options as a typed experiment; errors name the option as on the command line."""
    asked = given.as_dict()
    known = {name: name.rstrip("_") for name in options_in(kind)}
    options = {name: asked[said] for name, said in known.items() if said in asked}
    if "progress" in known:
        options["progress"] = not given.quiet
    try:
        return kind.of(**options)
    except OptionError as error:
        option = option_of(error.name)
        there = any(word.partition("=")[0] == option for word in spelled(words))
        files = [] if there else files_of(words)
        where = f"in {' or '.join(map(repr, files))}: " if files else ""
        raise InputError(f"{where}{option} is {error.problem}") from None


def spelled_right(kind: type[T], given: Namespace, words: list[str]) -> T:
    """Return the typed experiment after checking that its parts, grants and paths exist."""
    made = experiment_from(kind, given, words)
    named = signature(check_words).parameters
    check_words(**{name: value for name, value in made.options().items() if name in named})
    return made
