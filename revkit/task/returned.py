"""What a function returned for a row, as values of outputs. Pure.

A mapping, a pydantic object, a dataclass's or attrs' object and a named tuple give their fields;
anything else is the value of one output. Objects with fields and mappings inside a value become
dicts, and lists are copied: later changes of the function's own objects reach no column. Refused is
what would be a column of nothing (iterators, what is open, functions, modules), and what no column
survives: a value that contains itself, that is too deep or too large, or that cannot be shown.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Awaitable, Callable, Mapping
from numbers import Number
from typing import Any

from ..errors import BadOutput, said
from .objects import fields_of

__all__ = ["HUGE", "values_of"]

_PLAIN = frozenset({str, int, float, bool, type(None)})
_ROUTINES = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, functools.partial)
#: Python refuses to write integers of more digits than 4,300.
HUGE = 10**4000
#: A value may hold so many levels of lists and mappings, and so many of these. Arrow and JSON end
#: the process, or take minutes, at far more.
_LEVELS, _CONTAINERS = 100, 100_000
#: Classes of these packages can be shown; others are tried.
_SHOWN = frozenset({"numpy", "pandas", "datetime", "fractions", "pathlib", "uuid"})


def values_of(value: Any, output: str, function: str) -> dict[str, Any]:
    """Output name to value.

    Args:
        value: what the function returned.
        output: the name of its output where it returns one value.
        function: its name, for the errors.

    Raises:
        BadOutput: there is no value, or it cannot be in a column.

    >>> from typing import NamedTuple
    >>> class Point(NamedTuple):
    ...     x: int
    ...     y: int
    >>> values_of(Point(1, 2), "response", "f"), values_of("a", "response", "f")
    ({'x': 1, 'y': 2}, {'response': 'a'})
    """
    if value is None or type(value).__name__ in ("NAType", "NaTType") or _is_nan(value):
        raise BadOutput(
            f"{function} returned {value}: return a value, or {{{output!r}: None}} where there is "
            "none to give"
        )
    fields: Any = value if isinstance(value, Mapping) else fields_of(value)
    if fields is None:
        return {output: _fit(value, function)}
    values: dict[str, Any] = {}
    for key, item in list(fields.items()):
        name = _name(key)
        if name in values:
            raise BadOutput(
                f'{function} returned two outputs "{name}": the names of outputs are text, so give '
                "each another one"
            )
        plain = type(item) in _PLAIN and type(item) is not int
        values[name] = item if plain else _fit(item, function, f' as "{name}"')
    if not values:
        raise BadOutput(f"{function} returned an empty mapping: it has no outputs")
    return values


def _name(key: Any) -> str:
    """The name of an output: text that a column label can be."""
    name: str = str.__str__(key) if isinstance(key, str) else str(key)
    if name.isascii():
        return name
    return name.encode("utf-8", "backslashreplace").decode()  # half of a surrogate pair


def _fit(value: Any, function: str, place: str = "") -> Any:
    """The value as a column holds it; ``place`` is where it stood, for the error."""
    try:
        return _Copy().of(value)
    except _Unfit as unfit:
        what, instead = unfit.args
        raise BadOutput(f"{function} returned {what}{place}: {instead}") from None


class _Unfit(Exception):
    """No column holds a value: what it is, and what to return in its place."""


class _Copy:
    """Copies one value into dicts, lists, tuples and what cannot be looked into."""

    def __init__(self) -> None:
        self._containers = 0
        #: ids of the objects that the one at hand is in
        self._inside: set[int] = set()

    def of(self, value: Any) -> Any:
        kind: type = type(value)
        if kind in _PLAIN:
            return _written(value) if kind is int else value
        refusal = _refusal(kind)
        if refusal is not None:
            if isinstance(value, types.CoroutineType):
                value.close()
            raise _Unfit(*refusal)
        fields: Any = fields_of(value)
        if fields is None and isinstance(value, Mapping):
            fields = value
        if fields is not None:
            return self._copied(value, lambda: self._dict(fields))
        if isinstance(value, list | tuple):
            return self._copied(value, lambda: self._items(value))
        if isinstance(value, set | frozenset):
            self._copied(value, lambda: self._items([*value]))
            return value
        dumped = _dumped(value)  # a RootModel's list, an array of objects
        if dumped is not value:
            return self._copied(value, lambda: self.of(dumped))
        _show(value)
        return value

    def _copied(self, value: Any, copy: Callable[[], Any]) -> Any:
        self._containers += 1
        if id(value) in self._inside:
            raise _Unfit(
                f"{_a(type(value))} that contains itself", "return one that comes to an end"
            )
        if len(self._inside) >= _LEVELS:
            raise _Unfit(
                f"a value of more than {_LEVELS} levels", "return one that is less deep, or text"
            )
        if self._containers > _CONTAINERS:
            raise _Unfit(
                f"a value of more than {_CONTAINERS:,} lists and mappings", "return a smaller one"
            )
        self._inside.add(id(value))
        copied = copy()
        self._inside.discard(id(value))
        return copied

    def _dict(self, fields: Mapping[Any, Any]) -> dict[Any, Any]:
        copied = {}
        for key, item in list(fields.items()):
            if type(key) is not str:
                self.of(key)  # it is shown with the others
            copied[key] = self.of(item)
        return copied

    def _items(self, value: list[Any] | tuple[Any, ...]) -> Any:
        kind: type = tuple if isinstance(value, tuple) else list
        copied = kind(value)
        kinds = set(map(type, copied))
        if kinds <= _PLAIN:  # nearly always: at the speed of C
            if int in kinds:
                for item in (min(copied), max(copied)) if kinds == {int} else copied:
                    if type(item) is int:
                        _written(item)
            return copied
        return kind(map(self.of, copied))


def _written(value: int) -> int:
    if -HUGE < value < HUGE:
        return value
    raise _Unfit("an integer of more than 4,000 digits", "return a smaller one, or text")


def _dumped(value: Any) -> Any:
    """A pydantic object without fields, or an array of objects, as what it holds."""
    if hasattr(type(value), "model_dump"):
        return value.model_dump()
    dtype = getattr(type(value), "dtype", None) and value.dtype
    return value.tolist() if str(dtype) == "object" and hasattr(value, "tolist") else value


def _show(value: Any) -> None:
    """Refuse an object that cannot be shown: a frame that has one is a traceback in a notebook."""
    kind: type = type(value)
    if kind.__module__.partition(".")[0] in _SHOWN:
        return
    try:
        for look in (str, repr, hash) if isinstance(value, Number) else (str, repr):
            look(value)
        hasattr(value, "__next__")  # pandas asks that before it shows a value
    except BaseException as error:  # noqa: BLE001 - it may raise anything
        why = f"{_a(kind)} that cannot be shown ({said(error)})"
        raise _Unfit(why, "return a value that can be printed") from None


@functools.lru_cache(maxsize=1000)  # asked for every value that a function returns
def _refusal(kind: type) -> tuple[str, str] | None:
    """Why no column holds values of a class, and what to return in their place; None: it may."""
    if issubclass(kind, Awaitable):
        return "an awaitable", "pass a function that is declared with `async def`"
    if _has(kind, "__next__", "__anext__"):
        return f"{_a(kind)}, which is used up when it is read", "return a list of its values"
    if _has(kind, "add_done_callback"):
        return _a(kind), "wait for it, and return its result()"
    if issubclass(kind, _ROUTINES):
        return _a(kind), "call it, and return what it gives"
    if issubclass(kind, types.ModuleType):
        return "a module", "return a value"
    if _has(kind, "close", "aclose") and not _has(kind, "__array__", "__array_interface__"):
        return f"{_a(kind)}, which is open", "return what you need of it, such as its text"
    return None


def _a(kind: type) -> str:
    return f"{'an' if kind.__name__[0] in 'aeiouAEIOU' else 'a'} {kind.__name__}"


def _has(kind: type, *names: str) -> bool:
    return any(hasattr(kind, name) for name in names)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and value != value
