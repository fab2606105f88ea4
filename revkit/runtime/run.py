"""One run, from a plan to its record: starts an engine, and drains what it reports until the last
worker is through or the run must be stopped.

In :func:`execute` the drain is the calling thread; in :func:`aexecute` it is the caller's task.
"""

from __future__ import annotations

import contextvars
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from ..errors import UsageError
from ..record.record import Record
from ..scheduling.events import Stop, StopKind
from ..scheduling.scheduler import Scheduler
from ..task.chat import Message
from .cancel import CancelToken
from .drain import INTERRUPTED, Drain
from .engines import Ended
from .interrupt import Press, noted_interrupts
from .plan import Plan

if TYPE_CHECKING:
    import asyncio

    from .engines.loop import LoopEngine
    from .engines.threads import ThreadEngine

__all__ = ["aexecute", "execute", "timed_out"]

_Rendered = dict[int, list[Message]]

#: The drain looks up at least this often (seconds), so that an interrupt never waits for a reply.
_TICK = 0.1
#: Seconds that the loop stands still, at most, while the drain does what rows wait for: else the
#: two threads compete for the interpreter, which a busy one gives away every 5 ms.
_HAND_OVER = 0.002
#: What runs in threads when the run is interrupted gets this long to end (seconds).
_GRACE = 1.0


def _assemble(
    plan: Plan, wake: Callable[[], None], *, may_wait: bool = True
) -> tuple[Scheduler, Drain, _Rendered]:
    """What a run is made of, but for its engine."""
    store = None if plan.open_store is None else plan.open_store()
    rendered: _Rendered = {}
    ahead = None
    try:
        if store is not None:
            ahead = plan.lookahead(store, rendered)
        scheduler = Scheduler(
            plan.todo if ahead is None else (),
            more=ahead is not None,
            commits=ahead is not None,
            max_workers=plan.workers,
            retry=plan.retry,
            max_failures=plan.max_failures,
            fail_fast=plan.fail_fast,
            failed=len(plan.refused),
            throttle=plan.throttle(rendered),
        )
        return scheduler, Drain(plan, scheduler, wake, ahead, may_wait=may_wait), rendered
    except BaseException:
        if store is not None:
            store.close()
        raise


def execute(plan: Plan, press: Press | None = None) -> Record:
    """Carry a plan out; the calling thread is the drain.

    An interrupt (Ctrl-C, the notebook's stop button) ends the run, not this function: the record
    comes back with ``ended_by`` set.

    Args:
        press: what an interrupt does, where that goes on after the run.
    """
    loops = sys.modules.get(f"{__package__}.engines.loop")
    if loops is not None and loops.runs_here():  # unless it was imported there is no such loop
        raise UsageError(
            "parallel_map was called in a coroutine that runs on revkit's own event loop, which "
            "it would block; call `await revkit.aparallel_map(...)` there"
        )
    if press is None:
        with noted_interrupts() as press:
            return execute(plan, press)
    if plan.loop == "notebook":
        return _execute_on_notebook_loop(plan, press)
    woken = threading.Event()

    def wake() -> None:
        if not woken.is_set():  # far cheaper than to set it again
            woken.set()

    steps = _Steps(wake)
    with press.raising():  # nothing is done yet
        scheduler, drain, rendered = _assemble(plan, wake)
    try:
        with _stopped_by(plan.cancel, scheduler, wake), ExitStack() as stack:
            looking = _Looking(plan, scheduler)
            try:
                drain.begin()
                drain.step()
                while drain.looks_on and not press() and not looking.is_over():
                    drain.open_display()
                    drain.step()
                looking.end()
                if drain.has_work and scheduler.stopped is None and not press():
                    with press.raising():
                        plan.prepare()
            except KeyboardInterrupt as error:
                drain.record.ended_by = error
            if press() or drain.record.ended_by is not None:
                drain.record.ended_by = drain.record.ended_by or KeyboardInterrupt()
                scheduler.stop(INTERRUPTED)
            drain.open_display()
            engine = stack.enter_context(_started(plan, scheduler, drain, rendered, steps))
            drain.starts(engine.clock, engine.began, looked=looking.seconds)
            drain.tell = engine.tell
            plan.started(engine.stop, engine.tell)
            watch = _Watch(plan, scheduler, engine, press)
            try:
                while drain.ended is None and not watch.is_over():
                    woken.wait(_TICK)
                    woken.clear()
                    steps.take(drain.step)
            except BaseException as error:  # noqa: BLE001 - raised again, with all that is done
                engine.stop(INTERRUPTED)
                drain.record.ended_by = error
            finally:
                steps.end()
            if press():
                drain.record.ended_by = KeyboardInterrupt()
            press.hold()
            if drain.ended is None:
                engine.give_up()
            record = drain.close(ended=_end_of(drain, engine))
            drain.close_observers(press)
            return record
    except BaseException as error:
        drain.break_off(error)
        raise
    finally:
        press.hold()
        drain.put_away()


