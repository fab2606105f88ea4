"""How a value is written into a prompt: whole, and as a person would write it. Pure.

Text, numbers, dates and whatever else has a text of its own are written as ``str`` does. What
holds other values (lists, mappings, sets, arrays, Series, objects with fields) is written as
JSON, in which a missing value is ``null``. numpy, pandas and pyarrow are known here by the
methods of their objects alone.
"""

from __future__ import annotations

import enum
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence, Set, ValuesView
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

from ..errors import UsageError, one_line
from .objects import fields_of

__all__ = ["plain", "text_of", "to_json"]

_PLAIN = frozenset({int, float, bool, type(None)})

#: How other containers give their values: those of pyarrow, polars, torch, array, pydantic's roots.
_WAYS = ("to_pylist", "to_dicts", "tolist", "to_list", "model_dump")

#: What ``str`` makes of an object whose class does not say how it is written.
_ADDRESS = re.compile(r"<.* at 0x[0-9a-fA-F]+>", re.DOTALL)

#: A decimal is written in digits up to so many places before or after its point.
_PLACES = 40


def text_of(value: Any, name: str) -> str:
    """The text that stands in the prompt for an input's value.

    Args:
        name: the input's, for the errors.

    Raises:
        UsageError: there is no such text: bytes that are no UTF-8, an object whose class does not
            say how it is written, a list that holds itself.

    >>> text_of(["turn-0", None, 2.5], "turns")
    '["turn-0", null, 2.5]'
    >>> text_of({"price": Decimal("12.50")}, "offer"), text_of(Decimal("12.50"), "price")
    ('{"price": "12.50"}', '12.50')
    """
    kind = type(value)
    if kind is str:  # nearly always
        return value  # type: ignore[no-any-return]
    if kind in _PLAIN:
        return str(value)
    with _named(f'the input "{one_line(name)}"', value):
        return _text(value)


def to_json(value: Any, what: str) -> str:
    """A value as JSON in one line; ``what`` it is, for the errors, which are those of a cell."""
    with _named(what, value):
        return _json(plain(value))


def _json(made: Any) -> str:
    return json.dumps(made, ensure_ascii=False, allow_nan=False)


class _NoText(Exception):
    """A value cannot be written; the message goes on after its name."""


@contextmanager
def _named(what: str, value: Any) -> Iterator[None]:
    """Say of which value an error tells."""
    try:
        yield
    except RecursionError:
        why = f"is a {type(value).__name__} that holds itself, or is nested too deeply"
    except _NoText as error:
        why = str(error)
    else:
        return
    raise UsageError(f"{what} {why}; nothing was sent")


def _text(value: Any) -> str:
    if isinstance(value, Decimal):
        return _digits(value)
    if isinstance(value, enum.Flag) or _says_itself(type(value)):
        return str(value)
    if isinstance(value, enum.Enum):
        return _text(value.value)
    if hasattr(value, "as_py"):  # pyarrow's scalars
        return _text(value.as_py())
    made = plain(value)
    if isinstance(made, str):
        return made
    if isinstance(made, dict | list):
        return _json(made)
    return str(value)  # a number of numpy's, or of a class of the user's own


def plain(value: Any) -> Any:
    """A value as JSON has it: str, int, float, bool, None, and lists and dicts of these.

    >>> plain({2: float("nan"), "point": (1, 2.5)})
    {'2': None, 'point': [1, 2.5]}
    """
    kind = type(value)
    if kind is str or kind is int or kind is bool or value is None:
        return value
    if isinstance(value, float):  # numpy's float64 is one
        return _finite(float(value))
    if isinstance(value, bytes | bytearray | memoryview):
        return _decoded(bytes(value))
    if isinstance(value, enum.Enum) and not isinstance(value, enum.Flag):
        return plain(value.value)
    if isinstance(value, str | enum.Flag) or _says_itself(kind):
        return str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, Decimal):
        return _number(value)
    if kind.__name__ in ("NAType", "NaTType"):
        return None
    return _of_many(value)


