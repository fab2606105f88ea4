"""How the values of two records become one, column by column: each rule is written down here, once.

Three things are joined by these rules: a run and the one that reran some of its rows
(:meth:`Record.continued`), the partitions of a run on a cluster (``dask/merge.py``), and the totals
of many runs (``totals.py``).
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..scheduling.events import Failure, Hold

if TYPE_CHECKING:
    from ..task.chat import Reply
    from .record import Record

__all__ = ["COLUMNS", "MADE_WITH", "Position", "add", "counted", "join"]


@dataclass(frozen=True)
class Position:
    """Where a record is within a whole: among its rows, its workers, and in time.

    Attributes:
        rows: row ``i`` of the record is row ``rows[i]`` of the whole.
        seconds: added to the record's times, these are times of the whole.
        worker: the number in the whole of a worker of the record.
        due: in the whole's time, when an attempt was due that has no such time of its own.
        tried: row of the whole -> attempts that it has there already.
    """

    rows: Sequence[int]
    seconds: float = 0.0
    worker: Callable[[int], int] = lambda worker: worker
    due: float = math.nan
    tried: Mapping[int, int] = field(default_factory=dict)


def join(whole: Record, record: Record, position: Position) -> None:
    """Put a record into a whole; then :meth:`Record.count_rows` brings its counts up to date."""
    joining = _Joining(whole.total, len(whole.row), record, position)
    for name, rule in COLUMNS.items():
        setattr(whole, name, rule(getattr(whole, name), getattr(record, name), joining))


@dataclass(frozen=True)
class _Joining:
    """What rules need to know beside the two values."""

    total: int  #: rows of the whole
    attempts: int  #: that the whole has so far
    record: Record
    at: Position


# -- of two values that need no position ----------------------------------------------------------


def add(ours: Any, theirs: Any) -> Any:
    """The sum; None is not known, and adds nothing to what is."""
    if ours is None or theirs is None:
        return theirs if ours is None else ours
    return ours + theirs


def counted(ours: Mapping[Any, int], theirs: Mapping[Any, int]) -> dict[Any, int]:
    """Two histograms as one."""
    return dict(Counter(ours) + Counter(theirs))


def _latest(ours: Any, theirs: Any) -> Any:
    """That of the record that comes later."""
    return theirs


def _latest_known(ours: Any, theirs: Any) -> Any:
    return theirs or ours


def _messages(ours: list[str], theirs: list[str]) -> list[str]:
    """Each message once."""
    return list(dict.fromkeys([*ours, *theirs]))


def _problems(ours: str | None, theirs: str | None) -> str | None:
    """Each problem once."""
    both = _messages(*([] if told is None else told.split("; ") for told in (ours, theirs)))
    return "; ".join(both) or None


# -- by row ---------------------------------------------------------------------------------------


def _by_row(ours: Any, theirs: Any, joining: _Joining) -> Any:
    for row, value in zip(joining.at.rows, theirs, strict=True):
        ours[row] = value
    return ours


def _values(ours: dict[Any, Any], theirs: dict[Any, Any], joining: _Joining) -> dict[Any, Any]:
    for name, column in theirs.items():
        _by_row(ours.setdefault(name, [None] * joining.total), column, joining)
    return ours


def _failures(
    ours: dict[int, Failure], theirs: dict[int, Failure], joining: _Joining
) -> dict[int, Failure]:
    """A row that has not failed again has no failure."""
    for row in joining.at.rows:
        ours.pop(row, None)
    ours.update((joining.at.rows[row], failure) for row, failure in theirs.items())
    return ours


def _replies(
    ours: dict[int, Reply], theirs: dict[int, Reply], joining: _Joining
) -> dict[int, Reply]:
    ours.update((joining.at.rows[row], reply) for row, reply in theirs.items())
    return ours


def _first_refused(
    ours: tuple[int, Failure] | None, theirs: tuple[int, Failure] | None, joining: _Joining
) -> tuple[int, Failure] | None:
    if ours is not None or theirs is None:
        return ours
    row, failure = theirs
    return joining.at.rows[row], failure


# -- by attempt -----------------------------------------------------------------------------------


def _appended(ours: array[Any], theirs: array[Any], joining: _Joining) -> array[Any]:
    ours.extend(theirs)
    return ours


def _rows(ours: array[int], theirs: array[int], joining: _Joining) -> array[int]:
    ours.extend(joining.at.rows[row] for row in theirs)
    return ours


def _workers(ours: array[int], theirs: array[int], joining: _Joining) -> array[int]:
    ours.extend(map(joining.at.worker, theirs))
    return ours


def _numbers(ours: array[int], theirs: array[int], joining: _Joining) -> array[int]:
    """Attempts at a row that was tried before are counted on."""
    at = joining.at
    for row, number in zip(joining.record.row, theirs, strict=True):
        ours.append(number + at.tried.get(at.rows[row], 0))
    return ours


def _due(ours: array[float], theirs: array[float], joining: _Joining) -> array[float]:
    at = joining.at
    ours.extend(at.due if math.isnan(due) else due + at.seconds for due in theirs)
    return ours


def _by_attempt(
    ours: dict[int, Failure], theirs: dict[int, Failure], joining: _Joining
) -> dict[int, Failure]:
    ours.update((joining.attempts + place, failure) for place, failure in theirs.items())
    return ours


# -- in time --------------------------------------------------------------------------------------


def _moved(seconds: float | None, joining: _Joining) -> float | None:
    return None if seconds is None else seconds + joining.at.seconds


def _times(ours: array[float], theirs: array[float], joining: _Joining) -> array[float]:
    ours.extend(time + joining.at.seconds for time in theirs)
    return ours


def _holds(ours: list[Hold], theirs: list[Hold], joining: _Joining) -> list[Hold]:
    by = joining.at.seconds
    ours.extend(Hold(kind, start + by, end + by) for kind, start, end in theirs)
    return ours


def _visits(
    ours: list[tuple[float, int]], theirs: list[tuple[float, int]], joining: _Joining
) -> list[tuple[float, int]]:
    ours.extend((at + joining.at.seconds, rows) for at, rows in theirs)
    return ours


def _limits(
    ours: list[tuple[float, int]], theirs: list[tuple[float, int]], joining: _Joining
) -> list[tuple[float, int]]:
    """A limit that was set before the record began holds from then on."""
    began, by = joining.record.began, joining.at.seconds
    ours.extend((max(at, began) + by, limit) for at, limit in theirs)
    return ours


# -- the rules ------------------------------------------------------------------------------------


def _plain(rule: Callable[[Any, Any], Any]) -> Callable[[Any, Any, _Joining], Any]:
    return lambda ours, theirs, joining: rule(ours, theirs)


#: Column of a record -> the rule by which its value and a later record's become one.
COLUMNS: dict[str, Callable[[Any, Any, _Joining], Any]] = {
    "status": _by_row,
    "source": _by_row,
    "values": _values,
    "failures": _failures,
    "replies": _replies,
    "first_refused": _first_refused,
    "row": _rows,
    "number": _numbers,
    "worker": _workers,
    "decision": _appended,
    "start": _times,
    "end": _times,
    "due": _due,
    "prompt_tokens": _appended,
    "completion_tokens": _appended,
    "attempt_failures": _by_attempt,
    "ended": lambda ours, theirs, joining: max(ours, theirs + joining.at.seconds),
    "holds": _holds,
    "visits": _visits,
    "limits": _limits,
    "tokens": _plain(add),
    "from_store": _plain(add),
    "workers": _plain(max),
    "engine": _plain(_latest_known),
    "stopped": _plain(_latest),
    "stopped_at": lambda ours, theirs, joining: _moved(theirs, joining),
    "ended_by": _plain(_latest),
    "warnings": _plain(_messages),
    "store": _plain(_latest_known),
    "store_problem": _plain(_problems),
    "weights": _plain(_latest_known),
}
#: Attributes without a rule: the whole is made with them, or they are counted from its statuses.
MADE_WITH = {
    *("total", "samples", "asks_model", "run_id", "started_at", "began", "places"),
    *("settled", "failed"),
}
