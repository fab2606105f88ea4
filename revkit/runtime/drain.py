"""The one drain of a run: everything that happened passes through it, and every effect is its own.

Workers only append facts to its queue and wake it. In each step it writes the record, visits the
store, and reports to the scheduler, the observers and the user, in this order. So none of these
needs a lock. What each effect is, its sink knows (``sinks/``).
"""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime

from ..record.record import Record, RowResult
from ..scheduling.events import (
    CANCELLED,
    Attempted,
    Decided,
    Decision,
    Held,
    Started,
    Status,
    Stop,
    StopKind,
)
from ..scheduling.scheduler import Scheduler
from ..task.kinds import ModelTask
from .engines import Ended
from .lookahead import Lookahead
from .sinks.progress import ProgressSink
from .sinks.store import StoreSink
from .wiring import Wiring

__all__ = ["INTERRUPTED", "Drain"]

INTERRUPTED = Stop(StopKind.INTERRUPTED, "it was interrupted", cancels=True)


class Drain:
    """Takes the facts that workers report, and does what follows from them.

    A step has three parts: :meth:`collect`, :meth:`visit_store`, which may block, and
    :meth:`report`.

    Args:
        wake: lets whoever runs the drain take a step soon; called from any thread.
        lookahead: looks rows up in the store; None where the run has none.
        may_wait: :meth:`report` may wait a moment, for observers.

    Attributes:
        emit: takes a fact; called by workers, from any thread. Who emits also wakes the drain.
        ended: the engine's last fact, once it was collected.
    """

    def __init__(
        self,
        wiring: Wiring,
        scheduler: Scheduler,
        wake: Callable[[], None],
        lookahead: Lookahead | None = None,
        *,
        may_wait: bool = True,
    ):
        plan = wiring.plan
        outputs = plan.task.outputs if isinstance(plan.task, ModelTask) else ()
        record = self.record = Record(
            plan.total,
            outputs,
            asks_model=plan.client is not None,
            samples=plan.samples,
            run_id=uuid.uuid4().hex,
            started_at=datetime.now(UTC),
        )
        record.workers, record.engine = plan.workers, plan.engine
        self.wake = wake
        self.ended: Ended | None = None
        self._plan = plan
        self._scheduler = scheduler
        self._clock: Callable[[], float] = time.monotonic
        record.began = self._clock()
        self._facts: deque[Started | Held | Attempted | Decided | Ended] = deque()
        self.emit = self._facts.append
        scheduler.decided = self.emit
        #: what was collected and is to be reported
        self._settled: list[Attempted] = []
        self._is_closed = False
        self._progress = ProgressSink(wiring, record)
        self._store = None
        if lookahead is not None:
            self._store = StoreSink(lookahead, record, scheduler)
        self._events = None
        if wiring.observers:
            from .sinks.events import EventSink

            self._events = EventSink(wiring, record, began=record.began, may_wait=may_wait)
            scheduler.listener = self._hear

    @property
    def is_awaited(self) -> bool:
        """Whether rows may wait for the drain, when many good replies are not committed yet."""
        return self._store is not None

    @property
    def has_work(self) -> bool:
        """Whether there is a row for an engine to run."""
        if self._store is not None:
            return self._store.found_work
        return self._plan.total > len(self._plan.refused)

    @property
    def is_looking_up(self) -> bool:
        """Whether rows are left to be looked up, and none so far needs the model."""
        return self._store is not None and self._store.has_rows and not self._store.found_work

    @property
    def has_store_work(self) -> bool:
        """Whether :meth:`visit_store` has something to do."""
        return self._store is not None and self._store.has_work

    def _hear(self, fact: Started | Held) -> None:
        self.emit(fact)
        self.wake()

    def begin(self) -> None:
        """Settle the rows that failed before anything was sent."""
        now = self._clock()
        if self._events is not None:
            self._events.begin(now)
        for row, failure in self._plan.refused.items():
            self.record.refused(row, failure)
            if self._events is not None:
                self._events.settled(row, now)
            self._call_back(RowResult(row, "error", error=str(failure)))

    def starts(
        self,
        clock: Callable[[], float],
        began: float,
        *,
        looked: float,
        apply: Callable[[Callable[[], object]], object] | None = None,
    ) -> None:
        """An engine starts: from here on times are on its clock.

        Args:
            began: when it started.
            looked: seconds that belong to the run before that.
            apply: makes a change of the scheduler where the engine makes its own.
        """
        record, before = self.record, self.record.began
        if self._events is not None:
            self._events.starts_at(began - (self._clock() - before))
        if self._store is not None and apply is not None:
            self._store.apply = apply
        self._clock = clock
        record.began = began - looked
        record.visits = [(record.began + (at - before), rows) for at, rows in record.visits]

    def collect(self) -> None:
        """Write down what was reported."""
        record, store, events = self.record, self._store, self._events
        heard = events is not None and events.is_heard
        reports = store is not None or heard or self._progress.wants_rows
        while self._facts:
            fact = self._facts.popleft()
            if isinstance(fact, Ended):
                self.ended = fact
                break
            if events is not None and heard:
                events.take(fact)
            if isinstance(fact, Decided) and record.decided(fact.fact) and reports:
                self._settled.append(fact.fact)
            if not isinstance(fact, Attempted):
                continue
            if record.attempted(fact) and reports:
                self._settled.append(fact)
            if store is not None:
                store.take(fact)
        if record.stopped_at is None and self._scheduler.stopped is not None:
            record.stopped_at = self._clock()

    def visit_store(self) -> None:
        """Put good replies away, in one commit, and look up the next rows. May block."""
        assert self._store is not None
        self._store.visit()

    def report(self) -> None:
        """Tell the scheduler, observers, the user's callback and the bar what became of rows."""
        record, store, events = self.record, self._store, self._events
        record.stopped = self._scheduler.stopped  # a cancelled row says why
        if events is not None:
            events.report(
                self._clock(), settles=store is None
            )  # with a store: when it is committed
            if store is not None and (committed := store.committed()) is not None:
                events.stored(self._clock(), replies=committed[0], seconds=committed[1])
            if not events.is_heard:
                self._scheduler.listener = None
        if self._settled or (store is not None and store.has_news):
            self._report_rows()
        self._show()

    def _report_rows(self) -> None:
        record, store = self.record, self._store
        failed, results = record.failed, list[RowResult]()
        settled, self._settled = self._settled, []
        unattempted = 0
        for fact in settled:
            row = fact.attempt.row
            self._send_settled(row)
            if self._progress.wants_rows:
                results.append(record.row_result(fact))
            if store is not None:
                unattempted += self._settle(store.settled(row), results)
        if store is not None:
            unattempted += self._settle(store.settle_kept(), results)
            more = store.hand_on(failed=record.failed - failed, ended=self.ended is not None)
            if more:
                self.wake()
        if unattempted:
            record.visits.append((self._clock(), unattempted))
        for result in results:
            self._call_back(result)

    def _settle(self, rows: list[int], results: list[RowResult]) -> int:
        """These rows were settled without an attempt of their own; gives how many they are."""
        for row in rows:
            self._send_settled(row)
            if self._progress.wants_rows:
                results.append(self.record.unattempted(row))
        return len(rows)

    def _send_settled(self, row: int) -> None:
        if self._events is not None:
            self._events.settled(row, self._clock())

    def _call_back(self, row: RowResult) -> None:
        error = self._progress.settled(row)
        if error is not None:
            self.record.ended_by = error
            self._scheduler.stop(INTERRUPTED)

    def open_display(self) -> None:
        """Show how far the run is, if the user wants to see it."""
        self._progress.open_display()
        self._show()

    def _show(self) -> None:
        record = self.record
        if self._is_closed or not self._progress.is_shown:
            return
        record.holds, record.limits = self._scheduler.holds, self._scheduler.limits
        record.away = self._scheduler.away
        record.ended = self._clock()  # so far
        self._progress.show()

    def close(self, *, ended: float) -> None:
        """End the record, and tell observers."""
        record, scheduler = self.record, self._scheduler
        running = scheduler.running
        # What was reported since the last step, by rows that are not in ``running``.
        self.collect()
        if self.has_store_work:
            self.visit_store()
        self.report()
        for attempt, start in running:
            if record.status[attempt.row] is Status.NOT_STARTED:  # the engine could not end it
                fact = Attempted(attempt, start, ended, CANCELLED, Decision.CANCEL)
                record.attempted(fact)
                if self._events is not None:
                    self._events.take(fact)
        scheduler.close()
        record.limits, record.holds = scheduler.limits, scheduler.holds
        crash = None if self.ended is None else self.ended.crash
        # After a stop, an engine that was cancelled from outside says nothing new.
        if crash is not None and (scheduler.stopped is None or isinstance(crash, Exception)):
            record.ended_by = crash
        self._is_closed = True
        away = scheduler.away is not None
        record.close(ended=ended, stopped=scheduler.stopped, away=away)
        if self._store is not None:
            self._store.close()
            self._settle(self._store.end(), [])
        self.report()
        if self._events is not None:
            self._events.end(max(ended, self._clock()))

    def break_off(self, error: BaseException) -> None:
        """The run ends before it has a result: send the last event."""
        if not self._is_closed:
            self._is_closed = True
            self.record.ended_by = error
            self.record.close(ended=self._clock(), stopped=None)
            if self._events is not None:
                self._events.end(self.record.ended)

    def close_observers(self, hurried: Callable[[], bool] = lambda: False) -> None:
        """Wait until observers have received all events, or have had their time. May block."""
        if self._events is not None:
            self.record.warnings += self._events.close(hurried)

    def close_store(self) -> None:
        """Write what could not be written so far, and close the store. May block."""
        if self._store is not None:
            self._store.close()

    def release(self) -> None:
        """Leave the screen and the store as they should stay, however the run ended."""
        self._progress.close()
        self.close_store()
        self.close_observers()
