"""Objects that are made of named fields: pydantic's, dataclasses, named tuples, attrs. Pure."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

__all__ = ["fields_of", "is_dumped"]


def fields_of(value: Any, **dump: bool) -> dict[str, Any] | None:
    """The fields of an object by name, with their values as they are; None where it has none.

    Args:
        dump: of a pydantic object, arguments of its ``model_dump``, which makes its fields.

    >>> from typing import NamedTuple
    >>> class Point(NamedTuple):
    ...     x: int
    ...     y: int
    >>> fields_of(Point(1, 2)), fields_of((1, 2))
    ({'x': 1, 'y': 2}, None)
    """
    kind: type = type(value)
    if is_dumped(kind):
        dumped = value.model_dump(**dump)
        return dumped if isinstance(dumped, dict) else None
    names = _names(kind)
    return {name: getattr(value, name) for name in names} if names else None


@functools.lru_cache(maxsize=1000)  # looked up for every value
def is_dumped(kind: type) -> bool:
    """Whether a class is pydantic's: its ``model_dump`` gives its fields, or what a root has."""
    return hasattr(kind, "model_dump")


@functools.lru_cache(maxsize=1000)
def _names(kind: type) -> tuple[str, ...]:
    if dataclasses.is_dataclass(kind):
        return tuple(field.name for field in dataclasses.fields(kind))
    if issubclass(kind, tuple):
        return tuple(getattr(kind, "_fields", ()))
    return tuple(field.name for field in getattr(kind, "__attrs_attrs__", ()))
