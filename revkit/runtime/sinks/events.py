"""The sink for observers: every fact of a run becomes events."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from typing import Any

from ...observers import Event, Observers
from ...observers.stream import Data, EventStream
from ...record.record import Record
from ...scheduling.events import Attempted, Decided, Decision, Held, Started
from ...task.kinds import CallableTask, ModelTask
from ..wiring import Wiring

__all__ = ["EventSink"]

#: Decisions that leave a row unsettled.
_UNSETTLED = (Decision.RETRY, Decision.PARK)
#: The ``source`` of every event.
SOURCE = "revkit.parallel_map"
#: Seconds that observers have for their backlog when the run is over; after an interrupt, fewer.
_PATIENCE, _PATIENCE_INTERRUPTED = 10.0, 0.5


class EventSink:
    """Sends the events of one run.

    Args:
        began: when the run began, on the drain's clock.
        may_wait: a full backlog may hold the drain up for a moment.
    """

    def __init__(self, wiring: Wiring, record: Record, *, began: float, may_wait: bool):
        self._wiring = wiring
        self._record = record
        self._origin = began
        self._observers = (
            Observers(wiring.observers) if may_wait else Observers(wiring.observers, patience=0)
        )
        self._stream = EventStream(self._send, self._send_all, record, wiring.plan.place)
        self._facts: list[Started | Held | Attempted | Decided] = []
        self._is_closed = False
        #: takes a fact that was collected
        self.take = self._facts.append

    @property
    def is_heard(self) -> bool:
        """Whether an observer is left: one that raises, or falls behind, is dropped."""
        return not self._is_closed and self._observers.active

    def starts_at(self, began: float) -> None:
        """From here on times are on another clock, on which the run began at ``began``."""
        self._origin = began

    def begin(self, at: float) -> None:
        self._stream.begin(at, **_facts_of(self._wiring))

    def report(self, at: float, *, settles: bool) -> None:
        """Send the facts that were collected.

        Args:
            at: now.
            settles: a row is settled when its last attempt ends; else :meth:`settled` says when.
        """
        facts = self._facts[:]
        self._facts.clear()
        for fact in facts:
            self._stream.take(fact)
            if not settles:
                continue
            if isinstance(fact, Decided) and fact.fact.decision is Decision.FAIL:
                self._stream.settled(fact.fact.attempt.row, at)
            elif isinstance(fact, Attempted) and fact.decision not in _UNSETTLED:
                self._stream.settled(fact.attempt.row, fact.end)

    def settled(self, row: int, at: float) -> None:
        """The row is settled, if that was not sent before."""
        self._stream.settled(row, at)

    def stored(self, at: float, *, replies: int, seconds: float) -> None:
        self._stream.stored(at, replies=replies, seconds=seconds)

    def end(self, at: float) -> None:
        self._stream.end(at)

    def close(self, hurried: Callable[[], bool]) -> list[str]:
        """Wait until observers have received all events, or have had their time. May block.

        Args:
            hurried: asked meanwhile; True: wait no longer.

        Returns:
            Warnings for the user; none where it was closed before.
        """
        if self._is_closed:
            return []
        self._is_closed = True
        if self._record.ended_by is not None:
            return self._observers.close(_PATIENCE_INTERRUPTED)
        return self._observers.close(_PATIENCE, hurried=hurried)

    def _send(self, kind: str, at: float, data: Data | Callable[[], Data]) -> None:
        self._observers.send(partial(self._event, kind, at - self._origin, data))

    def _send_all(self, at: float, make: Callable[[], Iterator[tuple[str, Data]]]) -> None:
        since, event = at - self._origin, self._event
        self._observers.send_all(lambda: (event(kind, since, data) for kind, data in make()))

    def _event(self, kind: str, since: float, data: Data | Callable[[], Data]) -> Event:
        """Made on an observer's thread."""
        when = self._record.started_at + timedelta(seconds=max(0.0, since))
        timestamp = when.isoformat(timespec="microseconds")
        made = data() if callable(data) else data
        return Event(kind, timestamp, SOURCE, self._record.run_id, made)


def _facts_of(wiring: Wiring) -> dict[str, Any]:
    """What the first event says of the run."""
    plan, failures = wiring.plan, wiring.plan.options.failures
    client = plan.client
    return {
        "worker_count": plan.workers,
        "engine": plan.engine,
        "fail_fast": failures.fail_fast,
        "max_failures": failures.limit(plan.total),
        "adaptive": plan.options.pool.adaptive is not None,
        "task": _name_of(plan.task),
        "model": None if client is None else client.model or client.name,
        "provider": None if client is None else client.provider or None,
        "samples": plan.samples,
        "has_progress": wiring.callback is not None or wiring.open_display is not None,
        "store": wiring.open_store is not None,
    }


def _name_of(task: ModelTask | CallableTask) -> str:
    """The task in a few words: of a prompt only the names of its inputs and outputs."""
    if isinstance(task, CallableTask):
        return task.name
    return f"{', '.join(task.inputs)} -> {', '.join(task.outputs)}"