class _Steps:
    """The steps of a drain, for each of which a loop may stand still.

    Attributes:
        patience: seconds that it does so at most; None: as long as it takes.
    """

    def __init__(self, wake: Callable[[], None]):
        self._wake = wake
        self._asked: deque[threading.Event] = deque()
        self._over = False
        self.patience: float | None = _HAND_OVER

    def hand_over(self) -> None:
        """Wake the drain, and wait for a step that has begun since. Called by the loop."""
        taken = threading.Event()
        self._asked.append(taken)
        self._wake()
        if not self._over:
            taken.wait(self.patience)

    def take(self, step: Callable[[], None]) -> None:
        """Take a step, and let those go on who asked for it before it began."""
        asked = [self._asked.popleft() for _ in range(len(self._asked))]
        try:
            step()
        finally:
            for taken in asked:
                taken.set()

    def end(self) -> None:
        """There are no more: nobody waits for one."""
        self._over = True
        self.take(lambda: None)


class _Engine(NamedTuple):
    """An engine at work beside the drain."""

    clock: Callable[[], float]
    began: float
    stop: Callable[[Stop], object]
    tell: Callable[[Callable[[], object]], object] = lambda change: change()
    tick: Callable[[], object] = lambda: None
    give_up: Callable[[], object] = lambda: None


def _end_of(drain: Drain, engine: _Engine) -> float:
    """When the last worker was through; the drain may have been behind."""
    ended = None if drain.ended is None else drain.ended.at
    return engine.clock() if ended is None else ended


class _Looking:
    """The time in which rows were looked up before any engine ran: it belongs to the run.

    Without a store there is none; on a clock of the client's own (a virtual one, say) it took none.
    """

    def __init__(self, plan: Plan, scheduler: Scheduler):
        self._plan = plan
        self._scheduler = scheduler
        self._began = time.monotonic()
        self.seconds = 0.0

    def is_over(self) -> bool:
        """Whether the run has had its time already."""
        timeout = self._plan.timeout
        if timeout is None or time.monotonic() - self._began < timeout:
            return False
        self._scheduler.stop(timed_out(timeout))
        return True

    def end(self) -> None:
        plan = self._plan
        if plan.open_store is not None and plan.loop_factory is None:
            self.seconds = time.monotonic() - self._began


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
            engine.tick()
            return time.monotonic() >= self._give_up
        if self._pressed():
            engine.stop(INTERRUPTED)
        elif plan.cancel is not None and plan.cancel.cancelled:
            engine.stop(_cancelled_by(plan.cancel))
        elif plan.timeout is not None and engine.clock() - engine.began >= plan.timeout:
            engine.stop(timed_out(plan.timeout))
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


