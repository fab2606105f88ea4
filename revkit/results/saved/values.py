"""The values of a column, there and back the same.

pandas' own way through Parquet changes some: texts beside gaps, mappings with different keys,
labels that are no text, or that no row has. Those go with a note of how to read them back.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

__all__ = ["UNFIT", "Note", "decoded", "encoded", "same", "through_parquet"]

#: How to read a column back, as plain JSON.
Note = dict[str, Any]
#: What a missing value may be where a column holds objects; Arrow has one for all.
_NULLS: dict[str, Any] = {"None": None, "nan": float("nan"), "<NA>": pd.NA, "NaT": pd.NaT}
#: What values that Arrow or JSON cannot hold raise on the way.
UNFIT = (ValueError, TypeError, ArithmeticError, RecursionError, pa.ArrowException)


def same(some: Sequence[Any], others: Sequence[Any]) -> bool:
    """Whether values are the same in type and kind of gap as well: 1 is neither 1.0 nor True."""
    return list(map(repr, some)) == list(map(repr, others))


def encoded(column: pd.Series) -> tuple[Any, Note | None]:
    """A column as it goes into the file, and a note of what is needed to read it back.

    No note: pandas' own way through Parquet keeps it, or all that can be kept of it. Objects go
    as Arrow takes them where they come back the same, else as JSON, where they do so.
    """
    dtype = column.dtype
    note: Note = {}
    if isinstance(dtype, pd.ArrowDtype):
        return column.array, {"as": "arrow dtype"}
    if isinstance(dtype, pd.CategoricalDtype):
        labels = dtype.categories.tolist()
        try:
            if not same(json.loads(json.dumps(labels)), labels):
                return column.array, None
        except UNFIT:
            return column.array, None
        note = {"labels": labels, "ordered": bool(dtype.ordered)}
        if all(isinstance(label, str) for label in labels):
            return column.array, note | {"as": "arrow"}
    elif not pd.api.types.is_object_dtype(dtype):
        return column.array, None
    missing = column.isna().to_numpy()
    values = column.tolist()
    nulls = {repr(value) for value, gone in zip(values, missing, strict=True) if gone} or {"None"}
    if len(nulls) == 1 and nulls <= _NULLS.keys():
        note["null"] = nulls.pop()
        values = [None if gone else value for value, gone in zip(values, missing, strict=True)]
    for way in ("arrow", "json"):
        try:
            written = values if way == "arrow" else _to_texts(values)
            read = through_parquet(written)
            if same(read if way == "arrow" else _from_texts(read), values):
                return _objects(written, column.index), note | {"as": way}
        except UNFIT:
            continue
    return column.array, None


def through_parquet(values: Any) -> list[Any]:
    """What becomes of values: gaps in mappings are filled, empty ones are refused, and so on."""
    file = pa.BufferOutputStream()
    pq.write_table(pa.table({"values": pa.array(values, from_pandas=True)}), file)
    read: list[Any] = pq.read_table(pa.BufferReader(file.getvalue()))["values"].to_pylist()
    return read


def _to_texts(values: list[Any]) -> list[str | None]:
    return [None if value is None else json.dumps(value) for value in values]


def _from_texts(texts: list[str | None]) -> list[Any]:
    return [None if text is None else json.loads(text) for text in texts]


def _objects(values: list[Any], index: pd.Index) -> pd.Series:
    """As they are: of a bare array, pandas would turn texts into strings."""
    return pd.Series(np.fromiter(values, dtype=object), index=index, dtype=object)


def decoded(column: pa.ChunkedArray, note: Note, index: pd.Index) -> Any:
    """The values of a column with a note: what :func:`encoded` was given."""
    if note["as"] == "arrow dtype":
        return pd.array(column, dtype=pd.ArrowDtype(column.type))
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    values = column.to_pylist()
    if note["as"] == "json":
        values = _from_texts(values)
    if "labels" in note:
        return pd.Categorical(values, note["labels"], ordered=note["ordered"])
    if note.get("null", "None") != "None":
        null = _NULLS[note["null"]]
        values = [null if value is None else value for value in values]
    return _objects(values, index)
