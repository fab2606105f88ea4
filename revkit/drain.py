"""The one drain of a run, which owns every effect.

Workers only append facts to its queue and wake it. It alone writes the record, puts replies into
the store and looks rows up in it, moves the progress bar and calls the user's callback, so none of
these needs a lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from .clients.base import Reply
from .engines import Ended
from .events import Attempted, Status, Success
from .lookahead import Lookahead, Seen
from .plan import Plan
from .record import Record, RowResult
from .scheduler import Scheduler
from .task import ModelTask

if TYPE_CHECKING:
    from .progress import Bar

__all__ = ["Drain"]

#: Rows that are looked up before the workers come to them, beside two for each worker.
_AHEAD = 256


class Drain:
    """Takes the facts that workers report, and does what follows from them.

    A step has three parts: :meth:`collect`, :meth:`visit_store`, which may block, and
    :meth:`report`.

    Args:
        wake: lets whoever runs the drain take a step soon; called from any thread.
        ahead: looks rows up in the store; None where the run has none.

    Attributes:
        has_work: there is a row for an engine to run.
        tell: takes a change of the scheduler to where the engine makes it.
    """

    def __init__(
        self,
        plan: Plan,
        scheduler: Scheduler,
        wake: Callable[[], None],
        ahead: Lookahead | None = None,
    ):
        outputs = plan.task.outputs if isinstance(plan.task, ModelTask) else ()
        self.record = Record(plan.total, outputs, asks_model=plan.client is not None)
        self.ended: Ended | None = None
        self.has_work = ahead is None and plan.total > len(plan.refused)
        self.tell: Callable[[Callable[[], object]], object] = lambda change: change()
        self._plan = plan
        self._scheduler = scheduler
        self._wake = wake
        self._ahead = ahead
        self._facts: deque[Attempted | Ended] = deque()
        #: what was collected and is to be reported: rows that were settled, and good replies
        self._settled: list[Attempted] = []
        self._good: list[tuple[int, Reply]] = []
        self._seen: Seen | None = None
        self._more = ahead is not None
        #: row that runs or waits -> later ones that have the same prompt
        self._followers: dict[int, list[int]] = {}
        self._callback = plan.callback
        self._told = 0
        self._bar: Bar | None = None
        self._tokens = 0

    def emit(self, fact: Attempted | Ended) -> None:
        """Called by workers, from any thread."""
        self._facts.append(fact)
        self._wake()

    def begin(self) -> None:
        """Settle the rows that failed before anything was sent."""
        for row, failure in self._plan.refused.items():
            self.record.refused(row, failure)
            if self._callback is not None:
                self._call_back(RowResult(row, "error", error=str(failure)))

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
        record, keeps = self.record, self._ahead is not None
        while self._facts:
            fact = self._facts.popleft()
            if isinstance(fact, Ended):
                self.ended = fact
                break
            settled = record.attempted(fact)
            if settled and (keeps or self._callback is not None):
                self._settled.append(fact)
            if keeps and isinstance(fact.outcome, Success) and fact.outcome.reply is not None:
                self._good.append((fact.attempt.row, fact.outcome.reply))

    @property
    def has_store_work(self) -> bool:
        """Whether :meth:`visit_store` has something to do."""
        return bool(self._good) or self._wants_rows

    @property
    def _wants_rows(self) -> bool:
        if not self._more or self._ahead is None or self._scheduler.stopped is not None:
            return False
        return self._ahead.pending < 2 * self._plan.workers + _AHEAD

    def visit_store(self) -> None:
        """Put good replies away, in one commit, and look up the next rows. May block."""
        assert self._ahead is not None
        if self._good:
            self._ahead.keep(self._good)
        if self._wants_rows:
            self._seen = self._ahead.look()

    def report(self) -> None:
        """Tell the scheduler, the user's callback and the bar what has become of rows."""
        if self._settled or self._good or self._seen is not None:
            self._report()
        self._show()

    def _report(self) -> None:
        record, ahead = self.record, self._ahead
        record.stopped = self._scheduler.stopped  # a cancelled row says why
        failed = record.failed
        told: list[RowResult] = []
        settled, self._settled = self._settled, []
        for fact in settled:
            row = fact.attempt.row
            if self._callback is not None:
                told.append(record.row_result(fact))
            if ahead is not None:
                ahead.settled(row)
                for follower in self._followers.pop(row, ()):
                    self._share(follower, row, told)
        if ahead is not None:
            rows = self._settle_unattempted(told)
            self._tell_scheduler(rows, failed=record.failed - failed)
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
            if self._callback is not None:
                told.append(record.unattempted(row))
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
            self._wake()

    def open_bar(self) -> None:
        """Show the progress bar, if the user wants one."""
        if self._bar is None and self._plan.open_bar is not None:
            self._bar = self._plan.open_bar(self._plan.total)
        self._show()

    def _show(self) -> None:
        if self._bar is not None:
            record = self.record
            tokens = sum(
                count
                for column in (record.prompt_tokens, record.completion_tokens)
                for count in column[self._tokens :]
                if count > 0
            )
            self._tokens = len(record.prompt_tokens)
            self._bar.update(record.settled, record.failed, tokens, record.from_store)

    def close(self, *, began: float, ended: float) -> Record:
        """End the record."""
        record, plan, scheduler = self.record, self._plan, self._scheduler
        running = scheduler.running
        self.step()  # what was reported since the last step, by rows that are not in ``running``
        record.began = began
        record.workers, record.engine = plan.workers, plan.engine
        scheduler.close()
        record.limits = scheduler.limits
        if self.ended is not None and self.ended.crash is not None:
            record.ended_by = self.ended.crash
        self.close_store()
        if self._ahead is not None:
            record.store, record.store_problem = self._ahead.path, self._ahead.problem
        record.close(ended=ended, running=running, stopped=scheduler.stopped)
        for row, followers in self._followers.items():  # of rows that were to be tried again
            for follower in followers:
                self._share(follower, row, [])
        return record

    def close_store(self) -> None:
        """Write what could not be written so far, and close the store. May block."""
        if self._ahead is not None:
            self._ahead.close()

    def put_away(self) -> None:
        """Leave the screen and the store as they should stay, however the run ended."""
        if self._bar is not None:
            self._bar.close()
        self.close_store()

    def _call_back(self, row: RowResult) -> None:
        self._told += 1
        if self._callback is None:
            return
        try:
            self._callback(self._told, self._plan.total, row)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - reported, and the run goes on
            self._callback = None
            # Said when the run is over: where warnings are errors, it would end the run.
            self.record.warnings.append(
                f"the progress callback raised {type(error).__name__}: {error}; it was not "
                "called again, and the run went on"
            )