def timed_out(seconds: float) -> Stop:
    """The stop of a run that had so much time."""
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
def _started(
    plan: Plan,
    scheduler: Scheduler,
    drain: Drain,
    rendered: _Rendered,
    steps: _Steps,
) -> Iterator[_Engine]:
    """Start the plan's engine beside the calling thread."""
    if not drain.has_work or scheduler.stopped is not None:
        drain.ended = Ended()
        yield _Engine(time.monotonic, time.monotonic(), lambda stop: None)
    elif plan.engine == "thread":
        threads = _threads(plan, scheduler, drain, rendered)
        began = threads.clock()
        threads.start()
        yield _of(threads, began)
    else:
        from .engines import loop as loops

        factory = plan.loop_factory
        engine = _tasks(plan, scheduler, drain, rendered, steps.hand_over)
        own = None if factory is None else loops.LoopThread(factory, "revkit-loop-of-a-run")
        loop = loops.background() if own is None else own.loop
        clock = loops.clock_of(loop)
        if abs(clock() - time.monotonic()) > _TICK:  # a virtual one, say: it may leap meanwhile
            steps.patience = None

        def tell(change: Callable[[], object]) -> None:
            engine.changes.append(change)
            loop.call_soon_threadsafe(engine.make_changes)

        began = clock()
        loops.submit(loop, engine.run())
        try:
            yield _Engine(
                clock,
                began,
                stop=lambda stop: loop.call_soon_threadsafe(engine.stop, stop),
                tell=tell,
            )
        finally:
            if own is not None:
                own.close()


def _of(threads: ThreadEngine, began: float) -> _Engine:
    return _Engine(
        threads.clock,
        began,
        stop=threads.stop,
        tell=threads.tell,
        tick=threads.tick,
        give_up=threads.give_up,
    )


def _threads(plan: Plan, scheduler: Scheduler, drain: Drain, rendered: _Rendered) -> ThreadEngine:
    from .engines.threads import ThreadEngine

    return ThreadEngine(
        scheduler,
        plan.work(rendered, drain.record.warnings.append),
        workers=plan.workers,
        emit=drain.emit,
        wake=drain.wake,
        awaited=drain.is_awaited,
        attempt_timeout=plan.attempt_timeout,
    )


def _tasks(
    plan: Plan,
    scheduler: Scheduler,
    drain: Drain,
    rendered: _Rendered,
    hand_over: Callable[[], object],
) -> LoopEngine:
    from .engines.loop import LoopEngine

    return LoopEngine(
        scheduler,
        plan.work(rendered, drain.record.warnings.append),
        workers=plan.workers,
        emit=drain.emit,
        wake=drain.wake,
        hand_over=hand_over if drain.is_awaited else None,
        attempt_timeout=plan.attempt_timeout,
        timeout=None if plan.timeout is None else (plan.timeout, timed_out(plan.timeout)),
    )


