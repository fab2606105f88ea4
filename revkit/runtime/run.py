"""The two ways to carry a run out: :func:`execute` in the calling thread, :func:`aexecute` in the
caller's task. What is done when is ``lifecycle.py``'s.
"""

from __future__ import annotations

import contextvars
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..record.record import Record
from .engines import Engine
from .interrupt import Interrupts, noted_interrupts
from .lifecycle import Call, Run, Wait, timed_out
from .wiring import Wiring

if TYPE_CHECKING:
    import asyncio

    from .engines.loop import LoopEngine

__all__ = ["aexecute", "execute"]


def execute(wiring: Wiring, interrupts: Interrupts | None = None) -> Record:
    """Carry a plan out, as it is wired; the calling thread is the drain.

    An interrupt (Ctrl-C, the notebook's stop button) ends the run, not this function: the record
    comes back with ``ended_by`` set.

    Args:
        interrupts: what an interrupt does, where that goes on after the run.
    """
    # Until that module is imported as a whole, there is no such loop.
    beside = sys.modules.get(f"{__package__}.engines.beside")
    runs_here = getattr(beside, "runs_here", None)
    if runs_here is not None and runs_here():
        raise UsageError(
            "parallel_map was called in a coroutine that runs on revkit's own event loop, which "
            "it would block; call `await revkit.aparallel_map(...)` there"
        )
    if interrupts is None:
        with noted_interrupts() as interrupts:
            return execute(wiring, interrupts)
    if wiring.plan.options.pool.loop == "notebook":
        return _execute_on_notebook_loop(wiring, interrupts)
    woken = threading.Event()

    def wake() -> None:
        if not woken.is_set():  # far cheaper than to set it again
            woken.set()

    def carry_out(step: Call | Wait) -> None:
        if isinstance(step, Wait):
            woken.wait(step.seconds)
            woken.clear()
        elif step.may_be_left:
            with interrupts.raising():
                step.function()
        else:
            step.function()

    with interrupts.raising():  # nothing is done yet
        run = Run(wiring, wake, interrupts, _engine_beside)
    error: BaseException | None = None
    try:
        while True:
            try:
                step = run.advance(error)
                error = None
                if step is None:
                    return run.record
                carry_out(step)
            except BaseException as raised:
                if run.is_over:
                    raise
                error = raised  # the run decides what follows from it
    finally:
        interrupts.hold()
        run.close()


