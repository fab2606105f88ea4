"""The thread engine: for plain functions, and for clients that were given an ``httpx.Client``."""

from __future__ import annotations

import contextvars
import threading
import time

from ..events import Attempted
from ..scheduler import DONE, WAIT, Scheduler
from ..work import Work
from . import Emit, Ended

__all__ = ["ThreadEngine"]


class ThreadEngine:
    """Runs ``workers`` daemon threads over ``scheduler``."""

    name = "thread"
    clock = staticmethod(time.monotonic)

    def __init__(self, scheduler: Scheduler, work: Work, *, workers: int, emit: Emit):
        self._scheduler = scheduler
        self._work = work
        self._workers = workers
        self._emit = emit
        #: guards the scheduler; notified when workers that wait have a reason to ask again
        self._changed = threading.Condition(threading.Lock())
        self._waiting = 0
        self._left = workers
        self._crash: BaseException | None = None

    def start(self) -> None:
        """Start the workers. :class:`Ended` is emitted when the last one is through."""
        self._work.open(self._workers)
        for worker in range(self._workers):
            run = contextvars.copy_context().run
            name = f"revkit-worker-{worker}"
            thread = threading.Thread(target=run, args=(self._run, worker), name=name, daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # the system gives no more threads
                with self._changed:
                    self._scheduler.stop("the system could not start another thread")
                    self._crash = error
                    self._changed.notify_all()
                    self._left -= self._workers - worker
                    last = not self._left
                if last:
                    self._end()
                return

    def cancel(self) -> None:
        """Start nothing more. What runs cannot be cancelled in a thread; it is left to itself."""
        with self._changed:
            self._scheduler.stop("the run was cancelled")
            self._changed.notify_all()

    def _run(self, worker: int) -> None:
        try:
            self._work_off(worker)
        except BaseException as error:  # noqa: BLE001 - a fault of revkit itself: never hang on it
            with self._changed:
                self._crash = self._crash or error
                self._scheduler.stop("revkit itself failed")
                self._changed.notify_all()
        with self._changed:
            self._left -= 1
            last = not self._left
        if last:
            self._end()

    def _work_off(self, worker: int) -> None:
        scheduler, changed, clock = self._scheduler, self._changed, self.clock
        with changed:
            step = scheduler.take(worker)
        while True:
            if step is WAIT:
                with changed:
                    self._waiting += 1
                    while (step := scheduler.take(worker)) is WAIT:
                        changed.wait()
                    self._waiting -= 1
            if step is DONE:
                return
            assert not isinstance(step, type(WAIT))
            start = clock()
            outcome = self._work.attempt(step)
            end = clock()
            # One lock for both: every hand-over of a contended lock is a switch of threads.
            with changed:
                decision = scheduler.settle(step, outcome)
                following = scheduler.take(worker)
                if self._waiting and scheduler.waiters_due:
                    changed.notify_all()
                # Inside the lock: a row that is not running any more has been reported.
                self._emit(Attempted(step, start, end, outcome, decision))
            step = following

    def _end(self) -> None:
        try:
            self._work.close()
        finally:
            self._emit(Ended(self._crash))
