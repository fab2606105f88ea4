"""Which row is tried next, by whom, and what becomes of it: everything that decides it is here.

The scheduler is a pure machine. Workers pull from it: :meth:`Scheduler.take` gives an attempt,
:data:`WAIT` or :data:`DONE`; :meth:`Scheduler.settle` says what the attempt's outcome means;
:meth:`Scheduler.stop` starts nothing more. It knows no threads, no loop and no clock. An engine
calls it from one place at a time: under a lock, or on its loop's thread.

A row is in exactly one of four places:

    waiting to be started -> running -> settled
                               ^  |
                               |  v
                             to be tried again
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from enum import Enum
from typing import Final, Literal

from .events import CANCELLED, Attempt, Decision, Failure, Outcome, Success

__all__ = ["DONE", "WAIT", "Scheduler"]


class _Word(Enum):
    WAIT = "wait"
    DONE = "done"


#: Nothing to take now; something may come when a running attempt is settled.
WAIT: Final = _Word.WAIT
#: Nothing to take any more.
DONE: Final = _Word.DONE


class Scheduler:
    """Hands out the attempts of one run.

    Args:
        rows: the row numbers to run, in order; taken lazily.
        max_workers: never more attempts than these are running.
        max_attempts: of one row whose outcome is a correctable failure.
    """

    def __init__(self, rows: Iterable[int], *, max_workers: int, max_attempts: int = 2):
        self._rows = iter(rows)
        self._max_workers = max_workers
        self._max_attempts = max_attempts
        #: rows never started yet, ``_rows``, are all gone
        self._exhausted = False
        #: (row, number of the next attempt, why the last one did not do)
        self._again: deque[tuple[int, int, Failure]] = deque()
        #: rows that are running; ``len`` never exceeds ``max_workers``
        self._running: set[int] = set()
        #: why the run was stopped, None while it goes on
        self.stopped: str | None = None

    def take(self, worker: int) -> Attempt | Literal[_Word.WAIT, _Word.DONE]:
        """The next attempt for ``worker``: rows to be tried again come first."""
        if self.stopped is not None:
            return DONE
        if len(self._running) >= self._max_workers:
            return WAIT
        if self._again:
            row, number, failure = self._again.popleft()
            self._running.add(row)
            return Attempt(row, number, worker, failure)
        if not self._exhausted:
            for row in self._rows:
                self._running.add(row)
                return Attempt(row, 1, worker)
            self._exhausted = True
        return WAIT if self._running else DONE

    def settle(self, attempt: Attempt, outcome: Outcome) -> Decision:
        """Decide what the outcome of a running attempt means.

        A worker that waits has a reason to ask again after each call: see :attr:`waiters_due`.
        """
        self._running.remove(attempt.row)
        if isinstance(outcome, Success):
            return Decision.OK
        if outcome is CANCELLED:
            return Decision.CANCEL
        if outcome.ends_run:
            self.stop(str(outcome))
        elif outcome.correctable and attempt.number < self._max_attempts and self.stopped is None:
            self._again.append((attempt.row, attempt.number + 1, outcome))
            return Decision.RETRY
        return Decision.FAIL

    def stop(self, reason: str) -> None:
        """Start nothing more. The first reason stands."""
        if self.stopped is None:
            self.stopped = reason

    @property
    def waiters_due(self) -> bool:
        """Whether workers that wait have something to take, or to hear that all is done."""
        if self.stopped is not None:
            return True
        if self._again or not self._exhausted:
            return len(self._running) < self._max_workers
        return not self._running

    @property
    def running(self) -> frozenset[int]:
        """The rows that are running."""
        return frozenset(self._running)
