"""Which row runs next, on which worker, and whether it is retried: all of that is decided here.

The scheduler is a pure machine. Workers pull from it: :meth:`Scheduler.take` gives an attempt, a
time to ask again, :data:`WAIT` or :data:`DONE`; :meth:`Scheduler.settle` decides about its outcome;
:meth:`Scheduler.stop` starts nothing more. Time is an argument, in seconds. An engine calls it from
one place at a time: under a lock, or on its loop's thread.

A row is in exactly one of five places:

    waiting to be started -> running -> settled
                               ^  |        ^
                               |  v        |
                  to be tried again <- parked

A row is parked whose last attempt failed in a way that may be the server's fault: if the server
turns out to be away (:mod:`revkit.scheduling.outage`) the row is tried again, else it has failed.
With a store, a good reply holds its place until it is committed: a kill loses at most
``max_workers`` calls.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from .access import Access
from .crowding import Crowding
from .events import (
    CANCELLED,
    DONE,
    WAIT,
    Attempt,
    Attempted,
    Away,
    Decided,
    Decision,
    Failure,
    Held,
    Hold,
    HoldKind,
    Outcome,
    Started,
    Step,
    Stop,
    StopKind,
)
from .holds import Holds
from .outage import Outage, Sign, is_servers, is_timeout, sign_of
from .pacing import Pacer
from .policy import Retry, failure_stop
from .refusals import Refusals, pause_stop
from .unsettled import Trouble, Unsettled

if TYPE_CHECKING:
    from .throttle import Throttle

__all__ = ["DONE", "WAIT", "Scheduler"]


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
        crowding: how many attempts the machine has room for.
        decided: receives what became of each row that was parked.
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
        self._more, self._more_here, self._commits, self._uncommitted = more, more, commits, 0
        self.crowding = Crowding(max_workers)
        self._retry = Retry() if retry is None else retry
        self._max_failures, self._fail_fast, self._failures = max_failures, fail_fast, failed
        self._throttle = throttle
        self.listener = listener
        self.decided: Callable[[Decided], object] = lambda fact: None
        self._pacer = Pacer()
        self._refusals = Refusals(self._retry, self._pacer, chance)
        self._unsettled = Unsettled(self._retry, chance)
        self._again, self._trouble = self._unsettled.again, self._unsettled.trouble
        self._parked = self._unsettled.parked
        #: by row, what is running and since when; ``len`` never exceeds ``max_workers``
        self._running: dict[int, tuple[Attempt, float]] = {}
        #: nothing is started before this time, because the server asked for a pause
        self._paused_until = -math.inf
        self._holds = Holds()
        self._outage = Outage(self._retry)
        self._access = Access(max_workers)
        self.stopped: Stop | None = None
        self._count_failures(0)

    def take(self, worker: int, now: float) -> Step:
        """The next attempt for ``worker``; rows that are due to be tried again come first.

        Returns:
            An attempt; when there may be one, if nothing else changes; :data:`WAIT`; :data:`DONE`.
        """
        outage = self._outage
        if outage.is_away and now >= outage.deadline and self.stopped is None:
            self.stopped = outage.stop()
        if self.stopped is not None:
            return DONE
        if self.room <= 0:
            return outage.deadline if outage.is_away and outage.deadline < math.inf else WAIT
        again = bool(self._again) and self._again[0][0] <= now
        if again and outage.is_away and self._may_start():
            again = False  # a row that has not failed yet is the better probe
        if not again and not self._may_start():
            if self._again:
                return min(max(self._again[0][0], self._not_before), outage.deadline)
            if not (self._running or self._more or self._has_next()):
                return DONE
            return outage.deadline if outage.is_away and outage.deadline < math.inf else WAIT
        row = self._again[0][1] if again else self._next
        assert row is not None
        if now < self._paused_until or now < outage.next_probe:
            kind = HoldKind.OUTAGE if outage.is_away else HoldKind.PAUSE
            return self._hold(kind, row, worker, now, self._not_before)
        if self._pacer.on and not outage.is_away and (when := self._pacer.until(now)) > now:
            return self._hold(HoldKind.PACING, row, worker, now, when)
        if self._throttle is not None:
            refused = self._throttle.admit(row, self._again[0][3] if again else None, now)
            if isinstance(refused, Stop):
                self.stopped = refused.after(self.stopped)
                return DONE
            if refused is not None:
                kind = HoldKind.OUTAGE if outage.is_away else refused.why
                return self._hold(kind, row, worker, now, min(refused.until, outage.deadline))
        if self._holds.held is not None:
            self._holds.release(now)
        if again:
            due, _, number, failure = heapq.heappop(self._again)
            attempt = Attempt(row, number, worker, failure, due)
        else:
            self._next = None
            attempt = Attempt(row, 1, worker)
        self._running[row] = attempt, now
        if outage.is_narrow:
            outage.started(row)
        if self._pacer.on:
            self._pacer.started(row, now)
        if self.listener is not None:
            self.listener(Started(attempt, now))
        return attempt

    def add(self, rows: Iterable[int], *, more: bool, elsewhere: bool = False) -> None:
        """Give it rows; ``more``: others follow; ``elsewhere``: when another run lets them go."""
        self._batches.append(iter(rows))
        self._more, self._more_here = more, more and not elsewhere
        self._has_next()
        self._decide_the_rest()

    def committed(self, replies: int) -> None:
        """So many good replies cannot be lost any more."""
        self._uncommitted -= replies

    def failed_without(self, rows: int) -> None:
        """So many rows have failed without an attempt of their own."""
        self._count_failures(rows)

    def answered(self, *, alive: bool = False) -> None:
        """The model has replied to a row of this call before; ``alive``: since the call began."""
        self._access.know()
        self._outage.is_alive = self._outage.is_alive or alive

    def settle(self, attempt: Attempt, outcome: Outcome, now: float) -> Decision:
        """Decide what an attempt's outcome means; the worker that settles should take next."""
        return self.account(attempt, now, outcome, now).decision

    def account(self, attempt: Attempt, start: float, outcome: Outcome, now: float) -> Attempted:
        """:meth:`settle`, as the fact that a worker reports; ``start``: when it began its work."""
        decision = self._settle(attempt, outcome, now)
        again = self._trouble[attempt.row].again if decision is Decision.RETRY else None
        fact = Attempted(attempt, start, now, outcome, decision, again)
        if decision is Decision.PARK:
            self._parked[attempt.row] = fact
        elif self._parked:
            self._decide_the_rest()
        return fact

    def _settle(self, attempt: Attempt, outcome: Outcome, now: float) -> Decision:
        row, throttle = attempt.row, self._throttle
        running = len(self._running) + self._uncommitted
        start = self._running.pop(row)[1]
        if throttle is not None:
            throttle.settled(attempt, outcome, end=now)
        self._has_next()  # so that a stop, which looks at no row, finds all done where it is
        if isinstance(outcome, Failure):
            return self._failed(attempt, outcome, start, now, running)
        if self._pacer.on:
            self._pacer.ended(row, accepted=outcome is not CANCELLED)
        if outcome is CANCELLED:
            self._trouble.pop(row, None)
            self._outage.ended(row)
            return Decision.CANCEL
        self._trouble.pop(row, None)
        self._uncommitted += self._commits
        self._refusals.succeeded(now)
        if self.crowding.times:
            self.crowding.succeeded()
        if not self._access.is_granted:
            self._access.reply()
        if not self._outage.is_calm or self._parked:
            self._see_life(row, start, now)
        if throttle is not None and not self._outage.is_narrow:
            throttle.learn(outcome, start=start, end=now, running=running)
        return Decision.OK

    def _failed(
        self, attempt: Attempt, failure: Failure, start: float, now: float, running: int
    ) -> Decision:
        """Decide what becomes of a row whose attempt has failed."""
        row, outage, sign = attempt.row, self._outage, sign_of(failure)
        if failure.reply is not None:
            self._access.reply()
        if sign is Sign.LIFE:
            self._see_life(row, start, now)
        if failure.denied:
            if self._access.deny():
                self._end(self._access.reason(str(failure)))
        elif failure.ends_run:
            self._end(str(failure))
        can_park = False
        if failure.transient and sign is not Sign.LIFE and outage.covers(start):
            if outage.lasts(row, failure, now):
                self._go_on(now)
            when = self._hold_over(row, failure, now)
        else:
            when = self._next_try(attempt, failure, start, now)
            if sign is not Sign.TROUBLE or self.stopped is not None:
                outage.ended(row)
            else:
                if self._throttle is not None and self._throttle.alive:
                    outage.is_alive = True
                trouble = self._trouble[row]
                if trouble.epoch is None:
                    trouble.epoch = outage.epoch
                can_park = outage.is_alive
                is_first = trouble.epoch == outage.epoch
                counts = self._more or self._has_next() or (is_first and is_servers(failure))
                if outage.trouble(
                    row, failure, now, counts=counts, running=running, is_free=trouble.is_free
                ):
                    when, can_park = self._suspend(row, when, failure, now), False
            self._learn(row, failure, start, now, running)
        if when is not None:
            self._trouble[row].again = when if self.stopped is None else None
            self._unsettled.retry(attempt, failure, when)
            return Decision.RETRY
        if can_park and not self._is_rest():
            return Decision.PARK
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

        A time that is past: now; infinity: it waits for a change. A limit may have it wait on.
        """
        if self.stopped is not None:
            return -math.inf
        deadline = self._outage.deadline if self._outage.is_away else math.inf
        if self.room <= 0:
            return deadline
        if self._may_start():
            return min(self._not_before, deadline)
        if self._again:
            return min(max(self._again[0][0], self._not_before), deadline)
        return -math.inf if self._is_done() else deadline

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
    def tried(self) -> int:
        """How many rows have failed so far, and are not running."""
        return len(self._again) + len(self._parked)

    @property
    def holds(self) -> list[Hold]:
        """When no attempt might start though there was a place for it, in order of time."""
        return self._holds.spans

    @property
    def away(self) -> Away | None:
        """Since when the server is away; None while it is not."""
        return self._outage.away

    @property
    def room(self) -> int:
        """How many attempts more might run, 0 or fewer where there is no place for another one."""
        limit, throttle = self.crowding.limit, self._throttle
        if throttle is not None:
            limit = min(limit, throttle.limit)
        room = limit - len(self._running) - self._uncommitted
        return min(room, self._outage.room) if self._outage.is_narrow else room

    @property
    def _not_before(self) -> float:
        """Nothing starts before this time: the server pauses, or is away."""
        return max(self._paused_until, self._outage.next_probe)

    def _has_next(self) -> bool:
        """Whether there is a row that was never started; looks at it."""
        while self._next is None and self._batches:
            self._next = next(self._batches[0], None)
            if self._next is None:
                self._batches.popleft()
        return self._next is not None

    def _may_start(self) -> bool:
        """Whether a row may be started that never was.

        None is while so many rows have failed, or are tried again, that the run might have to stop
        for them: else most rows would have failed by then. Parked rows do not count.
        """
        doubtful = self._failures + len(self._trouble) - len(self._parked)
        if self._max_failures is not None and doubtful > self._max_failures:
            return False
        return self._has_next()

    def _is_done(self) -> bool:
        # Looks at no row: ``stop`` comes from any thread.
        started = self._next is None and not self._batches
        return started and not (self._running or self._again or self._more)

    def _is_rest(self) -> bool:
        """Whether nothing is left but rows that are parked."""
        return not (self._running or self._again or self._more_here or self._has_next())

    def _end(self, reason: str) -> None:
        """Stop the run, for every other row would fail in the same way."""
        self.stopped = Stop(StopKind.FATAL, reason, cancels=True).after(self.stopped)

    def _hold_over(self, row: int, failure: Failure, now: float) -> float | None:
        """When a row is tried again whose attempt failed because the server is away."""
        if failure.run_pause:
            self._pause(failure.run_pause, failure, now)
        if self._pacer.on:
            self._pacer.ended(row, accepted=False)
        trouble = self._trouble.setdefault(row, Trouble(began=now))
        trouble.failures += is_timeout(failure)
        return now if trouble.failures < self._retry.attempts else None

    def _suspend(self, row: int, when: float | None, failure: Failure, now: float) -> float | None:
        """The server is away: all rows wait for it, and may have their attempts back.

        Gives when the row is tried again whose attempt showed it, or None; ``when``: it would be
        otherwise.
        """
        outage = self._outage
        forgives = outage.forgives
        outage.begin(failure, now)
        self._holds.begin_outage(now)
        if self._throttle is not None:
            self._throttle.forget()
        self._decide(self._unsettled.suspend(outage.rows, now, forgives=forgives))
        back = forgives and self._unsettled.has_attempts(row)
        return now if when is not None or back else None

    def _see_life(self, row: int, start: float, now: float) -> None:
        """The server has answered an attempt, which began at ``start``."""
        limit = self.crowding.limit
        if self._throttle is not None:
            limit = min(limit, self._throttle.limit)
        if self._outage.life(row, now, workers=limit):
            self._go_on(now)
        if self._outage.is_away:
            return
        if self._parked:
            self._decide(self._unsettled.take_parked(start))
        if self._throttle is not None:
            self._throttle.believe(now)

    def _go_on(self, now: float) -> None:
        """The server is not away any more."""
        self._holds.end_outage(now)
        self._unsettled.skip(self._outage.since, now)

    def _learn(self, row: int, failure: Failure, start: float, now: float, running: int) -> None:
        """Take a failure as a sign of load, at once or when it is sure that it was one."""
        if self._throttle is None or self._outage.is_away:
            return
        if row in self._outage.rows:
            self._throttle.doubt(failure, start=start, running=running)
        elif not self._outage.is_narrow:
            self._throttle.learn(failure, start=start, end=now, running=running)

    def _decide_the_rest(self) -> None:
        """With nothing else left to show that the server is away, parked rows have failed."""
        if self._parked and self._is_rest():
            self._decide(self._unsettled.take_parked(math.inf))

    def _decide(self, facts: list[Decided]) -> None:
        """Rows are parked no more."""
        for fact in facts:
            self.decided(fact)
            if fact.fact.decision is Decision.FAIL:
                del self._trouble[fact.fact.attempt.row]
                self._count_failures(1)

    def _next_try(
        self, attempt: Attempt, failure: Failure, start: float, now: float
    ) -> float | None:
        """When the row is tried again, None if it is not."""
        trouble = self._trouble.setdefault(attempt.row, Trouble(began=now))
        oldest = next((since for _, since in self._running.values()), now)
        refusal = self._refusals.judge(
            attempt.row, trouble.refusals, failure, start=start, now=now, oldest=oldest
        )
        if failure.no_room:
            wait = self.crowding.crowded_out(len(self._running))
            refusal = refusal._replace(wait=wait, counts=False)
        if refusal.run_pause:
            self._pause(refusal.run_pause, failure, now)
        if self.stopped is not None:
            return None
        return self._unsettled.next_try(trouble, failure, refusal, now)

    def _hold(self, kind: HoldKind, row: int, worker: int, now: float, until: float) -> float:
        """Write down that a row has to wait; gives the time until which it has to."""
        if self._holds.hold(kind, row, now, until) and self.listener is not None:
            self.listener(Held(kind, row, worker, now, until))
        return until

    def _pause(self, pause: float, failure: Failure, now: float) -> None:
        """Let all workers pause, because the server asked one of them to."""
        if stop := pause_stop(failure, self._retry.max_pause):
            self.stopped = stop.after(self.stopped)
        if self._throttle is not None:
            self._throttle.paused(pause, now)
        self._paused_until = max(self._paused_until, now + pause)

    def _count_failures(self, more: int) -> None:
        self._failures += more
        if stop := failure_stop(self._failures, self._max_failures, fail_fast=self._fail_fast):
            self.stopped = stop.after(self.stopped)
