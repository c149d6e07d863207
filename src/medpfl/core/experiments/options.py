"""Options: each is a dataclass field that states default, help and bounds once. Does not import torch.

The command line, YAML files, typed experiments, and the signatures of `medpfl.audit` and the other public functions are
made from these fields. An experiment is a dataclass of options and groups; a group is a dataclass of options. On the
command line and in a YAML file, the options of all groups are listed side by side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import cache
from typing import Any, Literal, NamedTuple, TypedDict, TypeVar, Unpack, get_args, get_origin, get_type_hints

from medpfl.core.errors import InputError, nearest
from medpfl.core.experiments.limits import shortened

__all__ = ["Entry", "OptionError", "Options", "again", "check_options", "group", "option", "options_in"]

T = TypeVar("T")
Made = TypeVar("Made", bound="Options")


class OptionError(InputError):
    """An option is out of its bounds or not among its choices.

    Args:
        name: the option's name.
        problem: its value, and the values that it may have.
    """

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name} is {problem}")
        self.name, self.problem = name, problem

    def __reduce__(self) -> tuple[type[OptionError], tuple[str, ...]]:
        return type(self), (self.name, self.problem)


class _Ends(TypedDict, total=False):
    least: float | None
    above: float | None
    most: float | None
    below: float | None


class Bounds(NamedTuple):
    """Bounds of a number: at least, above, at most, below."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def hold(self, value: float) -> bool:
        """Return True if a number lies within the bounds."""
        return (
            (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        words = {"at least": self.least, "above": self.above, "at most": self.most, "below": self.below}
        return " and ".join(f"{word} {_plain(bound)}" for word, bound in words.items() if bound is not None)


def _plain(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"


class Entry(NamedTuple):
    """An option of an experiment.

    Attributes:
        group: the experiment's attribute that holds the option's group; ``""`` if the experiment itself has the option.
        default: the experiment's default, which may differ from the group's.
        kind: its type, as annotated.
        help: the help text; ``""`` if neither the command line nor a YAML file accepts the option.
        bounds: bounds of a number.
        told: True if the option identifies a run; False if no row depends on it, or if it is recorded elsewhere.
    """

    group: str
    default: Any
    kind: Any
    help: str
    bounds: Bounds
    told: bool


def option(
    default: Any,
    text: str,
    *,
    kind: Any = None,
    told: bool = True,
    shown: bool = False,
    **bounds: Unpack[_Ends],
) -> Any:
    """Return the field of an option.

    Args:
        default: the default; a list is copied for each object.
        text: the help text; ``""`` if neither the command line nor a YAML file accepts the option.
        kind: its type on the command line, if the field also accepts objects.
        told: True if the option identifies a run; False if no row depends on it, or if it is recorded elsewhere.
        shown: True if a part's spec always states it (`medpfl.core.spec.shown`).
        bounds: bounds of a number: ``least``, ``above``, ``most``, ``below``.
    """
    metadata = {"option": (text, Bounds(**bounds), kind, told), "shown": shown}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def again(owner: type, name: str, default: Any = MISSING, text: str | None = None) -> Any:
    """Return a copy of another class's option field, optionally with its own default and help text."""
    (found,) = (one for one in fields(owner) if one.name == name)
    if default is MISSING:
        default = found.default if found.default_factory is MISSING else found.default_factory()
    help_, bounds, kind, told = found.metadata["option"]
    return option(default, text or help_, **bounds._asdict(), kind=kind, told=told)


def group(default: T, *, without: tuple[str, ...] = (), texts: Mapping[str, str] | None = None) -> T:
    """Return the field of an option group.

    Args:
        default: the group with the experiment's defaults.
        without: options of the group that do not apply to this experiment, and are left out.
        texts: help texts by option, in place of the group's own.
    """
    return field(default=default, metadata={"group": (without, dict(texts or {}))})  # type: ignore[return-value]


@cache
def options_in(experiment: type) -> dict[str, Entry]:
    """Return all options of a dataclass by name, including those in its groups."""
    kinds, found = get_type_hints(experiment), {}
    for one in fields(experiment):
        if "group" in one.metadata:
            without, texts = one.metadata["group"]
            own = options_in(kinds[one.name])
            found |= {
                name: entry._replace(
                    group=one.name, default=getattr(one.default, name), help=texts.get(name, entry.help)
                )
                for name, entry in own.items()
                if name not in without
            }
        elif "option" in one.metadata:
            text, bounds, kind, told = one.metadata["option"]
            default = one.default if one.default_factory is MISSING else one.default_factory()
            found[one.name] = Entry("", default, kind or kinds[one.name], text, bounds, told)
    return found


def check_options(made: Any) -> None:
    """Raise `InputError` if a dataclass's option is out of its bounds or not among its choices."""
    for name, entry in options_in(type(made)).items():
        if not entry.group:
            _check(name, getattr(made, name), entry)


def _check(name: str, value: Any, entry: Entry) -> None:
    kinds = (entry.kind,) if get_origin(entry.kind) is Literal else get_args(entry.kind) or (entry.kind,)
    if (value is None and type(None) in kinds) or get_origin(entry.kind) is list:
        return
    if choices := [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]:
        if value not in choices:
            raise OptionError(name, f"{shortened(value)}: choose {' or '.join(map(str, choices))}")
    elif bool in kinds:
        if not isinstance(value, bool):
            raise OptionError(name, f"{shortened(value)}: it must be True or False")
    elif int in kinds:
        if not isinstance(value, int) or isinstance(value, bool) or not entry.bounds.hold(value):
            raise OptionError(name, f"{shortened(value)}: it must be a whole number, {entry.bounds}")
    elif float in kinds:
        number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
        if not math.isfinite(number) or not entry.bounds.hold(number):
            raise OptionError(name, f"{shortened(value)}: it must be a number {entry.bounds}")


@dataclass(frozen=True)
class Options:
    """Base class for options, which checks them when an object is made.

    Raises:
        InputError: an option is out of its bounds or not among its choices.
    """

    def __post_init__(self) -> None:
        check_options(self)

    @classmethod
    def of(cls: type[Made], **options: Any) -> Made:
        """Return the experiment with some options set, including options in its groups, and defaults for the rest.

        Raises:
            InputError: there is no such option, or a value is wrong.
        """
        return cls().having(**options)

    def having(self: Made, **options: Any) -> Made:
        """Return a copy with some options changed, in whichever group they are.

        Raises:
            InputError: there is no such option, or a value is wrong.
        """
        known, changed = options_in(type(self)), {}
        for name, value in options.items():
            if name not in known:
                raise InputError(f"there is no option '{name}'; {nearest(name, known)}")
            changed.setdefault(known[name].group, {})[name] = value
        own = changed.pop("", {})
        return replace(self, **own, **{key: replace(getattr(self, key), **new) for key, new in changed.items()})

    def options(self) -> dict[str, Any]:
        """Return all options by name in one flat dictionary, as in YAML and JSON."""
        known = {name: entry.group for name, entry in options_in(type(self)).items() if entry.help}
        found = {name: getattr(getattr(self, group) if group else self, name) for name, group in known.items()}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}

    def told(self) -> dict[str, Any]:
        """Return the options that identify a run."""
        known = options_in(type(self))
        return {name: value for name, value in self.options().items() if known[name].told}
