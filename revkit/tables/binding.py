"""From a frame, a Series or a list to the rows of a run: which column each input comes from."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..errors import MissingColumn, UsageError, nearest, one_line
from ..scheduling.events import Failure
from ..task.braces import doubled, is_text
from ..task.kinds import CallableTask, ModelTask, Template
from .rows import Rows

__all__ = ["Binding", "bind_frame", "bind_items", "bind_series"]

Task = ModelTask | CallableTask


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
    _check_columns(frame, bound, task)
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


def _check_columns(frame: pd.DataFrame, bound: Mapping[Any, Hashable], task: Task) -> None:
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
            near = close.startswith("did you mean")
            if isinstance(task, Template) and twin is None and (is_text(str(name)) or not near):
                hint += f"; braces that are text are doubled: {doubled(f'{{{name}}}')}"
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
        _check_columns(frame, bound, task)
    # The values themselves, not the frame's: pandas would turn an int beside a gap into a float.
    columns = {name: [item.get(column) for item in items] for name, column in bound.items()}
    missing = {
        name: np.fromiter(map(_is_missing, columns[name]), bool, len(items)) for name in checked
    }
    return Binding(Rows(list(columns), list(columns.values())), missing, bound.values()), frame


def _is_missing(value: Any) -> bool:
    return value is None or (pd.api.types.is_scalar(value) and bool(pd.isna(value)))