def _of_many(value: Any) -> Any:
    """A value that may hold others."""
    if hasattr(value, "as_py"):
        return plain(value.as_py())
    fields = value if isinstance(value, Mapping) else fields_of(value, by_alias=True)
    if fields is not None:
        return _mapping(list(fields.items()))
    if isinstance(value, Set):
        # In one order in every process, or the same row would be asked for again.
        return sorted(map(plain, value), key=_json)
    if isinstance(value, Sequence | ValuesView) and not isinstance(value, range):
        return list(map(plain, value))
    dtype = getattr(value, "dtype", None)
    if hasattr(value, "iloc"):
        return _of_pandas(value)
    if getattr(dtype, "kind", None) is not None:
        return _of_numpy(value, dtype)
    for method in _WAYS:
        if hasattr(value, method):
            return plain(getattr(value, method)())
    text = str(value)
    if _ADDRESS.fullmatch(text):
        raise _NoText(
            f"is a {type(value).__name__}, and its class does not say how it is written: give the "
            "class a __str__, or make the column text"
        )
    return text


def _mapping(items: list[tuple[Any, Any]]) -> Any:
    """A mapping as JSON's object; as pairs where two keys have one text."""
    made = {_key(key): plain(value) for key, value in items}
    if len(made) < len(items):
        return [[plain(key), plain(value)] for key, value in items]
    return made


def _key(key: Any) -> str:
    made = plain(key)
    return made if isinstance(made, str) else _json(made)


def _of_pandas(value: Any) -> Any:
    """A frame as a list of its rows. A Series as the list of its values, by label where it has
    labels of its own.
    """
    numbered = type(value.index).__name__ == "RangeIndex"
    if not hasattr(value, "columns"):
        values = value.tolist()
        return plain(values) if numbered else _mapping(list(zip(value.index, values, strict=True)))
    frame = value if numbered else value.reset_index(allow_duplicates=True)
    rows = zip(*(frame.iloc[:, place].tolist() for place in range(frame.shape[1])), strict=True)
    return [_mapping(list(zip(frame.columns, row, strict=True))) for row in rows]


def _of_numpy(value: Any, dtype: Any) -> Any:
    """An array or scalar of numpy's, or an array that is like one."""
    if getattr(value, "ndim", 0):
        # What numpy makes of the others is not what they are: times come to integers.
        return plain(value.tolist()) if dtype.kind in "iubU" else list(map(plain, value))
    if dtype.kind == "M":
        return _moment(str(value))
    if dtype.kind == "m":
        return _duration(value)
    if dtype.kind == "f":  # of 0.1 in 32 bits, float makes 0.10000000149011612
        return _finite(float(str(value)))
    return str(value) if dtype.kind == "c" else plain(value.tolist())


def _moment(text: str) -> str | None:
    """A time of numpy's, such as ``2026-12-01T14:30:00.000000000``."""
    text = text.replace("T", " ")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return None if text == "Na " else text


def _duration(value: Any) -> str | None:
    """A span of numpy's: as Python writes it, where it has no part of a microsecond."""
    try:
        span = value.astype("timedelta64[us]")
        exact = bool(span == value)
    except TypeError:  # months, years
        return str(value)
    if value != value:
        return None
    return str(span.tolist() if exact else value)


def _finite(value: float) -> float | str | None:
    """JSON has no token for what is not finite."""
    return value if math.isfinite(value) else None if value != value else str(value)


def _number(value: Decimal) -> float | str | None:
    """A decimal as a number where that has its very digits, else as text."""
    if value.is_nan():
        return None
    digits = _digits(value)
    return float(value) if str(float(value)) == digits else digits


def _digits(value: Decimal) -> str:
    """A decimal without an exponent, unless that is a large one."""
    return format(value, "f") if abs(value.adjusted()) < _PLACES else str(value)


def _decoded(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise _NoText(
            f"is {len(value):,} bytes that are no UTF-8 text: decode the column first, such as by "
            "df[column].str.decode('latin-1')"
        ) from None


def _says_itself(kind: type) -> bool:
    """Whether a class has a ``__str__`` of its own, and is no table of another library."""
    module = getattr(kind.__str__, "__module__", None)  # None: it is C's
    return (
        module is not None
        and module.partition(".")[0] not in ("enum", "pydantic")
        and not hasattr(kind, "__array__")
    )
