"""Observers receive the events of a run, and can do it no harm.

event      what an observer receives
stream     the events of a run, made from what happened
delivery   how they get to observers, each at its own pace
built_in   observers that write lines of JSON, or to the standard logger
otel       an observer for OpenTelemetry

This file says which observers a run gets.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

from ..errors import MissingExtra, UsageError, nearest
from .delivery import Observers, ObserverSpec, checked
from .event import Event, Observer

__all__ = [
    "Event",
    "Observer",
    "ObserverLike",
    "ObserverSpec",
    "Observers",
    "register_observer",
    "resolve",
]

#: What ``observer=`` takes.
ObserverLike = str | Observer | Sequence[str | Observer] | None

_Factory = Callable[[], Observer]


def _jsonl() -> _Factory:
    from .built_in import JsonLines

    return JsonLines


def _logging() -> _Factory:
    from .built_in import Logging

    return Logging


def _otel() -> _Factory:
    try:
        from .otel import OpenTelemetry
    except ImportError:
        raise MissingExtra(
            'observer="otel" needs the API of OpenTelemetry: pip install "revkit[otel]"'
        ) from None
    return OpenTelemetry


#: Names to what imports the factory.
_BUILT_IN: dict[str, Callable[[], _Factory]] = {
    "jsonl": _jsonl,
    "logging": _logging,
    "otel": _otel,
}
_NOOP = "noop"
_registered: dict[str, _Factory] = {}


def register_observer(name: str, factory: Callable[[], Observer]) -> None:
    """Give an observer a name, for ``parallel_map(..., observer=name)``.

    Args:
        name: registering it again replaces the factory, as when a cell is run again.
        factory: called without arguments at the start of each run; its result has a method
            ``on_event(event)``, and its ``close()``, if it has one, is called at the end.

    Raises:
        UsageError: the name is that of an observer of revkit's, or is no text; the factory cannot
            be called, or is async.

    >>> class Printer:
    ...     def on_event(self, event):
    ...         print(event.to_json())
    >>> register_observer("printer", Printer)
    """
    if not isinstance(name, str) or not name:
        raise UsageError(f"the name of an observer is a text, not {name!r}")
    if name == _NOOP or name in _BUILT_IN:
        raise UsageError(f'the observer "{name}" is revkit\'s own: take another name')
    if not callable(factory):
        raise UsageError(
            f'the factory of the observer "{name}" cannot be called: give its class, or a '
            "function that makes it"
        )
    if inspect.iscoroutinefunction(factory):
        raise UsageError(f'the factory of the observer "{name}" is async: make it a plain function')
    _registered[name] = factory


def resolve(observer: ObserverLike) -> list[ObserverSpec]:
    """The observers that a user asked for; nothing is made yet.

    Args:
        observer: a name, an object with ``on_event(event)``, or a list of those. None,
            ``"noop"`` and an empty list are no observer.

    Raises:
        UsageError: an unknown name; an object that is no observer, or is given twice.
        MissingExtra: an observer needs a package that is not installed.

    >>> [spec.name for spec in resolve(["noop", "jsonl"])]
    ['"jsonl"']
    >>> resolve("json")
    Traceback (most recent call last):
    revkit.errors.UsageError: there is no observer "json"; did you mean "jsonl"?
    """
    if observer is None:
        return []
    several: list[object] = [*observer] if isinstance(observer, list | tuple) else [observer]
    found: list[ObserverSpec] = []
    for place, one in enumerate(several):
        if any(_same(one, before) for before in several[:place]):
            raise UsageError(f"the observer {_name(one)} is in the list twice")
        if isinstance(one, str):
            found += _by_name(one)
        else:
            found.append(_given(one))
    return found


def _given(observer: object) -> ObserverSpec:
    fit = checked(observer, _name(observer))
    return ObserverSpec(_name(observer), lambda: fit, owned=False)


def _by_name(name: str) -> list[ObserverSpec]:
    if name == _NOOP:
        return []
    if name in _BUILT_IN:
        return [ObserverSpec(_name(name), _BUILT_IN[name](), owned=True)]
    if name in _registered:
        return [ObserverSpec(_name(name), _registered[name], owned=True)]
    known = [_NOOP, *_BUILT_IN, *_registered]
    raise UsageError(f'there is no observer "{name}"; {nearest(name, known)}')


def _same(one: object, other: object) -> bool:
    return one is other or (isinstance(one, str) and one == other)


def _name(observer: object) -> str:
    if isinstance(observer, str):
        return f'"{observer}"'
    return observer.__name__ if isinstance(observer, type) else type(observer).__name__
