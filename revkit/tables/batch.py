"""The ways to give ``revkit.parallel_map`` its rows: what a batch is, is decided here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..errors import UsageError, nearest, one_line

__all__ = ["batch"]


def batch(items: Any, batch_key: str | None = None) -> list[Any]:
    """The rows of a batch, as a list of mappings or of single values.

    The first of these that applies:

    1. ``batch_key`` names the list in a mapping; the mapping's other entries are left alone.
    2. A mapping in which at least one value is a list (or a tuple, range, array or Series) has a
       row for each place in its lists, which must be equally long; every other value is the same
       in all rows. Text is one value.
    3. A mapping without a list is one row.
    4. Anything else that can be iterated has a row for each of its items.

    Raises:
        UsageError: none of these applies; the lists differ in length; or there is no such key.

    >>> batch({"review": ["good", "bad"], "language": "en"})
    [{'review': 'good', 'language': 'en'}, {'review': 'bad', 'language': 'en'}]
    >>> batch({"id": 7, "reviews": ["good", "bad"]}, batch_key="reviews")
    ['good', 'bad']
    """
    if batch_key is not None:
        return _under(batch_key, items)
    if isinstance(items, Mapping):
        return _columns(items)
    if isinstance(items, str | bytes | bytearray) or not isinstance(items, Iterable):
        raise UsageError(
            "items= takes a list of mappings, a list of values, a mapping of lists, a DataFrame or "
            f"a Series; got {type(items).__name__}"
        )
    return list(items)


def _under(key: Any, items: Any) -> list[Any]:
    if not isinstance(items, Mapping):
        raise UsageError(
            f"batch_key={key!r} picks a list out of a mapping, and items= is a "
            f"{type(items).__name__}; leave batch_key= out"
        )
    if key not in items:
        raise UsageError(f"items= has no key {key!r}; {nearest(str(key), map(str, items))}")
    if not _is_list(items[key]):
        raise UsageError(
            f"batch_key={key!r} names a {type(items[key]).__name__}, and the rows stand in a list"
        )
    return list(items[key])


def _columns(items: Mapping[Any, Any]) -> list[dict[Any, Any]]:
    if not items:
        raise UsageError("items= is an empty mapping: it says neither which inputs nor which rows")
    columns = {name: list(value) for name, value in items.items() if _is_list(value)}
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        given = ", ".join(f'"{one_line(str(name))}" has {n}' for name, n in lengths.items())
        raise UsageError(
            f"the lists of items= differ in length: {given}; give each a value for every row, or "
            "one value outside a list for all rows"
        )
    for name, value in items.items():
        if name not in columns and isinstance(value, Iterable) and hasattr(value, "__next__"):
            raise UsageError(
                f'items= has an iterator under "{one_line(str(name))}", whose length is not '
                "known; make a list of it"
            )
    return [
        {name: columns[name][row] if name in columns else value for name, value in items.items()}
        for row in range(next(iter(lengths.values()), 1))
    ]


def _is_list(value: Any) -> bool:
    """Whether a value holds one for each row: a sequence other than text, or an array."""
    if isinstance(value, Sequence):
        return not isinstance(value, str | bytes | bytearray)
    return hasattr(value, "__array__") and getattr(value, "ndim", 1) == 1
