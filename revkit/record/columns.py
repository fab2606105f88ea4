"""From a run's record to columns of a frame: their labels and dtypes, and writing them.

By position throughout, never by label: duplicate, multi-level and unsorted indexes are safe.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from enum import Enum
from typing import Any

import numpy as np
import pandas as pd

from ..errors import ColumnExists, UsageError
from ..scheduling.events import Status
from ..tables.dtypes import ATTRS, STRING, strings
from ..task.annotations import list_item
from ..task.kinds import CallableTask, ModelTask
from ..task.outputs import Field
from .record import Record
from .samples import AGREEMENT, TIED

__all__ = ["check_outputs", "errors", "finished", "output_columns", "result_labels", "write"]

Task = ModelTask | CallableTask


def output_columns(names: Iterable[str], prefix: str, error: Hashable | None) -> dict[str, str]:
    """Output name to column label.

    Raises:
        UsageError: two outputs, or an output and the error column, have the same label; or
            ``prefix`` or ``error`` is no name.
    """
    if not isinstance(prefix, str):
        raise UsageError(f'prefix={prefix!r}: give text to put before each name, such as "llm_"')
    if isinstance(error, bool) or not isinstance(error, Hashable):
        raise UsageError(
            f"error={error!r}: give the error column's name, or None for no such column"
        )
    names = list(names)
    columns = {name: f"{prefix}{name}" for name in names}
    labels = [*(columns[name] for name in names), *([error] if error is not None else [])]
    twice = [label for label in labels if labels.count(label) > 1]
    if twice:
        raise UsageError(
            f'two outputs would be written to the column "{twice[0]}"; use prefix= for the '
            "outputs, or error= for the error column"
        )
    return columns


def check_outputs(
    frame: pd.DataFrame,
    labels: Iterable[Hashable],
    fingerprint: str,
    *,
    inputs: Iterable[Hashable],
    overwrite: bool,
) -> None:
    """Refuse to overwrite what the same task did not write.

    Raises:
        ColumnExists: a column is there already; the message names the ways out.
        UsageError: an output would overwrite an input, or the columns have several levels.
    """
    labels = list(labels)
    if frame.columns.nlevels > 1 and not all(isinstance(label, tuple) for label in labels):
        raise UsageError(
            "the frame's columns have several levels, and an output's name has one; call "
            "parallel_map on a frame with flat columns (df.droplevel(…, axis=1)), or on a Series"
        )
    inputs = list(inputs)
    for label in labels:
        if label in inputs:
            raise UsageError(
                f'the output "{label}" would overwrite its own input; use prefix="llm_" or '
                "another output name"
            )
        if label in frame.columns and isinstance(frame[label], pd.DataFrame):
            raise UsageError(f'the frame has several columns "{label}"; rename them first')
        if overwrite or not is_foreign(frame, label, fingerprint):
            continue
        whose = "it is not this task's earlier output"
        if str(label) in frame.attrs.get(ATTRS, {}):
            whose = "another task wrote it, or this one before it was changed"
        raise ColumnExists(
            f'the column "{label}" is there already, and {whose}; pass '
            f'{"error=" if label == "error" else "prefix="}"…" for another name, '
            + ("error=None for no error column, " if label == "error" else "")
            + f'overwrite=True to replace it, or drop it first: df.drop(columns="{label}")'
        )


def result_labels(
    names: Iterable[Any],
    record: Record,
    task: Task,
    frame: pd.DataFrame,
    *,
    prefix: str,
    error: Any,
    overwrite: bool,
) -> dict[Any, str]:
    """Output name to the label of its column.

    A function names its outputs only when it returns them. One that has the name of the user's
    own column, or of the error column, goes by ``output_<name>``: nothing is lost, and nothing
    overwritten.
    """
    labels: dict[Any, str] = {}
    for name in names:
        label = wanted = f"{prefix}{name}"
        while isinstance(task, CallableTask) and (
            label == error
            or label in labels.values()
            or (not overwrite and is_foreign(frame, label, task.fingerprint))
        ):
            label = f"output_{label}"
        if isinstance(task, CallableTask) and label != wanted:
            record.warnings.append(
                f'{task.name} returned the output "{name}", which is the name of a column '
                f'already; it was written as "{label}" (prefix= gives outputs other names, '
                "overwrite=True replaces columns)"
            )
        labels[name] = label
    return labels


def is_foreign(frame: pd.DataFrame, label: Any, fingerprint: str) -> bool:
    """Whether a column is there that the task of this fingerprint did not write."""
    return label in frame.columns and frame.attrs.get(ATTRS, {}).get(str(label)) != fingerprint


def finished(values: Mapping[Any, list[Any]], fields: Mapping[Any, Field | None]) -> dict[Any, Any]:
    """Outputs as arrays: name to array. A name without a field has the type of its values."""
    return {name: _array(column, fields.get(name)) for name, column in values.items()}


def errors(record: Record) -> Any:
    """The ``error`` column: for each of the caller's rows why it has no value, NA where it has.

    Where rows are repeated, one good sample is enough; else it is the first failed one's error.
    """
    messages = [record.error(row) for row in range(record.total)]
    samples = record.samples
    if samples > 1:
        failed = [status is Status.ERROR for status in record.status]
        groups = [range(start, start + samples) for start in range(0, record.total, samples)]
        messages = [
            None
            if any(messages[row] is None for row in group)
            else messages[next((row for row in group if failed[row]), group[0])]
            for group in groups
        ]
    return pd.array(messages, dtype=STRING)


def _array(values: list[Any], field: Field | None) -> Any:
    """Values as an array of the type that the field asks for; None becomes NA.

    Values that the type cannot hold (an integer of 30 digits) make it an array of objects: no
    reply is lost over a dtype, whatever a value of a function's raises when it is looked at.
    """
    try:
        array = _typed(values, field)
        # pandas looks at objects: an array of times, say, has the type of times.
        return pd.Series(array).array if isinstance(array, np.ndarray) else array
    except BaseException:  # noqa: BLE001 - these values are as they were returned
        return pd.Series(_objects(values), dtype=object).array


def _typed(values: list[Any], field: Field | None) -> Any:
    if field is None:
        return _inferred(values)
    labels = field.labels
    if labels is not None:
        values = [v.value if isinstance(v, Enum) else v for v in values]
        if any(v is not None and v not in labels for v in values):
            raise ValueError("a validator made another value of a label")
        return pd.Categorical(values, labels, ordered=field.ordered)
    dtype = _of_type(field.scalar, _DTYPES)
    if dtype is not None:
        return pd.array(values, dtype=dtype)
    item = _of_type(list_item(field.scalar), _ARROW)
    if item is not None:
        import pyarrow as pa

        arrow = pd.ArrowDtype(pa.list_(pa.type_for_alias(item)))
        return pd.array(pa.array(values, type=arrow.pyarrow_dtype), dtype=arrow)
    return _objects(list(map(_without_members, values)))


def _without_members(value: Any) -> Any:
    """A value with the values of an Enum's members in their place, as in a column of labels."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, list | tuple):
        return type(value)(map(_without_members, value))
    if isinstance(value, dict):
        return {key: _without_members(item) for key, item in value.items()}
    return value


