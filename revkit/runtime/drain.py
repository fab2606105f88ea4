"""The one drain of a run, which owns every effect.

Workers only append facts to its queue and wake it. It alone writes the record, puts replies into
the store and looks rows up in it, moves the progress bar and calls the user's callback, so none of
these needs a lock.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from ..observers.stream import Data, EventStream
from ..record.record import Record, RowResult
from ..scheduling.events import (
    CANCELLED,
    Attempted,
    Decision,
    Held,
    Started,
    Status,
    Stop,
    StopKind,
    Success,
)
from ..scheduling.scheduler import Scheduler
from ..task.chat import Reply
from ..task.kinds import CallableTask, ModelTask
from .engines import Ended
from .lookahead import Lookahead, Seen
from .plan import Display, Plan

if TYPE_CHECKING:
    from ..observers import Event, Observers

__all__ = ["INTERRUPTED", "Drain"]

INTERRUPTED = Stop(StopKind.INTERRUPTED, "it was interrupted", cancels=True)
#: What events call their source.
SOURCE = "revkit.parallel_map"

#: Seconds that observers have for what is left to them when the run is over; an interrupt waits
#: for less.
_OBSERVERS_WAIT, _OBSERVERS_WAIT_INTERRUPTED = 10.0, 0.5
#: Rows that are looked up before the workers come to them, beside two for each worker.
_AHEAD = 256


class Drain:
    """Takes the facts that workers report, and does what follows from them.

    A step has three parts: :meth:`collect`, :meth:`visit_store`, which may block, and
    :meth:`report`.

    Args:
        wake: lets whoever runs the drain take a step soon; called from any thread.
        ahead: looks rows up in the store; None where the run has none.
        may_wait: :meth:`report` may wait a moment, for observers.

    Attributes:
        has_work: there is a row for an engine to run.
        is_awaited: rows may wait for the drain, when many good replies are not committed yet.
        tell: takes a change of the scheduler to where the engine makes it.
    """

    def __init__(
        self,
        plan: Plan,
        scheduler: Scheduler,
        wake: Callable[[], None],
        ahead: Lookahead | None = None,
        *,
        may_wait: bool = True,
    ):
        outputs = plan.task.outputs if isinstance(plan.task, ModelTask) else ()
        self.record = Record(
            plan.total, outputs, asks_model=plan.client is not None, samples=plan.samples
        )
        self.record.workers, self.record.engine = plan.workers, plan.engine
        self.ended: Ended | None = None
        self.has_work = ahead is None and plan.total > len(plan.refused)
        self.tell: Callable[[Callable[[], object]], object] = lambda change: change()
        self._plan = plan
        self._scheduler = scheduler
        self.wake = wake
        self._ahead = ahead
        self.is_awaited = ahead is not None
        self._facts: deque[Started | Held | Attempted | Ended] = deque()
        #: what was collected and is to be reported: rows that were settled, and good replies
        self._settled: list[Attempted] = []
        self._good: list[tuple[int, Reply]] = []
        self._seen: Seen | None = None
        self._more = ahead is not None
        #: row that runs or waits -> later ones that have the same prompt
        self._followers: dict[int, list[int]] = {}
        self._callback = plan.callback
        self._told = 0
        #: rows that were settled without an attempt since the last report
        self._unattempted = 0
        self._open_display = plan.open_display
        self._display: Display | None = None
        self._is_closed = False
        self._clock: Callable[[], float] = time.monotonic
        #: of the drain's making, on its clock
        self._origin = self.record.began = self._clock()
        self._may_wait = may_wait
        self._observers: Observers | None = None
        self._stream: EventStream | None = None
        #: what was collected and is to be told to observers
        self._heard: list[Started | Held | Attempted] = []
        self._stored: tuple[int, float] | None = None
        if plan.observers:
            self._observe()

    def _observe(self) -> None:
        from ..observers import Observers

        # On a loop of the caller's own nothing may be waited for.
        chosen = self._plan.observers
        self._observers = Observers(chosen) if self._may_wait else Observers(chosen, patience=0)
        self._stream = EventStream(self._send, self._send_all, self.record, self._plan.place)
        self._scheduler.tell = self._hear

    def _send(self, kind: str, at: float, data: Data | Callable[[], Data]) -> None:
        assert self._observers is not None
        self._observers.send(partial(self._event, kind, at - self._origin, data))

    def _send_all(self, at: float, make: Callable[[], Iterator[tuple[str, Data]]]) -> None:
        assert self._observers is not None
        since, event = at - self._origin, self._event
        self._observers.send_all(lambda: (event(kind, since, data) for kind, data in make()))

    def _event(self, kind: str, since: float, data: Data | Callable[[], Data]) -> Event:
        """Made on an observer's thread."""
        from ..observers import Event

        when = self.record.started_at + timedelta(seconds=max(0.0, since))
        timestamp = when.isoformat(timespec="microseconds")
        made = data() if callable(data) else data
        return Event(kind, timestamp, SOURCE, self.record.run_id, made)

    def emit(self, fact: Started | Held | Attempted | Ended) -> None:
        """Called by workers, from any thread; who emits also wakes the drain in time."""
        self._facts.append(fact)

    def _hear(self, fact: Started | Held) -> None:
        self._facts.append(fact)
        self.wake()

    def begin(self) -> None:
        """Settle the rows that failed before anything was sent."""
        plan, now = self._plan, self._clock()
        if self._stream is not None:
            self._stream.begin(now, **_facts_of(plan))
        for row, failure in plan.refused.items():
            self.record.refused(row, failure)
            if self._stream is not None:
                self._stream.settled(row, now)
            if self._callback is not None:
                self._call_back(RowResult(row, "error", error=str(failure)))

    def starts(self, clock: Callable[[], float], began: float, *, looked: float) -> None:
        """An engine starts: from here on times are on its clock.

        Args:
            began: when it started.
            looked: seconds that belong to the run before that.
        """
        record, before = self.record, self._origin
        self._origin = began - (self._clock() - before)
        self._clock = clock
        record.began = began - looked
        record.visits = [(record.began + (at - before), rows) for at, rows in record.visits]

    @property
    def looks_on(self) -> bool:
        """Whether rows are left to be looked up, and none so far needs the model."""
        return self._wants_rows and not self.has_work

    def step(self) -> None:
        """Do all that follows from what was reported since the last step."""
        self.collect()
        if self.has_store_work:
            self.visit_store()
        self.report()

    def collect(self) -> None:
        """Write down what was reported."""
        record, keeps, heard = self.record, self._ahead is not None, self._stream is not None
        tells = keeps or heard or self._callback is not None
        while self._facts:
            fact = self._facts.popleft()
            if isinstance(fact, Ended):
                self.ended = fact
                break
            if heard:
                self._heard.append(fact)
            if not isinstance(fact, Attempted):
                continue
            settled = record.attempted(fact)
            if settled and tells:
                self._settled.append(fact)
            if keeps and isinstance(fact.outcome, Success) and fact.outcome.reply is not None:
                self._good.append((fact.attempt.row, fact.outcome.reply))
        if record.stopped_at is None and self._scheduler.stopped is not None:
            record.stopped_at = self._clock()

    @property
    def has_store_work(self) -> bool:
        """Whether :meth:`visit_store` has something to do."""
        return bool(self._good) or self._wants_rows

    @property
    def _wants_rows(self) -> bool:
        if not self._more or self._ahead is None or self._scheduler.stopped is not None:
            return False
        return self._ahead.ready and self._ahead.pending < 2 * self._plan.workers + _AHEAD

    def visit_store(self) -> None:
        """Put good replies away, in one commit, and look up the next rows. May block."""
        assert self._ahead is not None
        if self._good:
            began = time.monotonic()
            if replies := self._ahead.keep(self._good):
                self._stored = replies, time.monotonic() - began
        if self._wants_rows:
            self._seen = self._ahead.look()

    def report(self) -> None:
        """Tell the scheduler, observers, the user's callback and the bar what became of rows."""
        self.record.stopped = self._scheduler.stopped  # a cancelled row says why
        if self._stream is not None:
            heard, self._heard = self._heard, []
            for fact in heard:
                self._stream.tell(fact)
                if not isinstance(fact, Attempted) or fact.decision is Decision.RETRY:
                    continue
                if self._ahead is None:  # else when it is committed
                    self._stream.settled(fact.attempt.row, fact.end)
            if self._stored is not None:
                replies, seconds = self._stored
                self._stream.stored(self._clock(), replies=replies, seconds=seconds)
            if self._observers is not None and not self._observers.active:  # all were dropped
                self._stream = self._scheduler.tell = None
        self._stored = None
        if self._settled or self._good or self._seen is not None:
            self._report()
        self._show()

    def _report(self) -> None:
        record, ahead = self.record, self._ahead
        failed = record.failed
        told: list[RowResult] = []
        settled, self._settled = self._settled, []
        for fact in settled:
            row = fact.attempt.row
            if self._stream is not None:
                self._stream.settled(row, self._clock())
            if self._callback is not None:
                told.append(record.row_result(fact))
            if ahead is not None:
                ahead.settled(row)
                for follower in self._followers.pop(row, ()):
                    self._share(follower, row, told)
        if ahead is not None:
            rows = self._settle_unattempted(told)
            self._tell_scheduler(rows, failed=record.failed - failed)
        if self._unattempted:
            record.visits.append((self._clock(), self._unattempted))
            self._unattempted = 0
        for result in told:
            self._call_back(result)

    def _settle_unattempted(self, told: list[RowResult]) -> list[int]:
        """Settle what was seen to need no attempt; gives the rows that need the model."""
        seen, self._seen = self._seen, None
        if seen is None:
            return []
        record, self._more = self.record, seen.more
        for row, values, reply in seen.kept:
            record.kept(row, values, reply)
            self._settle(row, told)
        for row, twin in seen.twins:
            if record.status[twin] is Status.NOT_STARTED:
                self._followers.setdefault(twin, []).append(row)
            else:
                self._share(row, twin, told)
        return seen.run

    def _share(self, row: int, twin: int, told: list[RowResult]) -> None:
        """Let a row share its twin's outcome; it stays as it is where that one was cancelled."""
        if self.record.status[twin] in (Status.OK, Status.ERROR):
            self.record.shared(row, twin)
            self._settle(row, told)

    def _settle(self, row: int, told: list[RowResult]) -> None:
        """A row was settled without an attempt."""
        self._unattempted += 1
        if self._stream is not None:
            self._stream.settled(row, self._clock())
        if self._callback is not None:
            told.append(self.record.unattempted(row))

    def _tell_scheduler(self, rows: list[int], *, failed: int) -> None:
        committed, self._good = len(self._good), []
        more, scheduler = self._more, self._scheduler
        self.has_work = self.has_work or bool(rows)
        if self.ended is not None:
            return

        def change() -> None:
            scheduler.committed(committed)
            scheduler.failed_without(failed)
            scheduler.add(rows, more=more)

        self.tell(change)
        if self._wants_rows:
            self.wake()

    def open_display(self) -> None:
        """Show how far the run is, if the user wants to see it."""
        open_display, self._open_display = self._open_display, None
        if open_display is not None:
            with self._display_may_fail():
                self._display = open_display(self._plan.total)
        self._show()

    def _show(self) -> None:
        record = self.record
        if self._display is None or self._is_closed:
            return
        record.holds, record.limits = self._scheduler.holds, self._scheduler.limits
        record.ended = self._clock()  # so far
        with self._display_may_fail():
            self._display.update(record)

    @contextmanager
    def _display_may_fail(self) -> Iterator[None]:
        """A display that raises is dropped, and the run goes on."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - reported, and the run goes on
            self._display = None
            self.record.warnings.append(
                f"the progress display raised {type(error).__name__}: {error}; it was not "
                "drawn again, and the run went on"
            )

    def close(self, *, ended: float) -> Record:
        """End the record, and tell observers."""
        record, scheduler = self.record, self._scheduler
        running = scheduler.running
        self.step()  # what was reported since the last step, by rows that are not in ``running``
        for attempt, start in running:
            if record.status[attempt.row] is Status.NOT_STARTED:  # the engine could not end it
                fact = Attempted(attempt, start, ended, CANCELLED, Decision.CANCEL)
                record.attempted(fact)
                self._heard += [fact] if self._stream is not None else []
        scheduler.close()
        record.limits, record.holds = scheduler.limits, scheduler.holds
        if self.ended is not None and self.ended.crash is not None:
            record.ended_by = self.ended.crash
        self.close_store()
        if self._ahead is not None:
            record.store, record.store_problem = self._ahead.path, self._ahead.problem
            record.weights = self._ahead.weights
        self._is_closed = True
        record.close(ended=ended, stopped=scheduler.stopped)
        for row, followers in self._followers.items():  # of rows that were to be tried again
            for follower in followers:
                self._share(follower, row, [])
        self.report()
        if self._stream is not None:
            self._stream.end(max(ended, self._clock()))
        return record

    def break_off(self, error: BaseException) -> None:
        """The run ends before it has a result: observers are told so."""
        if not self._is_closed:
            self._is_closed = True
            self.record.ended_by = error
            self.record.close(ended=self._clock(), stopped=None)
            if self._stream is not None:
                self._stream.end(self.record.ended)

    def close_observers(self, hurried: Callable[[], bool] = lambda: False) -> None:
        """Wait until observers have had all events, or have had their time. May block.

        Args:
            hurried: looked at meanwhile; True: wait no longer.
        """
        observers, self._observers, self._stream = self._observers, None, None
        if observers is None:
            return
        if self.record.ended_by is not None:
            told = observers.close(_OBSERVERS_WAIT_INTERRUPTED)
        else:
            told = observers.close(_OBSERVERS_WAIT, hurried=hurried)
        self.record.warnings += told

    def close_store(self) -> None:
        """Write what could not be written so far, and close the store. May block."""
        if self._ahead is not None:
            self._ahead.close()

    def put_away(self) -> None:
        """Leave the screen and the store as they should stay, however the run ended."""
        if self._display is not None:
            with self._display_may_fail():
                self._display.close()
        self.close_store()
        self.close_observers()

    def _call_back(self, row: RowResult) -> None:
        self._told += 1
        if self._callback is None:
            return
        if self._plan.positions is not None or self._plan.samples > 1:
            number, sample = self._plan.place(row.row)
            row = replace(row, row=number, sample=sample)
        try:
            self._callback(self._told, self._plan.total, row)
        except KeyboardInterrupt as error:  # from here it would take what is done with it
            self._callback = None
            self.record.ended_by = error
            self._scheduler.stop(INTERRUPTED)
        except BaseException as error:  # noqa: BLE001 - reported, and the run goes on
            self._callback = None
            # Said when the run is over: where warnings are errors, it would end the run.
            self.record.warnings.append(
                f"the progress callback raised {type(error).__name__}: {error}; it was not "
                "called again, and the run went on"
            )


def _facts_of(plan: Plan) -> dict[str, Any]:
    """What observers are told of a run when it starts."""
    client = plan.client
    return {
        "worker_count": plan.workers,
        "engine": plan.engine,
        "fail_fast": plan.fail_fast,
        "max_failures": plan.max_failures,
        "adaptive": plan.adaptive is not None,
        "task": _name_of(plan.task),
        "model": None if client is None else client.model or client.name,
        "provider": None if client is None else client.provider or None,
        "samples": plan.samples,
        "has_progress": plan.callback is not None or plan.open_display is not None,
        "store": plan.open_store is not None,
    }


def _name_of(task: ModelTask | CallableTask) -> str:
    """The task in a few words; of a prompt nothing but what goes in and out of it."""
    if isinstance(task, CallableTask):
        return task.name
    return f"{', '.join(task.inputs)} -> {', '.join(task.outputs)}"
