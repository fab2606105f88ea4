"""The one drain of a run, which owns every effect.

Workers only append facts to its queue and wake it. It alone writes the record, moves the progress
bar and calls the user's callback, so none of these needs a lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from .engines import Ended
from .events import Attempted
from .plan import Plan
from .record import Record, RowResult
from .scheduler import Scheduler
from .task import ModelTask

if TYPE_CHECKING:
    from .progress import Bar

__all__ = ["Drain"]


class Drain:
    """Takes the facts that workers report, and does what follows from them."""

    def __init__(self, plan: Plan, scheduler: Scheduler, wake: Callable[[], None]):
        outputs = plan.task.outputs if isinstance(plan.task, ModelTask) else ()
        self.record = Record(plan.total, outputs, asks_model=plan.client is not None)
        self.ended: Ended | None = None
        self._plan = plan
        self._scheduler = scheduler
        self._callback = plan.callback
        self._bar: Bar | None = None
        self._facts: deque[Attempted | Ended] = deque()
        self._wake = wake
        self._tokens = 0

    def emit(self, fact: Attempted | Ended) -> None:
        """Called by workers, from any thread."""
        self._facts.append(fact)
        self._wake()

    def begin(self) -> None:
        """Settle the rows that need no attempt."""
        if self._plan.open_bar is not None:
            self._bar = self._plan.open_bar(self._plan.total)
        for row, failure in self._plan.refused.items():
            self.record.refused(row, failure)
            if self._callback is not None:
                self._tell(RowResult(row, "error", error=str(failure)))
        self._show()

    def step(self) -> None:
        """Write down everything that was reported since the last step."""
        facts, record = self._facts, self.record
        while facts:
            fact = facts.popleft()
            if isinstance(fact, Ended):
                self.ended = fact
                break
            if record.attempted(fact) and self._callback is not None:
                record.stopped = self._scheduler.stopped  # a cancelled row says why
                self._tell(record.row_result(fact))
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
            self._bar.update(record.settled, record.failed, tokens)

    def close(self, *, began: float, ended: float) -> Record:
        """End the record."""
        record, plan, scheduler = self.record, self._plan, self._scheduler
        running = scheduler.running
        self.step()  # what was reported since the last step, by rows that are not in ``running``
        record.began = began
        record.workers, record.engine = plan.workers, plan.engine
        if self.ended is not None and self.ended.crash is not None:
            record.ended_by = self.ended.crash
        record.close(ended=ended, running=running, stopped=scheduler.stopped)
        return record

    def put_away(self) -> None:
        """Leave the screen as it should stay, however the run ended."""
        if self._bar is not None:
            self._bar.close()

    def _tell(self, row: RowResult) -> None:
        assert self._callback is not None
        try:
            self._callback(self.record.settled, self._plan.total, row)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - reported, and the run goes on
            self._callback = None
            # Said when the run is over: where warnings are errors, it would end the run.
            self.record.warnings.append(
                f"the progress callback raised {type(error).__name__}: {error}; it was not "
                "called again, and the run went on"
            )
