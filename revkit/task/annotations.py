"""What a type annotation comes to: the plain type in it, and the labels of a class output. Pure."""

from __future__ import annotations

import enum
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

__all__ = ["allows_none", "is_type", "labels_of", "list_item", "one_type", "scalar_of", "shown"]


def one_type(tp: Any) -> Any:
    """The other type where a union is of one and None (``int`` of ``int | None``), else ``tp``."""
    if get_origin(tp) in (Union, types.UnionType):
        inner = [t for t in get_args(tp) if t is not type(None)]
        if len(inner) == 1:
            return inner[0]
    return tp


def _bare(tp: Any) -> Any:
    """A type without what is said of it: constraints, and names that stand for it."""
    if get_origin(tp) is Annotated:
        return get_args(tp)[0]
    if hasattr(tp, "__supertype__"):  # NewType
        return tp.__supertype__
    alias = get_origin(tp) or tp
    if type(alias).__name__ == "TypeAliasType":  # `type X = …`, and typing_extensions'
        value = alias.__value__
        if alias is tp or not getattr(value, "__parameters__", ()):
            return value
        given = dict(zip(alias.__type_params__, get_args(tp), strict=True))
        return value[tuple(given[parameter] for parameter in value.__parameters__)]
    if isinstance(tp, type) and getattr(tp, "__pydantic_root_model__", False):
        return tp.model_fields["root"].annotation  # type: ignore[attr-defined]
    return tp


def scalar_of(tp: Any) -> Any:
    """The type that decides how values are written into a column.

    >>> import pydantic
    >>> scalar_of(Annotated[int, pydantic.Field(ge=1, le=5)] | None)
    <class 'int'>
    """
    inner = one_type(_bare(tp))
    return tp if inner is tp else scalar_of(inner)


def list_item(tp: Any) -> Any:
    """The type of a list's items, without what is said of it; None where ``tp`` is no such list."""
    if get_origin(tp) is not list or not get_args(tp):
        return None
    item = get_args(tp)[0]
    while (inner := _bare(item)) is not item:
        item = inner
    return item


def labels_of(tp: Any) -> tuple[Any, ...] | None:
    """The labels that a type names, as values; None where it names none."""
    if tp is Literal:
        return ()
    if get_origin(tp) is Literal:  # which has none twice
        return tuple(x.value if isinstance(x, enum.Enum) else x for x in get_args(tp))
    if isinstance(tp, type) and issubclass(tp, enum.Enum):
        return tuple(member.value for member in tp)
    return None


def allows_none(tp: Any) -> bool:
    """Whether None is one of a type's values."""
    inner = _bare(tp)
    if inner is not tp:
        return allows_none(inner)
    if get_origin(tp) in (Union, types.UnionType):
        return any(map(allows_none, get_args(tp)))
    return tp is None or tp is type(None) or None in (labels_of(tp) or ())


def shown(tp: Any) -> str:
    """A type as a person writes it.

    >>> shown(int), shown(list[int])
    ('int', 'list[int]')
    """
    return tp.__name__ if isinstance(tp, type) and get_origin(tp) is None else str(tp)


def is_type(x: Any) -> bool:
    """Whether it is a type, or stands for one, rather than a value."""
    return (
        isinstance(x, type | types.UnionType)
        or get_origin(x) is not None
        or hasattr(x, "__supertype__")
        or type(x).__name__ == "TypeAliasType"
    )
