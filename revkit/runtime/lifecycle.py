"""The lifecycle of a run: what is done when, and what a stop does.

:meth:`Run.advance` touches neither a thread nor a loop. It says what the run wants next: a
:class:`Call`, which may block, or a :class:`Wait`. ``run.execute`` carries these out in the calling
thread, ``run.aexecute`` in the caller's task.

A stop (a timeout, a token, an interrupt, a failure) reaches the scheduler first, so that nothing
can turn it into success, and the engine second. Workers then have a moment to end. Those that do
not are given up, and their rows count as cancelled.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from ..record.record import Record
from ..scheduling.events import Stop, StopKind
from ..scheduling.scheduler import Scheduler
from .cancel import CancelToken
from .drain import INTERRUPTED, Drain
from .engines import Ended, Engine
from .engines.handover import HandOver
from .wiring import Wiring

__all__ = ["Call", "Run", "Wait", "timed_out"]

#: The drain looks up at least this often (seconds), so that an interrupt never waits for a reply.
_TICK = 0.1
#: Seconds that running attempts have to end after a stop that cancels them.
_GRACE = 1.0


@dataclass(frozen=True, slots=True)
class Call:
    """Call a function that may block.

    Attributes:
        may_be_left: an interrupt need not wait for it.
    """

    function: Callable[[], object]
    may_be_left: bool = False


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait so many seconds, or until the run's ``wake`` is called."""

    seconds: float


class InterruptState(Protocol):
    """What a run asks about interrupts.

    Attributes:
        error: what ends the run; None while there was no interrupt.
        again: there was another one, so the run ends at once.
    """

    @property
    def error(self) -> BaseException | None: ...
    @property
    def again(self) -> bool: ...
    def hold(self) -> None:
        """From here on no interrupt raises: the results are being written."""


