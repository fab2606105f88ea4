"""The records of a run's partitions as one: rows in their order, attempts on one clock."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

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
    parts: Sequence[Part], outputs: Iterable[str], *, asks_model: bool, samples: int = 1
) -> Record:
    """One record for all partitions, in their order.

    Its times are in seconds since the run began. A worker's number is that of its lane: one for
    each worker that a Dask worker had at the same time, host by host.
    """
    records = [part.record for part in parts]
    ran = [part for part in parts if part.host]
    total = sum(record.total for record in records)
    whole = Record(total, outputs, asks_model=asks_model, samples=samples)
    whole.workers = max((part.workers for part in ran), default=1)
    whole.engine = next((part.record.engine for part in ran), "")
    origin = min((part.began for part in ran), default=0.0)
    whole.began = 0.0
    lanes = _lanes(ran)
    whole.places = [Place(host, process) for host, process, _ in lanes.names]
    if lost := max((part.lost for part in ran), default=0):
        attempts_ = "attempts were" if lost > 1 else "attempt was"
        whole.warnings.append(
            f"about {lost} {attempts_} made, or running, on Dask workers that died: not in "
            "run.attempts, run.usage and the timeline, and possibly billed"
        )
    attempts = []
    problems: list[str] = []
    first = 0
    for part in parts:
        record, shift = part.record, part.offset - origin
        _rows(whole, record, first)
        attempts += [
            (end + shift, part, place, first, shift) for place, end in enumerate(record.end)
        ]
        whole.holds += [Hold(h.kind, h.start + shift, h.end + shift) for h in record.holds]
        whole.visits += [(at + shift, rows) for at, rows in record.visits]
        whole.warnings += [told for told in record.warnings if told not in whole.warnings]
        whole.store = record.store or whole.store
        if record.store_problem is not None and record.store_problem not in problems:
            problems.append(record.store_problem)
        whole.weights = record.weights or whole.weights
        if record.first_refused is not None and whole.first_refused is None:
            row, failure = record.first_refused
            whole.first_refused = row + first, failure
        first += record.total
    _attempts(whole, attempts, lanes)
    whole.store_problem = "; ".join(problems) or None
    whole.visits.sort()
    whole.holds = _joined(whole.holds)
    ended_at = [part.record.ended + part.offset - origin for part in ran]
    whole.ended = max(ended_at, default=0.0)
    whole.limits = [(at - origin, limit) for at, limit in _longest(ran)]
    stops = [part.stop for part in ran if part.stop is not None]
    done = whole.status.count(Status.OK) == whole.total
    if stops and not done:
        whole.stopped = stops[0]
        stopped_at = [
            part.record.stopped_at + part.offset - origin
            for part in ran
            if part.record.stopped_at is not None
        ]
        whole.stopped_at = min(stopped_at, default=whole.ended)
    if ran:
        began = min(part.record.started_at - timedelta(seconds=_since(part)) for part in ran)
        whole.started_at = began
    whole.settled = whole.total - whole.status.count(Status.NOT_STARTED)
    whole.failed = whole.status.count(Status.ERROR)
    return whole


def _since(part: Part) -> float:
    """Seconds from the run's beginning until the partition's."""
    return max(0.0, part.record.began + part.offset - part.began)


def _rows(whole: Record, record: Record, first: int) -> None:
    """Put a partition's rows where they belong."""
    rows = slice(first, first + record.total)
    whole.status[rows] = record.status
    whole.source[rows] = record.source
    for name, values in record.values.items():
        whole.values.setdefault(name, [None] * whole.total)[rows] = values
    whole.failures.update((row + first, failure) for row, failure in record.failures.items())
    whole.replies.update((row + first, reply) for row, reply in record.replies.items())
    whole.from_store += record.from_store
    whole.tokens += record.tokens


def _attempts(
    whole: Record, attempts: list[tuple[float, Part, int, int, float]], lanes: _Lanes
) -> None:
    attempts.sort(key=lambda attempt: attempt[0])
    for place, (end, part, at, first, shift) in enumerate(attempts):
        record = part.record
        whole.row.append(record.row[at] + first)
        whole.number.append(record.number[at])
        whole.worker.append(lanes.of(part, record.worker[at]))
        whole.decision.append(record.decision[at])
        whole.start.append(record.start[at] + shift)
        whole.end.append(end)
        whole.due.append(record.due[at] + shift)
        if len(record.prompt_tokens):
            whole.prompt_tokens.append(record.prompt_tokens[at])
            whole.completion_tokens.append(record.completion_tokens[at])
        if at in record.attempt_failures:
            whole.attempt_failures[place] = record.attempt_failures[at]


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
