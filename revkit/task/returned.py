"""What a function returned for a row, as values of outputs. Pure.

A mapping, a pydantic object, a dataclass's or attrs' object and a named tuple give their fields;
anything else is the value of one output. Objects with fields inside a value become dicts, which a
file can hold. Refused is what would be a column of nothing: values that are used up when they are
read (iterators), what is open (files, connections, responses), functions and modules.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Awaitable, Mapping
from typing import Any

from ..errors import BadOutput
from .objects import fields_of, is_dumped

__all__ = ["values_of"]

_PLAIN = frozenset({str, int, float, bool, type(None)})
_ROUTINES = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, functools.partial)


def values_of(value: Any, output: str, function: str) -> Mapping[Any, Any]:
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
    if not fields:
        raise BadOutput(f"{function} returned an empty mapping: it has no outputs")
    return {
        name: item if type(item) in _PLAIN else _fit(item, function, f' as "{name}"')
        for name, item in fields.items()
    }


def _fit(value: Any, function: str, place: str = "") -> Any:
    """The value as a column holds it; ``place`` is where it stood, for the error."""
    kind: type = type(value)
    refusal = _refusal(kind)
    if refusal is None:
        return _without_objects(value)
    if inspect.iscoroutine(value):
        value.close()
    raise BadOutput(f"{function} returned {refusal[0]}{place}: {refusal[1]}")


@functools.lru_cache(maxsize=1000)  # asked for every value that a function returns
def _refusal(kind: type) -> tuple[str, str] | None:
    """Why no column holds values of a class, and what to return in their place; None: it may."""
    a_kind = f"{'an' if kind.__name__[0] in 'aeiouAEIOU' else 'a'} {kind.__name__}"
    if issubclass(kind, Awaitable):
        return "an awaitable", "pass a function that is declared with `async def`"
    if _has(kind, "__next__", "__anext__"):
        return f"{a_kind}, which is used up when it is read", "return a list of its values"
    if _has(kind, "add_done_callback"):
        return f"{a_kind}", "wait for it, and return its result()"
    if issubclass(kind, _ROUTINES):
        return f"{a_kind}", "call it, and return what it gives"
    if issubclass(kind, types.ModuleType):
        return "a module", "return a value"
    if _has(kind, "close", "aclose") and not _has(kind, "__array__", "__array_interface__"):
        return f"{a_kind}, which is open", "return what you need of it, such as its text"
    return None


def _has(kind: type, *names: str) -> bool:
    return any(hasattr(kind, name) for name in names)


def _without_objects(value: Any) -> Any:
    """The value with dicts in place of objects with fields, which no file could hold."""
    kind: type = type(value)
    if kind in _PLAIN:
        return value
    if kind is list or kind is tuple:
        # Its items are of one kind, nearly always: a list of numbers is not looked through.
        first = next((item for item in value if item is not None), None)
        return value if type(first) in _PLAIN else kind(map(_without_objects, value))
    if kind is dict:
        return {key: _without_objects(item) for key, item in value.items()}
    if is_dumped(kind):  # also a RootModel's list
        return _without_objects(value.model_dump())
    fields = fields_of(value)
    return value if fields is None else _without_objects(fields)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and value != value
