"""Service times and waits of a run as frames, in milliseconds and by group.

The methods of :class:`~revkit.ParallelResult` that return them explain groups and columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..errors import UsageError, nearest
from ..scheduling.events import Status
from . import metrics as figures
from .frames import countable, summary
from .record import Record

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["latency_by", "waiting"]

#: What ``latency_by`` groups by, beside outputs.
_GROUPINGS = ("worker", "status", "wave")
#: Groups that it makes of an output that is no class output, at most.
_GROUPS = 50


def latency_by(
    record: Record,
    by: str,
    values: Mapping[str, Any],
    labels: Mapping[str, Sequence[Any] | None],
) -> pd.DataFrame:
    """Service time, by group.

    Args:
        values: output name -> its value for each row of the record.
        labels: output name -> all its labels in their order; None where it is no class output.

    Raises:
        UsageError: there is no such group, or there are too many.
    """
    groups, group_of, chosen = _grouped(record, by, values, labels)
    service = figures.service_times(record) * 1e3
    samples = [service[chosen & (group_of == place)] for place in range(len(groups))]
    return _distributions(samples, pd.Index(groups, name=by, tupleize_cols=False))


def waiting(record: Record) -> pd.DataFrame:
    """How long rows waited that were attempted, and for what."""
    waits, attempted = figures.wait_ms(record), figures.last_attempts(record) >= 0
    samples = [wait[attempted] for wait in waits.values()]
    return _distributions(samples, pd.Index(list(waits))).drop(columns="min")


def _grouped(
    record: Record,
    by: str,
    values: Mapping[str, Any],
    labels: Mapping[str, Sequence[Any] | None],
) -> tuple[list[Any], Any, Any]:
    """The groups, the place among them of each attempt's group, and which attempts count."""
    row, good = np.asarray(record.row, dtype=np.int64), figures.good(record)
    if by == "worker":
        workers, group_of = np.unique(record.worker, return_inverse=True)
        return workers.tolist(), group_of, good
    if by == "wave":
        return ["first", "rest"], np.where(figures.first_wave(record), 0, 1), good
    if by == "status":
        statuses = list(Status)
        of_row = np.array([statuses.index(status) for status in record.status], dtype=np.int64)
        last = figures.last_attempts(record)[row] == np.arange(len(row))
        return [*map(str, statuses)], of_row[row], last
    output = _output(by, labels)
    of_each = pd.Series(values[output])
    ok = np.array([status is Status.OK for status in record.status], dtype=bool)
    groups = summary(of_each[ok], labels[output], name=output).index.tolist()
    if labels[output] is None and len(groups) > _GROUPS:
        raise UsageError(
            f'output "{output}" has {len(groups):,} different values, and latency_by() takes '
            f"at most {_GROUPS}; run.rows has the output beside service_ms, to be put into "
            "groups of your own"
        )
    places = {value: i for i, value in enumerate(groups)}
    of_row = np.array([places.get(value, -1) for value in countable(of_each).tolist()], np.int64)
    return groups, of_row[row], good


def _output(by: str, outputs: Iterable[str]) -> str:
    """The output to group by."""
    known = list(outputs)
    if by in known:
        return by
    name = str(by).removeprefix("output_")
    if name in _GROUPINGS and name in known:
        return name
    raise UsageError(f'latency_by() knows no "{by}"; {nearest(by, [*_GROUPINGS, *known])}')


def _distributions(samples: Sequence[NDArray[np.float64]], index: pd.Index) -> pd.DataFrame:
    """One line for each sample: its size, and how it is distributed."""
    lines = [figures.distribution(sample) for sample in samples]
    table = pd.DataFrame(lines, index=index, columns=list(figures.FIGURES), dtype="float64")
    table.insert(0, "count", np.array([len(sample) for sample in samples], dtype=np.int64))
    return table