async def aexecute(wiring: Wiring) -> Record:
    """Carry a plan out, as it is wired, on the running loop; the caller's task is the drain.

    Cancelling the task ends the run, not this function: the record comes back with ``ended_by``
    set, and the caller raises it again.
    """
    import asyncio

    if wiring.plan.loop_factory is not None:
        raise UsageError(
            f"{wiring.plan.client!r} brings an event loop of its own: call parallel_map, which "
            "runs beside yours"
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

    cancels = _Cancels()
    # Of the run's own: in the loop's, the user's calls may stand before ours.
    pool = ThreadPoolExecutor(1, "revkit-store")  # begins no thread before it has work

    async def carry_out(step: Call | Wait) -> None:
        nonlocal asked
        if isinstance(step, Wait):
            # A kernel delivers an interrupt only at the next event of the loop: here it is.
            tick = loop.call_later(step.seconds, woken.set)
            try:
                await woken.wait()
            except asyncio.CancelledError as error:
                cancels.note(error)
            finally:
                tick.cancel()
            woken.clear()
            asked = False
        elif step.may_be_left:
            with _thread_of_its_own() as thread:
                done = loop.run_in_executor(thread, step.function)
                try:
                    await asyncio.shield(done)
                except asyncio.CancelledError as error:
                    done.add_done_callback(_ignore)
                    cancels.note(error)
        else:  # it is never left half done
            done = loop.run_in_executor(pool, step.function)
            while not done.done():
                try:
                    await asyncio.wait([done])
                except asyncio.CancelledError as error:
                    cancels.note(error)
            done.result()

    make = partial(Run, wiring, wake, cancels, _engine_here, may_wait=False)
    if wiring.open_store is None:
        run = make()
    else:
        context = contextvars.copy_context()  # which observers get
        making = loop.run_in_executor(pool, context.run, make)
        try:
            run = await asyncio.shield(making)
        except BaseException:
            making.add_done_callback(_close)
            pool.shutdown(wait=False)
            raise
    error: BaseException | None = None
    try:
        while True:
            try:
                step = run.advance(error)
                error = None
                if step is None:
                    run.record.ended_by = cancels.error or run.record.ended_by  # however late
                    return run.record
                await carry_out(step)
            except BaseException as raised:
                if run.is_over:
                    raise
                error = raised  # the run decides what follows from it
    finally:
        asked = True  # a thread that lives on finds a loop that may be closed
        run.close()
        pool.shutdown(wait=False)


class _Cancels:
    """The interrupts of an awaited run: its task is cancelled."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.again = False

    def note(self, error: asyncio.CancelledError) -> None:
        self.again = self.error is not None
        self.error = error

    def hold(self) -> None:
        """They never raise."""


def _engine_beside(run: Run) -> Engine:
    """The plan's engine, for a drain that is a thread."""
    if run.wiring.plan.engine == "thread":
        return _threads(run)
    from .engines.beside import LoopBeside

    engine = _tasks(run, run.hand_over)
    return LoopBeside(engine, run.wiring.plan.loop_factory, run.hand_over, run.wiring.plan.name)


def _engine_here(run: Run) -> Engine:
    """The plan's engine, for a drain that is a task of the running loop."""
    return _threads(run) if run.wiring.plan.engine == "thread" else _tasks(run, run.drain.wake)


def _threads(run: Run) -> Engine:
    from .engines.threads import ThreadEngine

    plan, drain = run.wiring.plan, run.drain

    def fewer(workers: int, why: str) -> None:
        drain.record.workers = workers
        drain.record.warnings.append(why)

    return ThreadEngine(
        run.scheduler,
        run.wiring.work(drain.record.warnings.append),
        workers=plan.workers,
        emit=drain.emit,
        wake=drain.wake,
        awaited=drain.is_awaited,
        attempt_timeout=plan.options.failures.attempt_timeout,
        fewer=fewer,
    )


def _tasks(run: Run, hand_over: Callable[[], object]) -> LoopEngine:
    from .engines.loop import LoopEngine

    plan, drain = run.wiring.plan, run.drain
    seconds, timeout = plan.options.limits.timeout, None
    if seconds is not None:
        timeout = max(0.0, seconds - run.looked), timed_out(seconds)
    return LoopEngine(
        run.scheduler,
        run.wiring.work(drain.record.warnings.append),
        workers=plan.workers,
        emit=drain.emit,
        wake=drain.wake,
        hand_over=hand_over if drain.is_awaited else None,
        attempt_timeout=plan.options.failures.attempt_timeout,
        timeout=timeout,
    )


@contextmanager
def _thread_of_its_own() -> Iterator[ThreadPoolExecutor]:
    """A thread that is left to itself where the run ends before it does."""
    pool = ThreadPoolExecutor(1, "revkit-ready")
    try:
        yield pool
    finally:
        pool.shutdown(wait=False)


def _ignore(done: asyncio.Future[object]) -> None:
    done.exception()


def _close(making: asyncio.Future[Run]) -> None:
    """Close what was opened for a run that was cancelled before it began."""
    if not making.cancelled() and making.exception() is None:
        making.result().close()


def _execute_on_notebook_loop(wiring: Wiring, interrupts: Interrupts) -> Record:
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
    task = loop.create_task(aexecute(wiring))
    interrupts.notify = lambda: loop.call_soon_threadsafe(task.cancel)
    try:
        record: Record = loop.run_until_complete(task)
    except asyncio.CancelledError:
        if interrupts():
            raise KeyboardInterrupt from None
        raise
    interrupts.hold()
    if isinstance(record.ended_by, asyncio.CancelledError):
        record.ended_by = KeyboardInterrupt()
    return record
