"""Functions whose arguments are a dataclass's fields, so that several functions share options stated once."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import ParamSpec, TypeVar

__all__ = ["taking"]

P = ParamSpec("P")
Case = TypeVar("Case")
Result = TypeVar("Result")


def taking(kind: Callable[P, Case]) -> Callable[[Callable[[Case], Result]], Callable[P, Result]]:
    """Turn a function of one object into a function of the arguments that make this object (decorator).

    Args:
        kind: the object's class. Its arguments and defaults are those of the new function, also for `help`, editors
            and type checkers.

    Raises:
        TypeError: when the new function is called, if the arguments are not those of the class.
    """
    taken = signature(kind)

    def decorated(function: Callable[[Case], Result]) -> Callable[P, Result]:
        @wraps(function)
        def called(*args: P.args, **kwargs: P.kwargs) -> Result:
            try:
                taken.bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{function.__name__}() {error}") from None
            return function(kind(*args, **kwargs))

        shown = taken.replace(return_annotation=signature(function).return_annotation)
        called.__dict__["__signature__"] = shown
        called.__annotations__ = {name: one.annotation for name, one in shown.parameters.items()}
        called.__annotations__["return"] = shown.return_annotation
        return called

    return decorated
