"""Which row runs next, on which worker, and whether it is retried: all of that is decided here.

The scheduler is a pure machine. Workers pull from it: :meth:`Scheduler.take` gives an attempt, a
time to ask again, :data:`WAIT` or :data:`DONE`; :meth:`Scheduler.settle` decides about its outcome;
:meth:`Scheduler.stop` starts nothing more. It knows no threads, no loop and no clock: time is an
argument, in seconds. An engine calls it from one place at a time: under a lock, or on its loop's
thread.

A row is in exactly one of four places:

    waiting to be started -> running -> settled
                               ^  |
                               |  v
                             to be tried again

With a store, a good reply holds its place among the running until it is committed. So a kill of the
process loses at most ``max_workers`` calls.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final, Literal

from .events import (
    CANCELLED,
    Attempt,
    Attempted,
    Decision,
    Failure,
    Held,
    Hold,
    HoldKind,
    Outcome,
    Started,
    Stop,
    StopKind,
    Success,
)
from .policy import Retry, failure_stop

if TYPE_CHECKING:
    from .throttle import Throttle

__all__ = ["DONE", "WAIT", "Scheduler"]


class _Word(Enum):
    WAIT = "wait"
    DONE = "done"


#: Nothing to take now; something may come when a running attempt is settled.
WAIT: Final = _Word.WAIT
#: Nothing to take any more.
DONE: Final = _Word.DONE

#: Seconds: a worker that asks again is a little late.
_SAME_HOLD = 0.02

Step = Attempt | float | Literal[_Word.WAIT, _Word.DONE]


@dataclass(slots=True)
class _Trouble:
    """The history of a row that has failed."""

    began: float  #: when its first attempt ended
    failures: int = 0  #: those that count against ``Retry.attempts``
    again: float | None = None  #: when it is due to be retried
    correction: Failure | None = None  #: shown to the model in the next attempt


class Scheduler:
    """Hands out the attempts of one run.

    Args:
        rows: the row numbers to run, in order; taken lazily.
        more: others will be added later, by :meth:`add`.
        commits: a success holds its place until :meth:`committed`.
        max_workers: never more attempts than these are running.
        retry: when a failed attempt is tried again.
        max_failures: the run is stopped when more rows than this have failed; None: never.
        fail_fast: a stop for failures cancels what is running.
        failed: rows that have failed before any was started.
        throttle: limits that may have a row wait; None: there are none but ``max_workers``.
        listener: receives each attempt that starts, and each row that is held; None: nobody does.
        chance: random numbers, uniform in [0, 1).

    Attributes:
        stopped: why the run was stopped, None while it goes on.
        holds: when no attempt might start though there was a place for it, in order of time.
    """

    def __init__(
        self,
        rows: Iterable[int] = (),
        *,
        more: bool = False,
        commits: bool = False,
        max_workers: int,
        retry: Retry | None = None,
        max_failures: int | None = None,
        fail_fast: bool = False,
        failed: int = 0,
        throttle: Throttle | None = None,
        listener: Callable[[Started | Held], None] | None = None,
        chance: Callable[[], float] = random.random,
    ):
        #: what is left of the rows to be started, batch after batch
        self._batches: deque[Iterator[int]] = deque([iter(rows)])
        #: the next row to be started, where it has been looked at
        self._next: int | None = None
        self._more = more
        self._commits = commits
        self._uncommitted = 0
        self._max_workers = max_workers
        self._retry = Retry() if retry is None else retry
        self._max_failures = max_failures
        self._fail_fast = fail_fast
        self._failed = failed
        self._throttle = throttle
        self.listener = listener
        self._chance = chance
        #: (when, row, number of the next attempt, why the last one did not do), earliest first
        self._again: list[tuple[float, int, int, Failure]] = []
        #: only rows that are to be tried again, or are running once more
        self._trouble: dict[int, _Trouble] = {}
        #: by row, what is running and since when; ``len`` never exceeds ``max_workers``
        self._running: dict[int, tuple[Attempt, float]] = {}
        #: nothing is started before this time, because the server asked for a pause
        self._paused_until = float("-inf")
        self.holds: list[Hold] = []
        #: the row that is held now, and the kind of the hold
        self._held: tuple[int, HoldKind] | None = None
        self.stopped: Stop | None = None
        self._count_failures(0)

    def take(self, worker: int, now: float) -> Step:
        """The next attempt for ``worker``; rows that are due to be tried again come first.

        Returns:
            An attempt; the time at which there may be one, if no other change comes first; or
            :data:`WAIT` or :data:`DONE`.
        """
        if self.stopped is not None:
            return DONE
        if self.room <= 0:
            return WAIT
        again = bool(self._again) and self._again[0][0] <= now
        if not again and not self._may_start():
            if self._again:
                return max(self._again[0][0], self._paused_until)
            return WAIT if self._running or self._more or self._has_next() else DONE
        row = self._again[0][1] if again else self._next
        assert row is not None
        if now < self._paused_until:
            return self._hold(HoldKind.PAUSE, row, worker, now, self._paused_until)
        if self._throttle is not None:
            refused = self._throttle.admit(row, self._again[0][3] if again else None, now)
            if isinstance(refused, Stop):
                self.stopped = refused.after(self.stopped)
                return DONE
            if refused is not None:
                return self._hold(refused.why, row, worker, now, refused.until)
        if self._held is not None:
            self._end_hold(now)
        if again:
            due, _, number, failure = heapq.heappop(self._again)
            attempt = Attempt(row, number, worker, failure, due)
        else:
            self._next = None
            attempt = Attempt(row, 1, worker)
        self._running[row] = attempt, now
        if self.listener is not None:
            self.listener(Started(attempt, now))
        return attempt

    def add(self, rows: Iterable[int], *, more: bool) -> None:
        """Give it rows to run, after those that it has; ``more``: others will follow."""
        self._batches.append(iter(rows))
        self._more = more
        self._has_next()

    def committed(self, replies: int) -> None:
        """So many good replies cannot be lost any more."""
        self._uncommitted -= replies

    def failed_without(self, rows: int) -> None:
        """So many rows have failed without an attempt of their own."""
        self._count_failures(rows)

    def settle(self, attempt: Attempt, outcome: Outcome, now: float) -> Decision:
        """Decide what the outcome of a running attempt means.

        The worker that settles should take next: what it gets, others would have got.
        """
        return self.account(attempt, now, outcome, now).decision

    def account(self, attempt: Attempt, start: float, outcome: Outcome, now: float) -> Attempted:
        """:meth:`settle`, as the fact that a worker reports; ``start``: when it began its work."""
        decision = self._settle(attempt, outcome, now)
        again = self._trouble[attempt.row].again if decision is Decision.RETRY else None
        return Attempted(attempt, start, now, outcome, decision, again)

    def _settle(self, attempt: Attempt, outcome: Outcome, now: float) -> Decision:
        row = attempt.row
        if self._throttle is not None:
            self._throttle.settled(
                attempt,
                outcome,
                start=self._running[row][1],
                end=now,
                running=len(self._running) + self._uncommitted,
            )
        del self._running[row]
        self._has_next()  # so that a stop, which looks at no row, finds all done where it is
        if isinstance(outcome, Success) or outcome is CANCELLED:
            if self._trouble:
                self._trouble.pop(row, None)
            if outcome is CANCELLED:
                return Decision.CANCEL
            self._uncommitted += self._commits
            return Decision.OK
        if outcome.ends_run:
            self.stopped = Stop(StopKind.FATAL, str(outcome), cancels=True).after(self.stopped)
        when = self._next_try(attempt, outcome, now)
        if when is not None:
            trouble = self._trouble[row]
            trouble.again = when
            previous = trouble.correction or outcome
            heapq.heappush(self._again, (when, row, attempt.number + 1, previous))
            return Decision.RETRY
        self._trouble.pop(row, None)
        self._count_failures(1)
        return Decision.FAIL

    def stop(self, stop: Stop) -> None:
        """Start nothing more. The first reason stands, but a later stop may cancel what runs.

        Does nothing where all is done. May be called from any thread.
        """
        if self.stopped is not None or not self._is_done():
            self.stopped = stop.after(self.stopped)

    def due(self) -> float:
        """From when on a worker that waits would get something, were nothing else to happen.

        An attempt, or to hear that all is done; a time that is past: now; infinity: it waits for a
        change. A limit may still have it wait on.
        """
        if self.stopped is not None:
            return float("-inf")
        if self.room <= 0:
            return float("inf")
        if self._may_start():
            return self._paused_until
        if self._again:
            return max(self._again[0][0], self._paused_until)
        return float("-inf") if self._is_done() else float("inf")

    def close(self) -> None:
        """The run is over, whatever is still running."""
        if self._throttle is not None:
            self._throttle.close()

    @property
    def limits(self) -> list[tuple[float, int]]:
        """How many attempts were allowed to run from when on; empty where that never changed."""
        return [] if self._throttle is None else self._throttle.path

    @property
    def running(self) -> list[Started]:
        """What is running, in the order in which it was started."""
        return [Started(attempt, start) for attempt, start in list(self._running.values())]

    @property
    def room(self) -> int:
        """How many attempts more might run, 0 or fewer where there is no place for another one."""
        limit = self._max_workers if self._throttle is None else self._throttle.limit
        return limit - len(self._running) - self._uncommitted

    def _has_next(self) -> bool:
        """Whether there is a row that was never started; looks at it."""
        while self._next is None and self._batches:
            self._next = next(self._batches[0], None)
            if self._next is None:
                self._batches.popleft()
        return self._next is not None

    def _may_start(self) -> bool:
        """Whether a row may be started that never was.

        None is while so many rows have failed, or have failed so far and are tried again, that
        the run might have to stop for them: else most rows would have failed by then.
        """
        doubtful = self._failed + len(self._trouble)
        if self._max_failures is not None and doubtful > self._max_failures:
            return False
        return self._has_next()

    def _is_done(self) -> bool:
        # Looks at no row: ``stop`` comes from any thread.
        started = self._next is None and not self._batches
        return started and not (self._running or self._again or self._more)

    def _next_try(self, attempt: Attempt, failure: Failure, now: float) -> float | None:
        """When the row is tried again, None if it is not."""
        # A pause of 0 s is none: the row would be retried without end.
        if failure.run_pause:
            self._pause(failure, now)
        if self.stopped is not None:
            return None
        trouble = self._trouble.setdefault(attempt.row, _Trouble(began=now))
        if failure.correctable:
            if trouble.correction is not None or self._retry.attempts == 1:
                return None
            trouble.correction = failure
            return now
        if not failure.transient:
            return None
        if failure.run_pause:
            when = now + failure.run_pause
        else:
            trouble.failures += 1
            if trouble.failures >= self._retry.attempts:
                return None
            wait = self._retry.wait(trouble.failures, chance=self._chance())
            when = now + max(wait, failure.pause or 0.0)
        return when if when - trouble.began <= self._retry.max_elapsed else None

    def _hold(self, kind: HoldKind, row: int, worker: int, now: float, until: float) -> float:
        """Write down that a row has to wait; gives the time until which it has to."""
        held = (row, kind)
        if self._held == held:
            self.holds[-1] = self.holds[-1]._replace(end=until)
            return until
        if self._held is not None:
            self._end_hold(now)
        self._held = held
        last = self.holds[-1] if self.holds else None
        if last is not None and last.kind is kind and now - last.end < _SAME_HOLD:
            self.holds[-1] = last._replace(end=until)  # the next row waits for the same reason
        else:
            self.holds.append(Hold(kind, now, until))
        if self.listener is not None:
            self.listener(Held(kind, row, worker, now, until))
        return until

    def _end_hold(self, now: float) -> None:
        self._held = None
        last = self.holds[-1]
        self.holds[-1] = last._replace(end=min(last.end, now))

    def _pause(self, failure: Failure, now: float) -> None:
        """Let all workers pause, because the server asked one of them to."""
        pause = failure.run_pause
        if pause > self._retry.max_pause:
            reason = (
                f"the server asked for a pause of {pause:g} s, longer than "
                f"Retry(max_pause={self._retry.max_pause:g}): {failure}; raise max_pause=, or "
                "run it again later"
            )
            self.stopped = Stop(StopKind.PAUSE, reason, cancels=False).after(self.stopped)
        self._paused_until = max(self._paused_until, now + pause)

    def _count_failures(self, more: int) -> None:
        self._failed += more
        if stop := failure_stop(self._failed, self._max_failures, fail_fast=self._fail_fast):
            self.stopped = stop.after(self.stopped)
