"""The records of a run's partitions as one: rows in their order, attempts on one clock."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from ..record.join import Position, join
from ..record.record import Record
from ..scheduling.events import Hold, Status

if TYPE_CHECKING:
    from .partition import Part

__all__ = ["Place", "merge"]


class Place(NamedTuple):
    """Where a worker of a run on a cluster was."""

    host: str  #: name of the machine
    process: str  #: name of the Dask worker


def merge(
    parts: Sequence[Part],
    outputs: Iterable[str],
    *,
    asks_model: bool,
    samples: int = 1,
    run_id: str,
    now: datetime,
) -> Record:
    """One record for all partitions, in their order.

    Its times are in seconds since the run began. A worker's number is that of its lane: one for
    each worker that a Dask worker had at the same time, host by host.

    Args:
        run_id: the name of the run.
        now: when it began, where no partition ran.
    """
    ran = [part for part in parts if part.host]
    origin = min((part.began for part in ran), default=0.0)
    whole = Record(
        sum(part.record.total for part in parts),
        outputs,
        asks_model=asks_model,
        samples=samples,
        run_id=run_id,
        started_at=min((_run_began(part) for part in ran), default=now),
    )
    lanes = _lanes(ran)
    whole.places = [Place(host, process) for host, process, _ in lanes.names]
    if lost := max((part.lost for part in ran), default=0):
        attempts = "attempts were" if lost > 1 else "attempt was"
        whole.warnings.append(
            f"about {lost} {attempts} made, or running, on Dask workers that died: not in "
            "run.attempts, run.usage and the timeline, and possibly billed"
        )
    first = 0
    for part in parts:
        rows = range(first, first + part.record.total)
        shift, lane = part.offset - origin, partial(lanes.of, part)
        join(whole, part.record, Position(rows, seconds=shift, worker=lane))
        first = rows.stop
    whole.count_rows()
    whole.sort_attempts()
    whole.visits.sort()
    whole.holds = _joined(whole.holds)
    _add_facts_of_the_run(whole, ran, origin)
    return whole


def _add_facts_of_the_run(whole: Record, ran: Sequence[Part], origin: float) -> None:
    """Take from the coordinator what no partition knows: workers, limits, stop and end."""
    whole.workers = max((part.workers for part in ran), default=1)
    whole.limits = [(at - origin, limit) for at, limit in _longest(ran)]
    whole.ended = max((part.record.ended + part.offset - origin for part in ran), default=0.0)
    stops = [part.stop for part in ran if part.stop is not None]
    done = whole.status.count(Status.OK) == whole.total
    whole.stopped = stops[0] if stops and not done else None
    stopped_at = [
        part.record.stopped_at + part.offset - origin
        for part in ran
        if part.record.stopped_at is not None
    ]
    whole.stopped_at = None if whole.stopped is None else min(stopped_at, default=whole.ended)


def _run_began(part: Part) -> datetime:
    """When the whole run began, by the clock of the part's machine."""
    since = max(0.0, part.record.began + part.offset - part.began)
    return part.record.started_at - timedelta(seconds=since)


class _Lanes:
    """Numbers for the workers of all partitions.

    Attributes:
        names: of each lane: host, Dask worker, and its place there.
    """

    def __init__(self, numbers: dict[tuple[int, int], int], names: list[tuple[str, str, int]]):
        self._numbers, self.names = numbers, names

    def of(self, part: Part, worker: int) -> int:
        return self._numbers[part.number, worker]


def _lanes(parts: Sequence[Part]) -> _Lanes:
    """A lane is used by one partition after the other, never by two at once."""
    #: (host, process) -> when each of its lanes is free again
    free: dict[tuple[str, str], list[float]] = {}
    chosen: dict[tuple[int, int], tuple[str, str, int]] = {}
    for part in sorted(parts, key=lambda part: part.record.began + part.offset):
        record, where = part.record, (part.host, part.process)
        lanes = free.setdefault(where, [])
        began, ended = record.began + part.offset, record.ended + part.offset
        open_ = [lane for lane, until in enumerate(lanes) if until <= began]
        for worker in sorted(set(record.worker)):
            if open_:
                lane = open_.pop(0)
            else:
                lane = len(lanes)
                lanes.append(0.0)
            lanes[lane] = ended
            chosen[part.number, worker] = (*where, lane)
    names = sorted(set(chosen.values()), key=lambda name: (name[0], *_by_number(name[1]), name[2]))
    numbers = {name: number for number, name in enumerate(names)}
    return _Lanes({worker: numbers[name] for worker, name in chosen.items()}, names)


def _by_number(process: str) -> tuple[int, str]:
    return (int(process) if process.isdecimal() else -1, process)


def _joined(holds: list[Hold]) -> list[Hold]:
    """Holds of one kind that touch, as one: what one partition waits for, all wait for."""
    joined: list[Hold] = []
    for hold in sorted(holds, key=lambda hold: (hold.kind, hold.start)):
        last = joined[-1] if joined else None
        if last is not None and last.kind is hold.kind and hold.start <= last.end:
            joined[-1] = last._replace(end=max(last.end, hold.end))
        else:
            joined.append(hold)
    return sorted(joined, key=lambda hold: hold.start)


def _longest(parts: Sequence[Part]) -> Sequence[tuple[float, int]]:
    return max((part.limits for part in parts), key=len, default=())
