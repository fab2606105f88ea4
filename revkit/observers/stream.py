"""The events of a run, made of the facts that its drain collects.

An event here is its type, its time (on the drain's clock) and its data, which are plain JSON
values. ``docs/observers.md`` has a table of them all. Together they are enough to rebuild the
counts of the result, its attempts, and how many were running when.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Protocol

from ..record.record import DECISIONS, SOURCES, Record
from ..scheduling.events import (
    CANCELLED,
    Attempted,
    Decided,
    Decision,
    Failure,
    Held,
    Started,
    Status,
)

__all__ = ["Data", "EventStream", "Send", "SendAll"]

Data = Mapping[str, Any]


class Send(Protocol):
    """Takes an event; its data may be made later, for it costs more than all else."""

    def __call__(self, kind: str, at: float, data: Data | Callable[[], Data], /) -> object: ...


class SendAll(Protocol):
    """Takes many events of one time, which are made one by one."""

    def __call__(self, at: float, make: Callable[[], Iterator[tuple[str, Data]]], /) -> object: ...


class EventStream:
    """Says what happens in one run, in the order in which it happened.

    Every row is settled exactly once.

    Args:
        send, send_all: take the events.
        place: the caller's number of a row, and that of its sample.
    """

    def __init__(
        self,
        send: Send,
        send_all: SendAll,
        record: Record,
        place: Callable[[int], tuple[int, int]] = lambda row: (row, 0),
    ):
        self._send = send
        self._send_all = send_all
        self._record = record
        self._place = place
        self._settled = bytearray(record.total)
        self._attempts: dict[int, int] = {}

    def begin(self, at: float, **facts: Any) -> None:
        """The run starts; ``facts`` are what is known of it."""
        self._send("parallel.start", at, {"item_count": self._record.total, **facts})

    def take(self, fact: Started | Held | Attempted | Decided) -> None:
        """Something happened to an attempt."""
        if isinstance(fact, Started):
            self._send("worker.start", fact.start, partial(self._of, fact))
        elif isinstance(fact, Held):
            self._send("worker.limited", fact.start, partial(self._held, fact))
        elif isinstance(fact, Decided):
            if (again := fact.fact.again) is not None:
                self._send("worker.retry", again, partial(self._retried, fact.fact, again))
        else:
            self._attempts[fact.attempt.row] = fact.attempt.number
            self._send("worker.complete", fact.end, partial(self._ended, fact))
            if fact.again is not None:
                self._send("worker.retry", fact.end, partial(self._retried, fact, fact.again))

    def _item(self, row: int) -> dict[str, Any]:
        number, sample = self._place(row)
        return {"item_index": number} | ({"sample": sample} if self._record.samples > 1 else {})

    def _of(self, fact: Started | Attempted) -> dict[str, Any]:
        attempt = fact.attempt
        return {
            "worker_id": attempt.worker,
            **self._item(attempt.row),
            "total_items": self._record.total,
            "attempt": attempt.number,
        }

    def _held(self, fact: Held) -> dict[str, Any]:
        return {
            "worker_id": fact.worker,
            **self._item(fact.row),
            "reason": fact.kind.value,
            "delay_ms": (fact.until - fact.start) * 1e3,
        }

    def _ended(self, fact: Attempted) -> dict[str, Any]:
        outcome = fact.outcome
        failure = outcome if isinstance(outcome, Failure) else None
        reply = None if outcome is CANCELLED else outcome.reply
        return {
            **self._of(fact),
            "outcome": fact.decision.value,
            "service_ms": (fact.end - fact.start) * 1e3,
            "error": None if failure is None else str(failure),
            "error_type": None if failure is None else failure.type,
            "http_status": None if failure is None else failure.status,
            "prompt_tokens": None if reply is None else reply.used_prompt_tokens,
            "completion_tokens": None if reply is None else reply.completion_tokens,
            "finish_reason": None if reply is None else reply.finish_reason,
        }

    def _retried(self, fact: Attempted, again: float) -> dict[str, Any]:
        ended = self._ended(fact)
        return {
            "worker_id": ended["worker_id"],
            **self._item(fact.attempt.row),
            "attempt": ended["attempt"] + 1,
            "delay_ms": (again - fact.end) * 1e3,
            "error": ended["error"],
            "error_type": ended["error_type"],
        }

    def stored(self, at: float, *, replies: int, seconds: float) -> None:
        """So many good replies were put into the store."""
        self._send("store.write", at, {"replies": replies, "duration_ms": seconds * 1e3})

    def settled(self, row: int, at: float) -> None:
        """What became of the row, if that was not told before."""
        if not self._settled[row]:
            self._settled[row] = True
            self._send("row.settled", at, self._row(row))

    def _row(self, row: int) -> dict[str, Any]:
        record = self._record
        return {
            **self._item(row),
            "status": record.status[row].value,
            "source": SOURCES[record.source[row]].value,
            "attempts": self._attempts.get(row, 0),
            "error": record.error(row),
        }

    def end(self, at: float) -> None:
        """The run is over, and the record closed: settles the rows that are left."""
        self._send_all(at, self._last)

    def _last(self) -> Iterator[tuple[str, Data]]:
        for row, settled in enumerate(self._settled):
            if not settled:
                yield "row.settled", self._row(row)
        record = self._record
        count = {status: record.status.count(status) for status in Status}
        sources = [SOURCES[source].value for source in record.source]
        tokens = [record.prompt_tokens, record.completion_tokens]
        known = [[count for count in counts if count >= 0] for counts in tokens]
        yield (
            "parallel.complete",
            {
                "items_processed": count[Status.OK],
                "items_failed": count[Status.ERROR],
                "items_cancelled": count[Status.CANCELLED],
                "items_not_started": count[Status.NOT_STARTED],
                "from_store": sources.count("store"),
                "duplicates": sources.count("duplicate"),
                "attempts": len(record.decision),
                "retries": sum(DECISIONS[code] is Decision.RETRY for code in record.decision),
                "wall_s": record.ended - record.began,
                "prompt_tokens": sum(known[0]) if known[0] else None,
                "completion_tokens": sum(known[1]) if known[1] else None,
                "stopped": None if record.stopped is None else record.stopped.kind.value,
                "error": self._error(),
            },
        )

    def _error(self) -> str | None:
        """What the run came to, None where it is a result."""
        record = self._record
        if record.ended_by is not None and record.stopped is None:
            return f"{type(record.ended_by).__name__}: {record.ended_by}"
        if record.stopped is not None:
            return record.stopped.reason
        first = record.first_failure
        if first is None or Status.OK in record.status:
            return None
        return f"every row that was attempted failed; the first: {first[1]}"