async def aexecute(plan: Plan) -> Record:
    """Carry a plan out on the running loop; the caller's task is the drain.

    Cancelling the task ends the run, not this function: the record comes back with ``ended_by``
    set, and the caller raises it again.
    """
    import asyncio

    from .engines.loop import clock_of

    if plan.loop_factory is not None:
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
            with suppress(RuntimeError):  # closed: a thread that was given up ends after its run
                loop.call_soon_threadsafe(woken.set)

    # Of the run's own: in the loop's, the user's calls may stand before ours.
    pool = ThreadPoolExecutor(1, "revkit-store")  # begins no thread before it has work
    if plan.open_store is None:
        scheduler, drain, rendered = _assemble(plan, wake, may_wait=False)
    else:
        context = contextvars.copy_context()  # which observers get
        assemble = partial(_assemble, plan, wake, may_wait=False)
        assembling = loop.run_in_executor(pool, context.run, assemble)
        try:
            scheduler, drain, rendered = await asyncio.shield(assembling)
        except BaseException:
            assembling.add_done_callback(_put_away)
            pool.shutdown(wait=False)
            raise
    clock = clock_of(loop)
    engine = _Engine(clock, clock(), lambda stop: None)
    running: asyncio.Task[None] | None = None
    interrupted = False

    def note(error: asyncio.CancelledError) -> None:
        nonlocal interrupted
        drain.record.ended_by = error
        interrupted = True

    async def to_its_end(work: Callable[[], None]) -> None:
        """Do what may block in the pool; it is never left half done."""
        done = loop.run_in_executor(pool, work)
        while not done.done():
            try:
                await asyncio.wait([done])
            except asyncio.CancelledError as error:
                note(error)
        done.result()

    async def step() -> None:
        drain.collect()
        if drain.has_store_work:
            await to_its_end(drain.visit_store)
        drain.report()

    try:
        with _stopped_by(plan.cancel, scheduler, wake):
            looking = _Looking(plan, scheduler)
            drain.begin()
            await step()
            while drain.looks_on and not interrupted and not looking.is_over():
                drain.open_display()
                await step()
            looking.end()
            if drain.has_work and scheduler.stopped is None and not interrupted:
                with _thread_of_its_own() as beside:  # where the run ends, it is left to itself
                    getting_ready = loop.run_in_executor(beside, plan.prepare)
                    try:
                        await asyncio.shield(getting_ready)
                    except asyncio.CancelledError as error:
                        getting_ready.add_done_callback(lambda done: done.exception())
                        note(error)
            if interrupted:
                scheduler.stop(INTERRUPTED)
            drain.open_display()
            if not drain.has_work or scheduler.stopped is not None:
                drain.ended = Ended()
            elif plan.engine == "thread":
                threads = _threads(plan, scheduler, drain, rendered)
                engine = _of(threads, threads.clock())
                threads.start()
            else:
                tasks = _tasks(plan, scheduler, drain, rendered, drain.wake)
                engine = _Engine(clock, clock(), stop=tasks.stop, tell=tasks.tell)
                running = asyncio.create_task(tasks.run())
            drain.starts(engine.clock, engine.began, looked=looking.seconds)
            drain.tell = engine.tell
            plan.started(engine.stop, engine.tell)
            watch = _Watch(plan, scheduler, engine, lambda: interrupted)
            while drain.ended is None and not watch.is_over():
                # A kernel delivers an interrupt only at the next event of the loop: here it is.
                tick = loop.call_later(_TICK, woken.set)
                try:
                    await woken.wait()
                except asyncio.CancelledError as error:
                    again = interrupted
                    note(error)
                    if again:
                        break  # cancelled once more while it ended
                finally:
                    tick.cancel()
                woken.clear()
                asked = False
                await step()
            if running is not None and drain.ended is not None:
                await asyncio.wait([running])
            if drain.ended is None:
                engine.give_up()
        ended = _end_of(drain, engine)
        await step()
        await to_its_end(drain.close_store)
        record = drain.close(ended=ended)
        await to_its_end(lambda: drain.close_observers(lambda: interrupted))
        return record
    except BaseException as error:
        engine.stop(INTERRUPTED)
        drain.break_off(error)
        raise
    finally:
        asked = True  # a thread that lives on finds a loop that may be closed
        drain.put_away()
        pool.shutdown(wait=False)


@contextmanager
def _thread_of_its_own() -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(1, "revkit-ready")
    try:
        yield pool
    finally:
        pool.shutdown(wait=False)


def _put_away(assembling: asyncio.Future[tuple[Scheduler, Drain, _Rendered]]) -> None:
    """Close what was opened for a run that was cancelled before it began."""
    if not assembling.cancelled() and assembling.exception() is None:
        assembling.result()[1].put_away()


def _execute_on_notebook_loop(plan: Plan, press: Press) -> Record:
    """Run on the notebook's own loop, from a cell that is itself running on it.

    The one place for nest-asyncio: it lets a running loop run again. ``nest_asyncio2`` is the
    maintained successor; the original is archived and drops cells queued behind a nested run.
    """
    import asyncio

    from .engines.loop import is_uvloop

    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        raise UsageError(
            'loop="notebook": no event loop is running here; leave loop= out'
        ) from None
    if is_uvloop(loop):
        raise UsageError(
            'loop="notebook": uvloop cannot run a loop inside itself; leave loop= out, or '
            "`await df.llm.aparallel_map(...)`"
        )
    import nest_asyncio2

    nest_asyncio2.apply(loop)
    task = loop.create_task(aexecute(plan))
    press.tell = lambda: loop.call_soon_threadsafe(task.cancel)
    try:
        record: Record = loop.run_until_complete(task)
    except asyncio.CancelledError:
        if press():
            raise KeyboardInterrupt from None
        raise
    press.hold()
    if isinstance(record.ended_by, asyncio.CancelledError):
        record.ended_by = KeyboardInterrupt()
    return record