class Run:
    """One run of a plan, as steps.

    Making it opens the store, so it may block.

    Args:
        wake: ends a :class:`Wait`; called from any thread.
        interrupts: whether the user has interrupted the run.
        make_engine: makes the engine; called with this object when there is work for it.
        may_wait: reporting may wait a moment, for observers.
        now: the system's monotonic clock, in seconds.
    """

    def __init__(
        self,
        wiring: Wiring,
        wake: Callable[[], None],
        interrupts: InterruptState,
        make_engine: Callable[[Run], Engine],
        *,
        may_wait: bool = True,
        now: Callable[[], float] = time.monotonic,
    ):
        self.wiring = wiring
        self._crowded = wiring.make_room()
        plan, failures = wiring.plan, wiring.plan.options.failures
        self._limits = plan.options.limits
        self._now = now
        self.hand_over = HandOver(wake)
        self._wake = wake
        self._interrupts = interrupts
        self._make_engine = make_engine
        self._engine: Engine | None = None
        #: seconds of the run that passed before its engine started
        self.looked = 0.0
        store = None if wiring.open_store is None else wiring.open_store()
        try:
            ahead = None if store is None else wiring.lookahead(store)
            self.scheduler = Scheduler(
                plan.todo if ahead is None else (),
                more=ahead is not None,
                commits=ahead is not None,
                max_workers=plan.workers,
                retry=failures.retry,
                max_failures=failures.limit(plan.total),
                fail_fast=failures.fail_fast,
                failed=len(plan.refused),
                throttle=wiring.throttle(),
            )
            if plan.answered or plan.alive:
                self.scheduler.answered(alive=plan.alive)
            self.drain = Drain(wiring, self.scheduler, wake, ahead, may_wait=may_wait)
        except BaseException:
            if store is not None:
                store.close()
            raise
        self._steps = self._story()

    def advance(self, error: BaseException | None = None) -> Call | Wait | None:
        """The next step; None when the run is over, and ``record`` is complete.

        An interrupt ends the run, not this method: the record has ``ended_by`` set.

        Args:
            error: what the last step raised.
        """
        try:
            return next(self._steps) if error is None else self._steps.throw(error)
        except StopIteration:
            return None

    @property
    def is_over(self) -> bool:
        return inspect.getgeneratorstate(self._steps) == inspect.GEN_CLOSED

    @property
    def record(self) -> Record:
        return self.drain.record

    def _story(self) -> Generator[Call | Wait, None, None]:
        drain = self.drain
        try:
            with self._stopped_by_token():
                yield from self._before()
                yield from self._during()
            ended = self._ended_at()
            yield from self._step()
            if times := self.scheduler.crowding.times:
                drain.record.warnings.append(crowded_out(times))
            yield Call(drain.close_store)
            drain.close(ended=ended)
            yield Call(lambda: drain.close_observers(self._is_interrupted))
        except BaseException as error:
            self._stop(INTERRUPTED)
            drain.break_off(error)
            raise
        finally:
            self.hand_over.end()
            if self._engine is not None:
                self._engine.close()

    def close(self) -> None:
        """Leave the screen and the store as they should stay, however the run ended. May block."""
        self.drain.release()

    def _before(self) -> Generator[Call | Wait, None, None]:
        """Look rows up in the store, and let the client get ready if one needs it."""
        wiring, timeout, drain = self.wiring, self._limits.timeout, self.drain
        began = drain.record.began
        try:
            drain.begin()
            yield from self._step()
            while drain.is_looking_up and not self._is_interrupted():
                if timeout is not None and self._now() - began >= timeout:
                    self.scheduler.stop(timed_out(timeout))
                    break
                drain.open_display()
                if not drain.has_store_work:  # all rows wait for another run
                    yield Wait(_TICK)
                yield from self._step()
            if wiring.open_store is not None and wiring.plan.loop_factory is None:
                # Without a store it takes no time, nor on a virtual clock of the client's.
                self.looked = self._now() - began
            if drain.has_work and self.scheduler.stopped is None and not self._is_interrupted():
                yield Call(wiring.ready, may_be_left=True)
        except KeyboardInterrupt as error:  # of a call that was left, or a second one
            drain.record.ended_by = error
        if self._is_interrupted() or drain.record.ended_by is not None:
            drain.record.ended_by = drain.record.ended_by or self._interrupts.error
            self.scheduler.stop(INTERRUPTED)

    def _during(self) -> Generator[Call | Wait, None, None]:
        """Run the engine until its last worker is through, or the run has to end without it."""
        drain = self.drain
        give_up = float("inf")
        try:
            drain.open_display()
            self._start()
        except KeyboardInterrupt as error:  # a second one
            self._stop(INTERRUPTED)
            drain.record.ended_by, give_up = error, self._now()
        engine = self._engine
        try:
            while drain.ended is None and self._now() < give_up:
                if self._interrupts.again:
                    break
                yield Wait(_TICK)
                yield from self._step()
                stop = None if engine is None else engine.tick()
                if give_up == float("inf") and (stop := self._wanted_stop() or stop) is not None:
                    self._stop(stop)
                    give_up = self._now() + _GRACE
        except GeneratorExit:
            raise
        except BaseException as error:  # noqa: BLE001 - raised again, with all that is done
            self._stop(INTERRUPTED)
            drain.record.ended_by = error
        finally:
            self.hand_over.end()
        drain.record.ended_by = self._interrupts.error or drain.record.ended_by
        self._interrupts.hold()
        if engine is not None and drain.ended is None:
            self._explain(engine.give_up())

    def _start(self) -> None:
        """Start the engine, if there is work for it; from here on times are on its clock."""
        wiring, drain = self.wiring, self.drain
        if not drain.has_work or self.scheduler.stopped is not None:
            drain.ended = Ended()
            drain.starts(self._now, self._now(), looked=self.looked)
            wiring.started(self.scheduler.stop, lambda change: change())
            return
        if self._crowded:
            drain.record.warnings.append(self._crowded)
        engine = self._engine = self._make_engine(self)
        began = engine.start()
        drain.starts(engine.clock, began, looked=self.looked, apply=engine.apply)
        wiring.started(self._stop, engine.apply)

    def _step(self) -> Generator[Call | Wait, None, None]:
        """A step of the drain, for which a loop may stand still."""
        drain, asked = self.drain, self.hand_over.begin()
        try:
            drain.collect()
            if drain.has_store_work:
                yield Call(drain.visit_store)
            drain.report()
        finally:
            self.hand_over.finish(asked)

    def _is_interrupted(self) -> bool:
        return self._interrupts.error is not None

    def _wanted_stop(self) -> Stop | None:
        """Why running attempts have to be cancelled now; None where they need not be."""
        limits, stopped = self._limits, self.scheduler.stopped
        if self._is_interrupted():
            return INTERRUPTED
        if limits.cancel is not None and limits.cancel.cancelled:
            return _cancelled_by(limits.cancel)
        if limits.timeout is not None and self._elapsed() >= limits.timeout:
            return timed_out(limits.timeout)
        return stopped if stopped is not None and stopped.cancels else None

    def _elapsed(self) -> float:
        """Seconds since the run began."""
        clock = self._now if self._engine is None else self._engine.clock
        return clock() - self.drain.record.began

    def _stop(self, stop: Stop) -> None:
        """Stop the run: the scheduler first, then the engine. Called from any thread."""
        self.scheduler.stop(stop)
        if self._engine is not None:
            self._engine.stop(stop)

    def _explain(self, left: str | None) -> None:
        """Say what was left behind, where the user will look for it."""
        stopped = self.scheduler.stopped
        if left is None:
            return
        if stopped is None or self.drain.record.ended_by is not None:
            self.drain.record.warnings.append(left)
        elif left not in stopped.reason:
            self.scheduler.stopped = stopped._replace(reason=f"{stopped.reason}; {left}")

    def _ended_at(self) -> float:
        """When the last worker was through; the drain may have been behind."""
        ended = None if self.drain.ended is None else self.drain.ended.at
        if ended is not None:
            return ended
        return self._now() if self._engine is None else self._engine.clock()

    @contextmanager
    def _stopped_by_token(self) -> Iterator[None]:
        """When the user's token is cancelled, start nothing more, and look at the rest soon."""
        cancel = self._limits.cancel
        if cancel is None:
            yield
            return

        def stop() -> None:
            self.scheduler.stop(_cancelled_by(cancel))
            self._wake()

        take_back = cancel.on_cancel(stop)
        try:
            yield
        finally:
            take_back()


def _cancelled_by(cancel: CancelToken) -> Stop:
    return Stop(StopKind.CANCELLED, cancel.reason, cancels=True)


def crowded_out(times: int) -> str:
    """That the process ran out of file descriptors."""
    what = "request was" if times == 1 else "requests were"
    return (
        f"{times:,} {what} put off because this process had too many open files and connections; "
        "the run went on with fewer workers: raise the limit (ulimit -n), or set max_workers="
    )


def timed_out(seconds: float) -> Stop:
    """The stop of a run that had so much time."""
    return Stop(StopKind.TIMEOUT, f"timeout={seconds:g} s was over", cancels=True)
