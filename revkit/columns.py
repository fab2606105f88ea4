"""Between a frame's columns and a run's rows: binding inputs, choosing dtypes, writing back.

By position throughout, never by label: duplicate, multi-level and unsorted indexes are safe.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, get_args, get_origin

import numpy as np
import pandas as pd

from .errors import ColumnExists, MissingColumn, UsageError, nearest, one_line
from .events import Failure, Status
from .outputs import Field
from .record import Record
from .samples import AGREEMENT, TIED
from .task import CallableTask, ModelTask
from .work import Rows

__all__ = ["Binding", "bind_frame", "bind_items", "bind_series", "check_outputs", "finished"]

#: Under this key a frame's ``attrs`` note what revkit wrote: column -> fingerprint of the task.
ATTRS = "revkit"

Task = ModelTask | CallableTask

#: pandas 3 has a default string type of its own; before it, the nullable one serves.
STRING: Any = "str" if int(pd.__version__.split(".")[0]) >= 3 else "string"


class Binding:
    """The rows of a run, which of them cannot be run, and the columns that they came from.

    Attributes:
        rows: the inputs.
        refused: row to failure, for rows with a missing input.
        columns: labels of the columns that are inputs.
    """

    def __init__(self, rows: Rows, missing: Mapping[Any, Any], columns: Iterable[Hashable]):
        self.rows = rows
        self.columns = list(columns)
        self.refused: dict[int, Failure] = {}
        for name, mask in missing.items():
            for row in np.flatnonzero(mask).tolist():
                message = f'the input "{one_line(str(name))}" is missing (NA); nothing was sent'
                self.refused.setdefault(row, Failure("MissingInput", message))


def bind_frame(frame: pd.DataFrame, task: Task, on: Any) -> Binding:
    """Bind a task's inputs to a frame's columns.

    Raises:
        MissingColumn: an input has no column; the message has the nearest names.
        UsageError: ``on`` names an unknown input, or a column that occurs twice.
    """
    if isinstance(task, CallableTask):
        bound = _callable_columns(frame, on)
        checked = bound if on is not None else {}
    else:
        bound = checked = _inputs_to_columns(list(task.inputs), on)
    _check_columns(frame, bound)
    columns = [frame[column] for column in bound.values()]
    rows = Rows(list(bound), [column.tolist() for column in columns])
    missing = {name: frame[column].isna().to_numpy() for name, column in checked.items()}
    return Binding(rows, missing, bound.values())


def _callable_columns(frame: pd.DataFrame, on: Any) -> dict[Any, Hashable]:
    if on is None:
        return {column: column for column in frame.columns}
    if isinstance(on, Mapping):
        return dict(on)
    if isinstance(on, list):
        return {column: column for column in on}
    return {on: on}


def _inputs_to_columns(inputs: list[str], on: Any) -> dict[Any, Hashable]:
    if on is None:
        return {name: name for name in inputs}
    if isinstance(on, Mapping):
        unknown = [name for name in on if name not in inputs]
        if unknown:
            raise UsageError(
                f'on= binds "{unknown[0]}", which is not an input of the task; '
                f"{nearest(str(unknown[0]), inputs)}"
            )
        return {name: on.get(name, name) for name in inputs}
    if isinstance(on, list):
        if len(on) == 1:
            on = on[0]
        elif len(on) == len(inputs) and all(name in on for name in inputs):
            return {name: name for name in inputs}
        else:
            raise UsageError(
                f"on={on!r}: the task's inputs are {inputs}; bind each with a mapping, such as "
                f"on={{{inputs[0]!r}: {on[0] if on else 'column'!r}}}"
            )
    if len(inputs) > 1:
        if on in inputs:  # the one that is named binds to itself, the others by name
            return {name: name for name in inputs}
        raise UsageError(
            f"on={on!r} does not say which of the inputs {inputs} it is; "
            f"write on={{{inputs[0]!r}: {on!r}}}"
        )
    return {inputs[0]: on}


def _check_columns(frame: pd.DataFrame, bound: Mapping[Any, Hashable]) -> None:
    for name, column in bound.items():
        try:
            found = column in frame.columns
        except TypeError:
            raise UsageError(f"on= takes column labels, not {type(column).__name__}") from None
        if not found:
            close = nearest(str(column), map(str, frame.columns))
            hint = "" if name != column else f'; or bind it: on={{"{one_line(str(name))}": …}}'
            twin = next((c for c in frame.columns if str(c) == str(column)), None)
            if twin is not None:
                close = f"the label of that name is {twin!r}, no string"
                hint = f"; bind it: on={{{name!r}: {twin!r}}}"
            what = f'no column "{one_line(str(column))}"'
            if name != column:
                what += f' for the input "{one_line(str(name))}"'
            raise MissingColumn(f"there is {what}; {close.rstrip('.')}{hint}", column=column)
        if isinstance(frame[column], pd.DataFrame):
            raise UsageError(
                f'the column label "{column}" stands for {frame[column].shape[1]} columns; give '
                "each a label of its own, or the whole label where labels are tuples"
            )


def bind_series(series: pd.Series, task: Task, on: Any) -> Binding:
    """Bind a task's one input to a Series.

    Raises:
        UsageError: the task has several inputs, or ``on`` is given.
    """
    return _bind_values(series.tolist(), series.isna().to_numpy(), task, on, what="a Series")


def series_frame(series: pd.Series) -> pd.DataFrame:
    """A Series as a frame of one column; a tuple for a name stays one label."""
    frame = series.to_frame(name="item")
    name = "item" if series.name is None else series.name
    return frame.set_axis(pd.Index([name], tupleize_cols=False), axis=1)


def _bind_values(values: list[Any], missing: Any, task: Task, on: Any, *, what: str) -> Binding:
    if on is not None:
        raise UsageError(f"on= binds inputs to columns, and {what} has none; leave it out")
    name: Any = "item"
    if isinstance(task, ModelTask):
        if len(task.inputs) > 1:
            raise UsageError(
                f"{what} has one value a row, and the task needs {list(task.inputs)}; "
                "use a DataFrame or a list of mappings"
            )
        (name,) = task.inputs
    rows = Rows([name], [values], scalar=isinstance(task, CallableTask))
    return Binding(rows, {name: missing}, [])


def bind_items(items: Sequence[Any], task: Task, on: Any) -> tuple[Binding, pd.DataFrame]:
    """Bind a task's inputs to a list of mappings, or of single values.

    Returns:
        The binding, and the items as a frame of their own.

    Raises:
        MissingColumn: no item has an input's key.
        UsageError: mappings and other values are mixed.
    """
    mappings = [isinstance(item, Mapping) for item in items]
    if items and not any(mappings):
        values = list(items)
        frame = pd.DataFrame({"item": pd.Series(values, dtype=object).infer_objects()})
        mask = np.fromiter(map(_is_missing, values), bool, len(values))
        return _bind_values(values, mask, task, on, what="a list of values"), frame
    if not all(mappings):
        at = mappings.index(not mappings[0])
        raise UsageError(
            f"the items are of two kinds: item 0 is a {type(items[0]).__name__}, item {at} is a "
            f"{type(items[at]).__name__}; give mappings only, or single values only"
        )
    keys = dict.fromkeys(itertools.chain.from_iterable(items))
    frame = pd.DataFrame.from_records([dict(item) for item in items], columns=list(keys))
    if isinstance(task, CallableTask):
        bound = _callable_columns(frame, on)
        checked = bound if on is not None else {}
    else:
        bound = checked = _inputs_to_columns(list(task.inputs), on)
    if items:
        _check_columns(frame, bound)
    # The values themselves, not the frame's: pandas would turn an int beside a gap into a float.
    columns = {name: [item.get(column) for item in items] for name, column in bound.items()}
    missing = {
        name: np.fromiter(map(_is_missing, columns[name]), bool, len(items)) for name in checked
    }
    return Binding(Rows(list(columns), list(columns.values())), missing, bound.values()), frame


def _is_missing(value: Any) -> bool:
    return value is None or (pd.api.types.is_scalar(value) and bool(pd.isna(value)))


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
            label == error or (not overwrite and is_foreign(frame, label, task.fingerprint))
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
    told = [record.error(row) for row in range(record.total)]
    samples = record.samples
    if samples > 1:
        failed = [status is Status.ERROR for status in record.status]
        groups = [range(start, start + samples) for start in range(0, record.total, samples)]
        told = [
            None
            if any(told[row] is None for row in group)
            else told[next((row for row in group if failed[row]), group[0])]
            for group in groups
        ]
    return pd.array(told, dtype=STRING)


def _array(values: list[Any], field: Field | None) -> Any:
    """Values as an array of the type that the field asks for; None becomes NA.

    Values that the type cannot hold (an integer of 30 digits) make it an array of objects: no
    reply is lost over a dtype.
    """
    try:
        return _typed(values, field)
    except (ArithmeticError, TypeError, ValueError):  # Arrow's errors are kinds of these
        return _objects(values)


def _typed(values: list[Any], field: Field | None) -> Any:
    if field is None:
        return _inferred(values)
    if field.labels is not None:
        return pd.Categorical(
            [getattr(v, "value", v) for v in values], field.labels, ordered=field.ordered
        )
    tp = field.scalar
    if tp in _DTYPES:
        return pd.array(values, dtype=_DTYPES[tp])
    if get_origin(tp) is list and get_args(tp) and get_args(tp)[0] in _ARROW:
        import pyarrow as pa

        dtype = pd.ArrowDtype(pa.list_(pa.type_for_alias(_ARROW[get_args(tp)[0]])))
        return pd.array(pa.array(values, type=dtype.pyarrow_dtype), dtype=dtype)
    return _objects(values)


_DTYPES = {str: STRING, int: "Int64", float: "Float64", bool: "boolean"}
_ARROW = {str: "string", int: "int64", float: "double", bool: "bool"}


def _objects(values: list[Any]) -> Any:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def strings(values: list[Any]) -> Any:
    """Strings, in which half of a surrogate pair, that neither Arrow nor a file takes, is spelt."""
    try:
        return pd.array(values, dtype=STRING)
    except UnicodeEncodeError:
        spelt = [v and v.encode("utf-8", "backslashreplace").decode() for v in values]
        return pd.array(spelt, dtype=STRING)


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


def snapshot(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame as it is now, whatever is done to the original later.

    pandas 3 copies a column only when one of the two is written to; pandas 2 must copy at once.
    """
    return frame.copy(deep=STRING != "str")


def same_rows(frame: pd.DataFrame, before: pd.DataFrame, columns: Iterable[Hashable]) -> bool:
    """Whether a frame still has the rows, and the values in ``columns``, that it had before."""
    return (
        len(frame) == len(before)
        and frame.index.equals(before.index)
        and all(
            column in frame.columns and frame[column].equals(before[column]) for column in columns
        )
    )


def write(frame: pd.DataFrame, columns: Mapping[Any, Any], fingerprint: str) -> None:
    """Put result columns into a frame, by position, and note who wrote them."""
    for label, values in columns.items():
        if label in frame.columns:
            frame.isetitem(list(frame.columns).index(label), values)
        else:
            frame.insert(frame.shape[1], label, values)
    noted = dict(frame.attrs.get(ATTRS, {}))
    for label in [f"{label}{told}" for label in columns for told in (AGREEMENT, TIED)]:
        # Of an earlier run of the same task with other samples: it says nothing of these values.
        if label in frame.columns and label not in columns and noted.get(label) == fingerprint:
            frame.pop(label)
            del noted[label]
    noted.update({str(label): fingerprint for label in columns})
    frame.attrs[ATTRS] = noted