def _of_type(tp: Any, dtypes: Mapping[type, Any]) -> Any:
    return dtypes.get(tp) if isinstance(tp, type) else None


_DTYPES = {str: STRING, int: "Int64", float: "Float64", bool: "boolean"}
_ARROW = {str: "string", int: "int64", float: "double", bool: "bool"}


def _objects(values: list[Any]) -> Any:
    return np.fromiter(values, dtype=object, count=len(values))  # which asks no value anything


def _inferred(values: list[Any]) -> Any:
    """What a callable returned: nullable where all are of one kind, else as they are."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {bool, np.bool_}:
        return pd.array(values, dtype="boolean" if kinds else STRING)
    if kinds <= {int, np.int64, np.int32}:
        return pd.array(values, dtype="Int64")
    if kinds <= {int, float, np.float64, np.float32, np.int64, np.int32}:
        return pd.array(values, dtype="Float64")
    if kinds == {str}:
        return strings(values)
    if kinds == {list}:
        import pyarrow as pa

        arrow = pa.array(values)
        return pd.array(arrow, dtype=pd.ArrowDtype(arrow.type))
    if kinds <= {pd.Timestamp}:
        return pd.array(values)
    return _objects(values)


def write(frame: pd.DataFrame, columns: Mapping[Any, Any], fingerprint: str) -> None:
    """Put result columns into a frame, by position, and note who wrote them."""
    for label, values in columns.items():
        if pd.api.types.is_object_dtype(values):  # pandas would look at them once more
            values = pd.Series(values, index=frame.index, dtype=object)
        if label in frame.columns:
            frame.isetitem(list(frame.columns).index(label), values)
        else:
            frame.insert(frame.shape[1], label, values)
    noted = dict(frame.attrs.get(ATTRS, {}))
    for label in [f"{label}{suffix}" for label in columns for suffix in (AGREEMENT, TIED)]:
        # Of an earlier run of the same task with other samples: it says nothing of these values.
        if label in frame.columns and label not in columns and noted.get(label) == fingerprint:
            frame.pop(label)
            del noted[label]
    noted.update({str(label): fingerprint for label in columns})
    frame.attrs[ATTRS] = noted
