"""Keyword arguments of the public functions: which ones each has, and the options they become."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import UsageError, nearest
from ..runtime.options import PARAMETERS, RunOptions
from ..task.kinds import ModelTask

if TYPE_CHECKING:
    from pydantic import BaseModel

__all__ = ["TaskLike", "checked", "shows_options"]

TaskLike = ModelTask | str | Callable[..., Any] | type["BaseModel"]


_F = TypeVar("_F", bound=Callable[..., Any])


def shows_options(*leave_out: str) -> Callable[[_F], _F]:
    """Give a function all options as keyword arguments, but for some: a notebook's Shift+Tab."""

    def decorate(function: _F) -> _F:
        own = inspect.signature(function)
        named = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
        options = [option for name, option in PARAMETERS.items() if name not in leave_out]
        function.__signature__ = own.replace(  # type: ignore[attr-defined]
            parameters=[*named, *options]
        )
        return function

    return decorate


def checked(
    function: Callable[..., Any], given: Mapping[str, Any], *, hidden: str | None = None
) -> RunOptions:
    """The options that a public function was called with.

    Args:
        function: decorated with :func:`shows_options`.
        hidden: an option that it does not show, and that is refused later, in better words.

    Raises:
        TypeError: the function has no such argument; the message has the nearest name.
        UsageError: an option is impossible.
    """
    name = function.__name__
    known = [option for option in inspect.signature(function).parameters if option in PARAMETERS]
    if "loop" in given and "loop" not in known and name.startswith("a"):
        raise UsageError(f"loop= is for {name[1:]}; {name} runs on the loop that awaits it")
    for option in given:
        if option not in known and option != hidden:
            raise TypeError(f"{name} has no argument {option}=; {nearest(option, known)}")
    return RunOptions().replace(**{"inplace": "inplace" in known, **given})
