"""One run, from a plan to its record: starts an engine and drains what it reports.

*One drain owns every effect.* Workers only append facts to a queue and wake the drain; it alone
writes the record and calls the user's progress callback, so none of these needs a lock. In
:func:`execute` the drain is the calling thread; in :func:`aexecute` it is the caller's task.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING, Literal, NamedTuple

from .cancel import CancelToken
from .clients.base import Client
from .engines import Ended
from .errors import UsageError
from .events import Attempted, Failure, Stop, StopKind
from .policy import Retry
from .record import Record, RowResult
from .scheduler import Scheduler
from .task import CallableTask, ModelTask
from .work import CallableWork, ModelWork, Rows, Work

if TYPE_CHECKING:
    import asyncio

    from .engines.loop import LoopEngine
    from .engines.threads import ThreadEngine
    from .progress import Bar


__all__ = ["Plan", "Progress", "aexecute", "available_cpus", "choose_engine", "execute"]

Progress = Callable[[int, int, RowResult], object]

#: The drain looks up at least this often (seconds), so that an interrupt never waits for a reply.
_TICK = 0.1
#: What runs in threads when the run is interrupted gets this long to end (seconds).
_GRACE = 1.0


@dataclass(frozen=True)
class Plan:
    """Everything that is decided before anything is sent.

    Attributes:
        refused: rows that fail without an attempt, and why.
        engine: ``"thread"`` or ``"async"``.
        loop: where the async engine runs when the caller does not await it.
        open_bar: opens a progress bar for so many rows, or None.
        callback: the user's progress callback, or None.
        retry: when a failed attempt is tried again.
        max_failures: the run is stopped when more rows than this have failed; None: never.
        fail_fast: a stop for failures cancels what is running.
        timeout: seconds for the whole run, or None.
        attempt_timeout: seconds for one attempt, or None.
        cancel: the user's token, or None.
    """

    task: ModelTask | CallableTask
    rows: Rows
    total: int
    client: Client | None
    engine: Literal["thread", "async"]
    loop: Literal["background", "notebook"]
    workers: int
    refused: Mapping[int, Failure] = field(default_factory=dict)
    open_bar: Callable[[int], Bar] | None = None
    callback: Progress | None = None
    retry: Retry = field(default_factory=Retry)
    max_failures: int | None = None
    fail_fast: bool = False
    timeout: float | None = None
    attempt_timeout: float | None = None
    cancel: CancelToken | None = None

    def work(self) -> Work:
        if isinstance(self.task, CallableTask):
            return CallableWork(self.task, self.rows)
        assert self.client is not None
        return ModelWork(self.task, self.client, self.rows)

    def prepare(self) -> None:
        """What the client does once before a run; may block."""
        if self.client is not None and isinstance(self.task, ModelTask):
            self.client.ready(self.task, max_workers=self.workers)


def available_cpus() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def choose_engine(
    wanted: str, task: ModelTask | CallableTask, client: Client | None
) -> Literal["thread", "async"]:
    """The engine for a task.

    Raises:
        UsageError: the task or its client cannot run on the engine that was asked for.
    """
    if wanted not in ("auto", "thread", "async"):
        raise UsageError(f'engine={wanted!r}: there are "auto", "thread" and "async"')
    can: tuple[str, ...]
    if isinstance(task, CallableTask):
        can = ("async",) if task.is_async else ("thread",)
        why = (
            f"{task.name} is a coroutine function, which runs on a loop"
            if task.is_async
            else f"{task.name} is a plain function, which would block the loop"
        )
    else:
        assert client is not None
        can = client.engines
        why = f"{client!r} runs on the other engine only"
    engine = can[0] if wanted == "auto" else wanted
    if engine not in can:
        raise UsageError(f'engine="{wanted}": {why}; leave engine= out, or pass "{can[0]}"')
    return "thread" if engine == "thread" else "async"


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


def _scheduler(plan: Plan) -> Scheduler:
    rows = (row for row in range(plan.total) if row not in plan.refused)
    return Scheduler(
        rows if plan.refused else range(plan.total),
        max_workers=plan.workers,
        retry=plan.retry,
        max_failures=plan.max_failures,
        fail_fast=plan.fail_fast,
        failed=len(plan.refused),
    )


def execute(plan: Plan) -> Record:
    """Carry a plan out; the calling thread is the drain.

    An interrupt (Ctrl-C, the notebook's stop button) ends the run, not this function: the record
    comes back with ``ended_by`` set.
    """
    from .engines.loop import runs_here

    if runs_here():
        raise UsageError(
            "parallel_map was called in a coroutine that runs on revkit's own event loop, which "
            "it would block; call `await revkit.aparallel_map(...)` there"
        )
    if plan.loop == "notebook":
        return _execute_on_notebook_loop(plan)
    woken = threading.Event()

    def wake() -> None:
        if not woken.is_set():  # far cheaper than to set it again
            woken.set()

    scheduler = _scheduler(plan)
    drain = Drain(plan, scheduler, wake)
    try:
        with _stopped_by(plan.cancel, scheduler, wake), ExitStack() as stack:
            if plan.total > len(plan.refused) and scheduler.stopped is None:
                plan.prepare()
            drain.begin()
            pressed = stack.enter_context(_first_interrupt())
            engine = stack.enter_context(_started(plan, scheduler, drain))
            watch = _Watch(plan, scheduler, engine, pressed)
            try:
                while drain.ended is None and not watch.is_over():
                    woken.wait(_TICK)
                    woken.clear()
                    drain.step()
            except BaseException as error:  # noqa: BLE001 - raised again, with all that is done
                engine.stop(_INTERRUPTED)
                drain.record.ended_by = error
            if pressed():
                drain.record.ended_by = KeyboardInterrupt()
            if drain.ended is None:
                engine.give_up()
            return drain.close(began=engine.began, ended=engine.clock())
    finally:
        drain.put_away()


_INTERRUPTED = Stop(StopKind.INTERRUPTED, "it was interrupted", cancels=True)


class _Engine(NamedTuple):
    """An engine at work beside the drain."""

    clock: Callable[[], float]
    began: float
    stop: Callable[[Stop], object]
    tick: Callable[[], object] = lambda: None
    give_up: Callable[[], object] = lambda: None


class _Watch:
    """Looks, at each tick of the drain, whether the run must be stopped."""

    def __init__(
        self, plan: Plan, scheduler: Scheduler, engine: _Engine, pressed: Callable[[], bool]
    ):
        self._plan = plan
        self._scheduler = scheduler
        self._engine = engine
        self._pressed = pressed
        self._give_up: float | None = None

    def is_over(self) -> bool:
        """Stop the engine if there is a reason; True when it has had its time to end after that."""
        plan, engine = self._plan, self._engine
        if self._give_up is not None:
            return time.monotonic() >= self._give_up
        if self._pressed():
            engine.stop(_INTERRUPTED)
        elif plan.cancel is not None and plan.cancel.cancelled:
            engine.stop(_cancelled_by(plan.cancel))
        elif plan.timeout is not None and engine.clock() - engine.began >= plan.timeout:
            engine.stop(_timed_out(plan.timeout))
        else:
            engine.tick()
            stopped = self._scheduler.stopped
            if stopped is None or not stopped.cancels:
                return False
            engine.stop(stopped)  # by a worker; the engine may have to cancel the others
        self._give_up = time.monotonic() + _GRACE
        return False


def _cancelled_by(cancel: CancelToken) -> Stop:
    return Stop(StopKind.CANCELLED, cancel.reason, cancels=True)


def _timed_out(seconds: float) -> Stop:
    return Stop(StopKind.TIMEOUT, f"timeout={seconds:g} s was over", cancels=True)


@contextmanager
def _stopped_by(
    cancel: CancelToken | None, scheduler: Scheduler, wake: Callable[[], object]
) -> Iterator[None]:
    """When the token is cancelled, start nothing more and let the drain see to what is running."""
    if cancel is None:
        yield
        return

    def stop() -> None:
        scheduler.stop(_cancelled_by(cancel))
        wake()

    take_back = cancel.on_cancel(stop)
    try:
        yield
    finally:
        take_back()


@contextmanager
def _started(plan: Plan, scheduler: Scheduler, drain: Drain) -> Iterator[_Engine]:
    """Start the plan's engine beside the calling thread."""
    if plan.total == len(plan.refused):
        drain.ended = Ended()
        yield _Engine(time.monotonic, time.monotonic(), lambda stop: None)
    elif plan.engine == "thread":
        threads = _threads(plan, scheduler, drain)
        began = threads.clock()
        threads.start()
        yield _Engine(threads.clock, began, threads.stop, threads.tick, threads.give_up)
    else:
        from .engines import loop as loops

        factory = plan.client.loop_factory if plan.client is not None else None
        engine = _tasks(plan, scheduler, drain)
        own = None if factory is None else loops.LoopThread(factory, "revkit-loop-of-a-run")
        loop = loops.background() if own is None else own.loop
        began = loop.time()
        loops.submit(loop, engine.run())
        try:
            yield _Engine(
                loop.time, began, lambda stop: loop.call_soon_threadsafe(engine.stop, stop)
            )
        finally:
            if own is not None:
                own.close()


def _threads(plan: Plan, scheduler: Scheduler, drain: Drain) -> ThreadEngine:
    from .engines.threads import ThreadEngine

    return ThreadEngine(
        scheduler,
        plan.work(),
        workers=plan.workers,
        emit=drain.emit,
        attempt_timeout=plan.attempt_timeout,
    )


def _tasks(plan: Plan, scheduler: Scheduler, drain: Drain) -> LoopEngine:
    from .engines.loop import LoopEngine

    return LoopEngine(
        scheduler,
        plan.work(),
        workers=plan.workers,
        emit=drain.emit,
        attempt_timeout=plan.attempt_timeout,
        timeout=None if plan.timeout is None else (plan.timeout, _timed_out(plan.timeout)),
    )


@contextmanager
def _first_interrupt(tell: Callable[[], object] = lambda: None) -> Iterator[Callable[[], bool]]:
    """Let the first Ctrl-C only set a flag, so that it never strikes between two lines of the
    drain; the second one raises as usual. Does nothing outside the main thread, and leaves a
    handler that is not Python's own alone.

    Args:
        tell: called by the first press. It runs between any two steps of the main thread, so it
            must not take a lock: the drain looks for the flag at its next tick.
    """
    flag: list[bool] = []
    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if not ours:
        yield lambda: bool(flag)
        return

    def press(number: int, frame: FrameType | None) -> None:
        if flag:
            signal.default_int_handler(number, frame)
        flag.append(True)
        tell()

    signal.signal(signal.SIGINT, press)
    try:
        yield lambda: bool(flag)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


async def aexecute(plan: Plan) -> Record:
    """Carry a plan out on the running loop; the caller's task is the drain.

    Cancelling the task ends the run, not this function: the record comes back with ``ended_by``
    set, and the caller raises it again.
    """
    import asyncio

    if plan.client is not None and plan.client.loop_factory is not None:
        raise UsageError(
            f"{plan.client!r} brings an event loop of its own: call parallel_map, which runs "
            "beside yours"
        )
    loop = asyncio.get_running_loop()
    woken = asyncio.Event()
    asked = False

    def wake() -> None:
        nonlocal asked
        if not asked:
            asked = True
            loop.call_soon_threadsafe(woken.set)

    scheduler = _scheduler(plan)
    drain = Drain(plan, scheduler, wake)
    engine = _Engine(loop.time, loop.time(), lambda stop: None)
    running: asyncio.Task[None] | None = None
    interrupted = False
    try:
        with _stopped_by(plan.cancel, scheduler, lambda: loop.call_soon_threadsafe(woken.set)):
            if plan.total > len(plan.refused) and scheduler.stopped is None:
                await asyncio.to_thread(plan.prepare)
            drain.begin()
            if plan.total == len(plan.refused):
                drain.ended = Ended()
            elif plan.engine == "thread":
                threads = _threads(plan, scheduler, drain)
                engine = _Engine(
                    threads.clock, threads.clock(), threads.stop, threads.tick, threads.give_up
                )
                threads.start()
            else:
                tasks = _tasks(plan, scheduler, drain)
                engine = _Engine(loop.time, loop.time(), tasks.stop)
                running = asyncio.create_task(tasks.run())
            watch = _Watch(plan, scheduler, engine, lambda: interrupted)
            while drain.ended is None and not watch.is_over():
                # A kernel delivers an interrupt only at the next event of the loop: here it is.
                tick = loop.call_later(_TICK, woken.set)
                try:
                    await woken.wait()
                except asyncio.CancelledError as error:
                    if interrupted:
                        raise  # cancelled once more while it ended
                    drain.record.ended_by = error
                    interrupted = True
                finally:
                    tick.cancel()
                woken.clear()
                asked = False
                drain.step()
            if running is not None and drain.ended is not None:
                await asyncio.wait([running])
            if drain.ended is None:
                engine.give_up()
        return drain.close(began=engine.began, ended=engine.clock())
    except BaseException:
        engine.stop(_INTERRUPTED)
        raise
    finally:
        drain.put_away()


def _execute_on_notebook_loop(plan: Plan) -> Record:
    """Run on the notebook's own loop, from a cell that is itself running on it.

    The one place for nest-asyncio: it lets a running loop run again. ``nest_asyncio2`` is the
    maintained successor; the original is archived and drops cells queued behind a nested run.
    """
    import asyncio

    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        raise UsageError(
            'loop="notebook": no event loop is running here; leave loop= out'
        ) from None
    if type(loop).__module__.split(".")[0] == "uvloop":
        raise UsageError(
            'loop="notebook": uvloop cannot run a loop inside itself; leave loop= out, or '
            "`await df.llm.aparallel_map(...)`"
        )
    import nest_asyncio2

    nest_asyncio2.apply(loop)
    task = loop.create_task(aexecute(plan))
    with _first_interrupt(lambda: loop.call_soon_threadsafe(task.cancel)):
        record: Record = loop.run_until_complete(task)
    if isinstance(record.ended_by, asyncio.CancelledError):
        record.ended_by = KeyboardInterrupt()
    return record
