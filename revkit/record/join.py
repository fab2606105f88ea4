"""How the values of two records become one, column by column: each rule is written down here, once.

Three things are joined by these rules: a run and the one that reran some of its rows
(:meth:`Record.continued`), the partitions of a run on a cluster (``dask/merge.py``), and the totals
of many runs (``totals.py``).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..scheduling.events import Hold

if TYPE_CHECKING:
    from .record import Record

__all__ = ["COLUMNS", "MADE_WITH", "Position", "add", "counted", "join"]


class Position(NamedTuple):
    """Where a record is within a whole: among its rows, its workers, and in time.

    Attributes:
        rows: row ``i`` of the record is row ``rows[i]`` of the whole.
        seconds: added to the record's times, these are times of the whole.
        worker: the number in the whole of a worker of the record.
        due: in the whole's time, when an attempt was due that has no such time of its own.
        tried: row of the whole -> attempts that it has there already; None: no row has any.
    """

    rows: Sequence[int]
    seconds: float = 0.0
    worker: Callable[[int], int] = lambda worker: worker
    due: float = math.nan
    tried: Mapping[int, int] | None = None


class _Joining(NamedTuple):
    """What rules need to know beside the two values."""

    total: int  #: rows of the whole
    attempts: int  #: that the whole has so far
    record: Record
    at: Position


Rule = Callable[[Any, Any, _Joining], Any]


def join(whole: Record, record: Record, position: Position) -> None:
    """Put a record into a whole; then :meth:`Record.count_rows` brings its counts up to date."""
    joining = _Joining(whole.total, len(whole.row), record, position)
    for name, rule in COLUMNS.items():
        setattr(whole, name, rule(getattr(whole, name), getattr(record, name), joining))


def add(ours: Any, theirs: Any) -> Any:
    """The sum; None is not known, and adds nothing to what is."""
    if ours is None or theirs is None:
        return theirs if ours is None else ours
    return ours + theirs


def counted(ours: Mapping[Any, int], theirs: Mapping[Any, int]) -> dict[Any, int]:
    """Two histograms as one."""
    return dict(Counter(ours) + Counter(theirs))


def _by_row(ours: Any, theirs: Any, joining: _Joining) -> Any:
    for row, value in zip(joining.at.rows, theirs, strict=True):
        ours[row] = value
    return ours


def _outputs(ours: Any, theirs: Any, joining: _Joining) -> Any:
    for name, column in theirs.items():
        _by_row(ours.setdefault(name, [None] * joining.total), column, joining)
    return ours


def _failures(ours: Any, theirs: Any, joining: _Joining) -> Any:
    """A row that has not failed again has no failure."""
    for row in joining.at.rows:
        ours.pop(row, None)
    ours.update((joining.at.rows[row], failure) for row, failure in theirs.items())
    return ours


def _numbers(ours: Any, theirs: Any, joining: _Joining) -> Any:
    """Attempts at a row that was tried before are counted on."""
    rows, tried = joining.at.rows, joining.at.tried or {}
    for row, number in zip(joining.record.row, theirs, strict=True):
        ours.append(number + tried.get(rows[row], 0))
    return ours


def _each(move: Callable[[Any, _Joining], Any] = lambda value, joining: value) -> Rule:
    """Append their values, moved to where they are in the whole."""

    def rule(ours: Any, theirs: Any, joining: _Joining) -> Any:
        ours.extend(move(value, joining) for value in theirs)
        return ours

    return rule


def _keyed(move: Callable[[int, _Joining], int]) -> Rule:
    """Add their values, under keys of the whole."""

    def rule(ours: Any, theirs: Any, joining: _Joining) -> Any:
        ours.update((move(key, joining), value) for key, value in theirs.items())
        return ours

    return rule


def _plain(rule: Callable[[Any, Any], Any]) -> Rule:
    return lambda ours, theirs, joining: rule(ours, theirs)


def _row(row: int, joining: _Joining) -> int:
    return joining.at.rows[row]


def _time(time: float, joining: _Joining) -> float:
    return time + joining.at.seconds


def _first_refused(ours: Any, theirs: Any, joining: _Joining) -> Any:
    if ours is not None or theirs is None:
        return ours
    row, failure = theirs
    return _row(row, joining), failure


def _messages(ours: list[str], theirs: list[str]) -> list[str]:
    """Each message once."""
    return list(dict.fromkeys([*ours, *theirs]))


def _problems(ours: str | None, theirs: str | None) -> str | None:
    """Each problem once."""
    both = _messages(*([] if text is None else text.split("; ") for text in (ours, theirs)))
    return "; ".join(both) or None


_latest = _plain(lambda ours, theirs: theirs)
_latest_known = _plain(lambda ours, theirs: theirs or ours)

#: Column of a record -> the rule by which its value and a later record's become one.
COLUMNS: dict[str, Rule] = {
    "status": _by_row,
    "source": _by_row,
    "values": _outputs,
    "failures": _failures,
    "replies": _keyed(_row),
    "first_refused": _first_refused,
    "row": _each(_row),
    "number": _numbers,
    "worker": _each(lambda worker, joining: joining.at.worker(worker)),
    "decision": _each(),
    "start": _each(_time),
    "end": _each(_time),
    "due": _each(lambda due, joining: joining.at.due if math.isnan(due) else _time(due, joining)),
    "prompt_tokens": _each(),
    "completion_tokens": _each(),
    "attempt_failures": _keyed(lambda place, joining: joining.attempts + place),
    "ended": lambda ours, theirs, joining: max(ours, _time(theirs, joining)),
    "holds": _each(lambda hold, j: Hold(hold.kind, _time(hold.start, j), _time(hold.end, j))),
    "visits": _each(lambda visit, joining: (_time(visit[0], joining), visit[1])),
    # One that was set before the record began holds from then on.
    "limits": _each(lambda limit, j: (_time(max(limit[0], j.record.began), j), limit[1])),
    "tokens": _plain(add),
    "from_store": _plain(add),
    "workers": _plain(max),
    "engine": _latest_known,
    "stopped": _latest,
    "stopped_at": lambda ours, theirs, j: None if theirs is None else _time(theirs, j),
    "ended_by": _latest,
    "warnings": _plain(_messages),
    "store": _latest_known,
    "store_problem": _plain(_problems),
    "facts": _latest_known,
}
#: Attributes without a rule: the whole is made with them, or they are counted from its statuses.
MADE_WITH = {
    *("total", "samples", "asks_model", "run_id", "started_at", "began", "places"),
    *("settled", "failed", "away", "_parked", "_known_retried"),
}
