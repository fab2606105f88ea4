"""The thread engine: for plain functions, and for clients that were given an ``httpx.Client``."""

from __future__ import annotations

import contextvars
import math
import threading
import time
from collections.abc import Callable

from ...errors import message_of, plural
from ...scheduling.events import CANCELLED, Attempt, Stop, StopKind
from ...scheduling.scheduler import DONE, WAIT, Scheduler
from ..work import Attempts, Work
from . import OFTEN, Emit, Ended, overran

__all__ = ["ThreadEngine"]


class ThreadEngine:
    """Runs ``workers`` daemon threads over ``scheduler``.

    A thread cannot be cancelled. Where it asks a model, a stop that cancels aborts what it waits
    for, at once; where it runs a user's function, it is left to itself. An attempt that overruns
    ``attempt_timeout`` is abandoned: its late result is ignored, and another thread takes the
    worker's place, as often as there are workers; then the run is stopped.

    Args:
        wake: wakes the drain, for which there are facts.
        awaited: rows wait for the drain; else it is in no hurry.
        attempt_timeout: seconds that one attempt may take; None: any time.
        fewer: receives the number of workers where the system does not give a thread to each, and
            what to say of it.
    """

    clock = staticmethod(time.monotonic)

    def __init__(
        self,
        scheduler: Scheduler,
        work: Work,
        *,
        workers: int,
        emit: Emit,
        wake: Callable[[], None],
        awaited: bool,
        attempt_timeout: float | None = None,
        fewer: Callable[[int, str], object] = lambda workers, why: None,
    ):
        self._scheduler = scheduler
        self._work = work
        self._workers = workers
        self._fewer = fewer
        self._emit = emit
        self._wake = wake
        self._awaited = awaited
        self._attempt_timeout = attempt_timeout
        #: guards all below and the scheduler; notified when a worker that waits should ask again
        self._changed = threading.Condition(threading.Lock())
        self._waiting = 0
        #: when the drain was last woken that is in no hurry
        self._woke = -math.inf
        #: until when the one waits that asks again in time; the others wait to be notified
        self._alarm: float | None = None
        self._left = workers
        self._replaced = 0
        #: worker -> what it is at, and since when
        self._at_work: dict[int, tuple[Attempt, float]] = {}
        self._crash: BaseException | None = None
        #: the run has ended without those that are at work
        self._given_up = False

    def start(self) -> float:
        """Start the workers. :class:`Ended` is emitted when the last one is through."""
        began = self.clock()
        try:
            self._work.open(self._workers)
        except Exception as error:  # noqa: BLE001 - the run ends with it, as on the loop
            self._emit(Ended(error, self.clock()))
            self._wake()
            return began
        for worker in range(self._workers):
            try:
                self._spawn(worker)
            except (RuntimeError, MemoryError) as error:  # the system gives no more threads
                with self._changed:
                    self._fewer(worker, self._no_thread(worker, error))
                    if not worker:
                        self._fail(error, "the system could not start a thread")
                    self._left -= self._workers - worker
                    last = not self._left
                if last:
                    self._end()
                break
        return began

    def stop(self, stop: Stop) -> None:
        """Let the workers see that the run was stopped; abort requests if the stop cancels."""
        with self._changed:
            self._changed.notify_all()
        self._obey()

    def apply(self, change: Callable[[], object]) -> None:
        """Change something in the scheduler."""
        with self._changed:
            change()
            if self._scheduler.stopped is not None:
                self._changed.notify_all()
            elif self._waiting:
                self._wake_next(self.clock())

    def tick(self) -> None:
        """Abandon the attempts that have overrun their time.

        After a stop that cancels: abort what was between two waits when the others were aborted.
        """
        if self._obey() or self._attempt_timeout is None:
            return
        with self._changed:
            now = self.clock()
            for worker, mine in list(self._at_work.items()):
                if now - mine[1] > self._attempt_timeout:
                    self._abandon(worker, mine, now)

    def _obey(self) -> bool:
        stopped = self._scheduler.stopped
        if stopped is None or not stopped.cancels:
            return False
        self._work.abort(stopped.reason)
        return True

    def give_up(self) -> None:
        """The run ends now: attempts that still run count as cancelled."""
        with self._changed:
            self._given_up = True
            now = self.clock()
            for attempt, start in list(self._at_work.values()):
                self._emit(self._scheduler.account(attempt, start, CANCELLED, now))

    def close(self) -> None:
        """Nothing to release: the last worker has closed what they worked with."""

    def _abandon(self, worker: int, mine: tuple[Attempt, float], now: float) -> None:
        assert self._attempt_timeout is not None
        del self._at_work[worker]
        attempt, start = mine
        outcome = overran(self._attempt_timeout)
        self._emit(self._scheduler.account(attempt, start, outcome, now))
        self._wake()
        self._changed.notify_all()
        if not self._work.replaceable:
            limit = f"attempt_timeout={self._attempt_timeout:g}"
            self._lose_a_worker(f"an attempt on each of instances= overran {limit}")
            return
        self._replaced += 1
        if self._replaced > self._workers:
            reason = (
                f"{plural(self._replaced, 'attempt')} overran "
                f"attempt_timeout={self._attempt_timeout:g}; their threads cannot be cancelled "
                "and live on, so no more are started"
            )
            self._scheduler.stop(Stop(StopKind.FATAL, reason, cancels=True))
        try:
            self._spawn(worker)
        except (RuntimeError, MemoryError) as error:
            why = self._no_thread(self._left - 1, error)
            self._fewer(self._left - 1, why)
            self._lose_a_worker(why)

    def _no_thread(self, workers: int, error: BaseException) -> str:
        return (
            f"the system could not start another thread ({message_of(error)}), so the run had "
            f"{plural(workers, 'worker')} instead of {self._workers}; use fewer with max_workers=, "
            "or raise the limit of threads (ulimit -u)"
        )

    def _lose_a_worker(self, why: str) -> None:
        """Nobody takes the place of an abandoned worker; its state is not used again."""
        self._left -= 1
        if not self._left:
            reason = f"no worker is left: {why}"
            self._scheduler.stop(Stop(StopKind.FATAL, reason, cancels=True))
            self._end()

    def _fail(self, error: BaseException, reason: str) -> None:
        self._crash = self._crash or error
        self._scheduler.stop(Stop(StopKind.INTERRUPTED, reason, cancels=True))
        self._changed.notify_all()

    def _spawn(self, worker: int) -> None:
        run = contextvars.copy_context().run
        name = f"revkit-worker-{worker}"
        threading.Thread(target=run, args=(self._run, worker), name=name, daemon=True).start()

    def _run(self, worker: int) -> None:
        try:
            with self._work.worker(worker) as attempts:
                abandoned = self._work_off(worker, attempts)
        except BaseException as error:  # noqa: BLE001 - a fault of revkit itself: never hang on it
            abandoned = False
            with self._changed:
                self._fail(error, "revkit itself failed")
        if abandoned:
            return  # another thread has the place
        with self._changed:
            self._left -= 1
            last = not self._left
        if last:
            self._end()

    def _work_off(self, worker: int, attempts: Attempts) -> bool:
        """Take and settle until nothing is left; says whether the worker was abandoned."""
        scheduler, changed, clock = self._scheduler, self._changed, self.clock
        at_work = self._at_work
        with changed:
            step = self._take(worker, clock())
        while step is not None:
            start = clock()
            mine = at_work[worker] = (step, start)
            outcome = attempts(step)
            end = clock()
            # One lock for all: every hand-over of a contended lock is a switch of threads.
            with changed:
                if at_work.get(worker) is not mine:
                    return True
                if self._given_up:
                    return False
                del at_work[worker]
                # A row that is not running any more has been reported.
                self._emit(scheduler.account(step, start, outcome, end))
                if self._awaited or end - self._woke >= OFTEN or scheduler.stopped is not None:
                    self._woke = end
                    self._wake()
                step = self._take(worker, end)
        return False

    def _take(self, worker: int, now: float) -> Attempt | None:
        """The next attempt, waited for if need be; None when there is none. Holds the lock."""
        scheduler, changed = self._scheduler, self._changed
        while True:
            step = scheduler.take(worker, now)
            if isinstance(step, Attempt):
                if self._waiting:
                    self._wake_next(now)
                return step
            if step is DONE:
                changed.notify_all()
                return None
            alarm = None if step is WAIT else step
            mine = alarm is not None and (self._alarm is None or alarm < self._alarm)
            if mine:
                self._alarm = alarm
            self._waiting += 1
            if mine and alarm is not None:
                changed.wait(min(alarm - now, threading.TIMEOUT_MAX))
                self._alarm = None
            else:
                changed.wait()
            self._waiting -= 1
            now = self.clock()

    def _wake_next(self, now: float) -> None:
        """Let one waiting worker ask again, now or, by its alarm, in time. Holds the lock."""
        when = self._scheduler.due()
        if when <= now or when < (math.inf if self._alarm is None else self._alarm):
            self._changed.notify()

    def _end(self) -> None:
        at = self.clock()
        try:
            self._work.close()
        finally:
            self._emit(Ended(self._crash, at))
            self._wake()
