"""The async engine: for models, and for coroutine functions.

``LoopEngine.run`` is a coroutine, so it runs on whatever loop it is awaited on. ``background``
gives the one loop that revkit keeps beside the notebook's own.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from ..events import CANCELLED, Attempted, Failure, Outcome
from ..scheduler import DONE, WAIT, Scheduler
from ..work import Work
from . import Emit, Ended

__all__ = ["LoopEngine", "background", "runs_here", "start_loop", "submit"]

#: Attempts that never wait keep the loop to themselves; at least so often (seconds) they let
#: others run.
_BREATH = 0.001


class LoopEngine:
    """Runs ``workers`` tasks over ``scheduler`` on the running loop."""

    name = "async"

    def __init__(self, scheduler: Scheduler, work: Work, *, workers: int, emit: Emit):
        self._scheduler = scheduler
        self._work = work
        self._workers = workers
        self._emit = emit
        self._tasks: list[asyncio.Task[None]] = []
        #: when a worker last let others run, on the loop's clock
        self._breathed = 0.0
        #: one future for each worker that waits
        self._waiting: list[asyncio.Future[None]] = []

    async def run(self) -> None:
        """Work everything off; the last thing emitted is :class:`Ended`."""
        crash: BaseException | None = None
        try:
            await self._work.aopen(self._workers)
            try:
                if self._scheduler.stopped is None:
                    self._tasks = [
                        asyncio.create_task(self._run(worker), name=f"revkit-worker-{worker}")
                        for worker in range(self._workers)
                    ]
                    await asyncio.wait(self._tasks)
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
            self._emit(Ended(crash))

    def cancel(self) -> None:
        """Start nothing more and cancel what runs. Call it on the engine's loop."""
        self._scheduler.stop("the run was cancelled")
        for task in self._tasks:
            task.cancel()
        self._wake()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def _run(self, worker: int) -> None:
        try:
            await self._work_off(worker)
        except BaseException:  # a fault of revkit itself: the others must not wait for ever
            self._scheduler.stop("revkit itself failed")
            self._wake()
            raise

    async def _work_off(self, worker: int) -> None:
        scheduler = self._scheduler
        loop = asyncio.get_running_loop()
        clock = loop.time
        while True:
            step = scheduler.take(worker)
            if step is DONE:
                return
            if step is WAIT:
                future = loop.create_future()
                self._waiting.append(future)
                try:
                    await future
                except asyncio.CancelledError:
                    return
                continue
            assert not isinstance(step, type(WAIT))
            start = clock()
            try:
                outcome: Outcome = await self._work.aattempt(step)
            except asyncio.CancelledError as error:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    outcome = CANCELLED
                else:  # the user's own: something that the function awaited was cancelled
                    outcome = Failure("CancelledError", str(error), cause=error)
            end = clock()
            decision = scheduler.settle(step, outcome)
            if self._waiting and scheduler.waiters_due:
                self._wake()
            self._emit(Attempted(step, start, end, outcome, decision))
            if outcome is CANCELLED:
                return
            if end - start < _BREATH <= end - self._breathed:
                await asyncio.sleep(0)
                self._breathed = clock()


class _Background:
    """A loop in a daemon thread, and the process that it belongs to."""

    def __init__(self, factory: Callable[[], asyncio.AbstractEventLoop], name: str):
        self.pid = os.getpid()
        self.loop = factory()
        ready = threading.Event()

        def serve() -> None:
            asyncio.set_event_loop(self.loop)
            self.loop.call_soon(ready.set)
            try:
                self.loop.run_forever()
            finally:
                self.loop.close()

        self.thread = threading.Thread(target=serve, name=name, daemon=True)
        self.thread.start()
        ready.wait()


_background: _Background | None = None
_background_lock = threading.Lock()


def background() -> asyncio.AbstractEventLoop:
    """The loop that revkit keeps in a thread of its own: one a process, started at first use.

    A child that was forked gets a new one: threads do not survive a fork.
    """
    global _background
    with _background_lock:
        if _background is None or _background.pid != os.getpid():
            _background = _Background(asyncio.new_event_loop, "revkit-loop")
        return _background.loop


def runs_here() -> bool:
    """Whether the caller is on revkit's own loop, which must not wait for itself."""
    try:
        running = asyncio.get_running_loop()
    except RuntimeError:
        return False
    return _background is not None and running is _background.loop


def start_loop(factory: Callable[[], asyncio.AbstractEventLoop]) -> asyncio.AbstractEventLoop:
    """A loop of the given kind in a thread of its own, for one run; its ``stop`` ends both."""
    return _Background(factory, "revkit-loop-of-a-run").loop


def submit(loop: asyncio.AbstractEventLoop, main: Coroutine[Any, Any, None]) -> None:
    """Start ``main`` on a loop in another thread, with the caller's context variables."""
    context = contextvars.copy_context()
    loop.call_soon_threadsafe(lambda: _keep(loop.create_task(main, context=context)))


#: a loop holds only weak references to its tasks
_kept: set[asyncio.Task[None]] = set()


def _keep(task: asyncio.Task[None]) -> None:
    _kept.add(task)
    task.add_done_callback(_kept.discard)
