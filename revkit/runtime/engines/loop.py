"""The loop engine: tasks on the running event loop, for models and for coroutine functions."""

from __future__ import annotations

import asyncio
import heapq
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from ...errors import message_of, type_of
from ...scheduling.events import CANCELLED, Attempt, Failure, Outcome, Step, Stop, StopKind
from ...scheduling.scheduler import DONE, WAIT, Scheduler
from ..cancel import is_done_to
from ..work import AsyncAttempts, Work
from . import OFTEN, Emit, Ended, overran

__all__ = ["LoopEngine", "clock_of", "is_uvloop"]

#: Attempts that never wait would keep the loop to themselves; at least so often (seconds) a
#: worker lets others run.
_BREATH = 0.001
#: Where rows wait for the drain, it is woken when so many turns of the loop brought no new fact, or
#: after so many facts: a commit costs as much as ten rows in it. A reply takes two turns from its
#: socket to its worker.
_QUIET, _ENOUGH = 3, 16
#: uvloop counts whole milliseconds from the last one that it looked at: a timer may be early by
#: so many seconds.
_EARLY = 0.0015


def is_uvloop(loop: asyncio.AbstractEventLoop) -> bool:
    return type(loop).__module__.partition(".")[0] == "uvloop"


def clock_of(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """The clock that a loop's timers go by, in seconds, as exact as it can be read.

    uvloop's ``time`` gives whole milliseconds and stands still within a turn of the loop; what it
    shows is the system's monotonic clock, which asyncio's loops show as well.
    """
    return time.monotonic if is_uvloop(loop) else loop.time


class LoopEngine:
    """Runs ``workers`` tasks over ``scheduler`` on the running loop.

    Args:
        wake: wakes the drain, for which there are facts.
        hand_over: wakes the drain where rows wait for it, and may give it a moment in which the
            loop stands still; None: rows do not wait, and the drain is in no hurry.
        attempt_timeout: seconds that one attempt may take; None: any time.
        timeout: seconds for the whole run, and the stop that comes then; None: any time.

    Attributes:
        changes: of the scheduler, which other threads ask for: they append one, and let the loop
            call :meth:`make_changes`.
    """

    #: those that it runs on, from when it does
    _loop: asyncio.AbstractEventLoop
    _clock: Callable[[], float]

    def __init__(
        self,
        scheduler: Scheduler,
        work: Work,
        *,
        workers: int,
        emit: Emit,
        wake: Callable[[], None],
        hand_over: Callable[[], object] | None,
        attempt_timeout: float | None = None,
        timeout: tuple[float, Stop] | None = None,
    ):
        self._timeout = timeout
        self._scheduler = scheduler
        self._work = work
        self._workers = workers
        self._emit = emit
        self._wake = wake
        self._hand_over = hand_over
        #: facts since the drain was woken; and whether it is watched when there are no more for now
        self._facts = 0
        self._watching = False
        #: when the drain was last woken that is in no hurry, on the loop's clock
        self._woke = float("-inf")
        self.attempt_timeout = attempt_timeout
        self._tasks: list[asyncio.Task[None]] = []
        #: when a worker last let others run, on the loop's clock
        self._breathed = 0.0
        #: a heap of the workers that wait, each with its future; and what wakes one in time
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._due: tuple[float, asyncio.TimerHandle] | None = None
        self._cancelled = False
        #: the run has ended without the attempts that still run
        self._given_up = False
        self.changes: deque[Callable[[], object]] = deque()

    def start(self) -> float:
        """Run on the running loop."""
        loop = asyncio.get_running_loop()
        self._clock = clock_of(loop)
        self._main = loop.create_task(self.run())
        return self._clock()

    def clock(self) -> float:
        return self._clock()

    async def run(self) -> None:
        """Work everything off; the last thing emitted is :class:`Ended`."""
        crash: BaseException | None = None
        loop = self._loop = asyncio.get_running_loop()
        clock = self._clock = clock_of(loop)
        at = clock()
        timer: asyncio.TimerHandle | None = None
        if self._timeout is not None:
            seconds, stop = self._timeout
            timer = loop.call_later(seconds, self.stop, stop)
        try:
            await self._work.aopen(self._workers)
            try:
                if self._scheduler.stopped is None:
                    self._tasks = [
                        asyncio.create_task(self._run(worker), name=f"revkit-worker-{worker}")
                        for worker in range(self._workers)
                    ]
                    await asyncio.wait(self._tasks)
                    at = clock()
                    crash = next(
                        (
                            error
                            for task in self._tasks
                            if not task.cancelled() and (error := task.exception())
                        ),
                        None,
                    )
            finally:
                await self._work.aclose()
        except BaseException as error:
            crash = error
            if not isinstance(error, Exception):
                raise
        finally:
            if timer is not None:
                timer.cancel()
            self._emit(Ended(crash, at))
            self._wake()

    def stop(self, stop: Stop) -> None:
        """Start nothing more, and cancel what runs if the stop says so. Call it on the loop."""
        self._scheduler.stop(stop)
        self._obey()

    def tick(self) -> None:
        """Nothing to look after: the loop has timers."""

    def give_up(self) -> None:
        """The run ends now; late results are ignored. Call it from any thread."""
        self._given_up = True

    def close(self) -> None:
        """Nothing to release: :meth:`run` has closed what the workers worked with."""

    def row_of(self, task: asyncio.Task[Any]) -> int | None:
        """The row that a task works on, if it is one of the workers. Call it from any thread."""
        for attempt, _ in self._scheduler.running:
            if attempt.worker < len(self._tasks) and self._tasks[attempt.worker] is task:
                return attempt.row
        return None

    def _obey(self) -> None:
        """Do what a stop of the scheduler asks for."""
        stopped = self._scheduler.stopped
        if stopped is None:  # all was done when the stop came
            return
        self._wake_all()
        if stopped.cancels and not self._cancelled:
            self._cancelled = True
            self._work.abort(stopped.reason)
            current = asyncio.current_task()
            for task in self._tasks:
                if task is not current:
                    task.cancel()

    def apply(self, change: Callable[[], object]) -> None:
        """Change something in the scheduler. Call it on the loop."""
        self.changes.append(change)
        self.make_changes()

    def make_changes(self) -> None:
        """Make the :attr:`changes` that are there. Call it on the loop."""
        if not self.changes:
            return
        while self.changes:
            self.changes.popleft()()
        if self._scheduler.stopped is not None:
            self._obey()
        elif self._waiting:
            now = self._clock()
            if self._scheduler.due() > now:
                self._wake_next(now)
            # All at once: each of them that saw to the next one would take a turn of the loop.
            for _ in range(min(self._scheduler.room, len(self._waiting))):
                self._wake_one()

    def _wake_drain(self, now: float) -> None:
        """Let the drain know of a fact, though not of each: threads that take turns cost more.

        Where rows wait for it, as soon as the loop has nothing else to do, or there are many.
        """
        self._facts += 1
        if self._hand_over is None:
            if now - self._woke >= OFTEN:
                self._woke = now
                self._wake()
        elif not self._watching:
            self._watching = True
            self._loop.call_soon(self._watch, self._facts, _QUIET)
        elif self._facts >= _ENOUGH:
            self._hand_over_now()

    def _watch(self, seen: int, turns: int) -> None:
        turns = turns - 1 if self._facts == seen else _QUIET
        if turns:
            self._loop.call_soon(self._watch, self._facts, turns)
        else:
            self._watching = False
            self._hand_over_now()

    def _hand_over_now(self) -> None:
        assert self._hand_over is not None
        self._facts = 0
        self._hand_over()
        self.make_changes()  # those that it has asked for by now

    def _wake_next(self, now: float) -> None:
        """Let one waiting worker ask again as soon as there is something for it."""
        when = self._scheduler.due()
        if when <= now:
            self._wake_one()
        elif when < math.inf:
            self._wake_at(when)

    def _wake_all(self) -> None:
        while self._waiting:
            self._wake_one()

    def _wake_one(self) -> None:
        """Let one waiting worker ask again; where it gets something it sees to the next one.

        The first by its number: where few may run, few lanes of the timeline are used.
        """
        while self._waiting:
            _, future = heapq.heappop(self._waiting)
            if not future.done():  # else its task was cancelled
                future.set_result(None)
                return

    def _wake_at(self, when: float) -> None:
        """Wake one at that time, if none is woken sooner."""
        if self._due is not None:
            due, alarm = self._due
            if due <= when:
                return
            alarm.cancel()
        at = when + _EARLY if is_uvloop(self._loop) else when
        self._due = when, self._loop.call_at(at, self._alarm)

    def _alarm(self) -> None:
        self._due = None
        self._wake_one()

    async def _run(self, worker: int) -> None:
        try:
            async with self._work.aworker(worker) as attempts:
                await self._work_off(worker, attempts)
        except BaseException:  # a fault of revkit itself: the others must not wait for ever
            reason = "revkit itself failed"
            self._scheduler.stop(Stop(StopKind.INTERRUPTED, reason, cancels=True))
            self._wake_all()
            raise

    async def _work_off(self, worker: int, attempts: AsyncAttempts) -> None:
        scheduler, clock = self._scheduler, self._clock
        limited, task = self.attempt_timeout is not None, asyncio.current_task()
        now = clock()
        while True:
            step = scheduler.take(worker, now)
            if not isinstance(step, Attempt):
                waited = await self._wait(worker, step)
                if waited is None:
                    self._wake_all()  # there is nothing for them either
                    return
                step = waited
            start = clock()
            if self._waiting:
                self._wake_next(start)
            try:
                outcome = await (self._limited(attempts(step)) if limited else attempts(step))
            except (asyncio.CancelledError, GeneratorExit) as error:
                if not is_done_to(task, error):  # something that the function awaited was cancelled
                    outcome = Failure(type_of(error), message_of(error), cause=error)
                elif isinstance(error, GeneratorExit):
                    raise
                else:
                    outcome = CANCELLED
            if self._given_up:
                return
            now = end = clock()
            self._emit(scheduler.account(step, start, outcome, end))
            if scheduler.stopped is not None:
                self._obey()
                self._wake()
            else:
                self._wake_drain(end)
            if outcome is CANCELLED:
                return
            if end - self._breathed >= _BREATH:
                self._breathed = end  # the others need not
                await asyncio.sleep(0)
                now = clock()

    async def _limited(self, attempt: Awaitable[Outcome]) -> Outcome:
        assert self.attempt_timeout is not None
        try:
            async with asyncio.timeout(self.attempt_timeout) as limit:
                return await attempt
        except TimeoutError:
            if not limit.expired():
                raise
            return overran(self.attempt_timeout)

    async def _wait(self, worker: int, step: Step) -> Attempt | None:
        """Wait until there is an attempt to take; None when there is none any more."""
        while not isinstance(step, Attempt):
            if step is DONE:
                return None
            if step is not WAIT:
                self._wake_at(step)
            future = self._loop.create_future()
            heapq.heappush(self._waiting, (worker, future))
            try:
                await future
            except asyncio.CancelledError:
                return None
            step = self._scheduler.take(worker, self._clock())
        return step
