"""The loop engine on an event loop in another thread; ``background`` gives the one revkit keeps.

That loop is uvloop's, which takes less CPU for each row, or asyncio's where there is none. All runs
of a process share it. Where a coroutine blocks it, nothing on it can be cancelled: then the loop is
abandoned, as a stuck thread is, and the next run gets a new one.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from ...scheduling.events import Stop, StopKind
from .handover import HandOver
from .loop import LoopEngine, clock_of

__all__ = ["LoopBeside", "LoopThread", "background", "runs_here"]

#: A loop that does not answer for so many seconds counts as blocked; for so many more than
#: ``attempt_timeout``, while attempts run.
_ANSWERS_WITHIN = 1.0
_ABANDONED = "another run or task blocked revkit's event loop, which was abandoned"
#: Seconds by which the clock of a loop differs from the system's only if it is a virtual one.
_SAME_CLOCK = 0.1


class LoopThread:
    """An event loop in a daemon thread, and the process that it belongs to.

    Attributes:
        abandoned: the loop was blocked, and nothing new is run on it.
    """

    def __init__(self, factory: Callable[[], asyncio.AbstractEventLoop], name: str):
        self.pid = os.getpid()
        self.loop = factory()
        self.abandoned = False
        #: those that run on it, to be stopped if it is abandoned
        self.engines: set[LoopEngine] = set()
        self._closing = False
        ready = threading.Event()
        self.loop.call_soon(ready.set)
        try:
            threading.Thread(target=self._serve, name=name, daemon=True).start()
        except BaseException:  # the system gives no more threads
            self.loop.close()
            raise
        ready.wait()

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        # A user's task may stop the loop or raise SystemExit through it. Tasks must not end it:
        # runs would wait for it for ever.
        while not self._closing:
            with suppress(BaseException):
                self.loop.run_forever()
        self.loop.close()

    def submit(self, main: Coroutine[Any, Any, None]) -> None:
        """Start ``main`` on the loop, with the caller's context variables."""
        context = contextvars.copy_context()
        if not self.call(lambda: _keep(self.loop.create_task(main, context=context))):
            main.close()

    def call(self, function: Callable[..., object], *arguments: Any) -> bool:
        """Call a function on the loop; False where the loop was abandoned and has ended since."""
        try:
            self.loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            return False
        return True

    def close(self) -> None:
        """End the loop and its thread."""
        self._closing = True
        self.loop.call_soon_threadsafe(self.loop.stop)

    def abandon(self) -> None:
        """Run nothing new on the loop. If it ever answers again, it ends its tasks and itself."""
        self.abandoned = True
        self.submit(self._wind_up())

    async def _wind_up(self) -> None:
        for engine in list(self.engines):
            engine.stop(Stop(StopKind.INTERRUPTED, _ABANDONED, cancels=True))
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self.close()


class LoopBeside:
    """A loop engine on the loop of another thread.

    Args:
        engine: runs the workers there.
        factory: makes a loop for this run alone; None: the run gets the one that revkit keeps.
        hand_over: adapted to a loop on a virtual clock.
        row_name: what the user calls a row, by its number.
    """

    def __init__(
        self,
        engine: LoopEngine,
        factory: Callable[[], asyncio.AbstractEventLoop] | None,
        hand_over: HandOver,
        row_name: Callable[[int], str],
    ):
        self._engine = engine
        self._row_name = row_name
        self._is_own = factory is not None
        self._thread = background() if factory is None else LoopThread(factory, "revkit-run-loop")
        #: since when the loop has not answered; None: it has
        self._asked: float | None = None
        self._answered = threading.Event()
        self._stopping = False
        try:
            self.clock = clock_of(self._thread.loop)
            if abs(self.clock() - time.monotonic()) > _SAME_CLOCK:  # it may leap meanwhile
                hand_over.patience = None
        except BaseException:  # nobody has the engine yet, to close it
            self.close()
            raise

    def start(self) -> float:
        began = self.clock()
        self._thread.engines.add(self._engine)
        self._thread.submit(self._engine.run())
        return began

    def stop(self, stop: Stop) -> None:
        self._stopping = True
        self._ask()
        self._thread.call(self._engine.stop, stop)

    def apply(self, change: Callable[[], object]) -> None:
        self._engine.changes.append(change)
        self._thread.call(self._engine.make_changes)

    def tick(self) -> Stop | None:
        """Find out whether the loop is blocked, where attempts have a time limit."""
        if self._thread.abandoned:
            return Stop(StopKind.INTERRUPTED, self._blocked(), cancels=True)
        limit = self._engine.attempt_timeout
        if limit is None or self._stopping:
            return None
        self._ask()
        asked = self._asked  # the loop may answer between two looks at it
        if asked is None or time.monotonic() - asked < limit + _ANSWERS_WITHIN:
            return None
        reason = f"attempt_timeout={limit:g} s was over, and {self._blocked()}"
        return Stop(StopKind.FATAL, reason, cancels=True)

    def give_up(self) -> str | None:
        self._engine.give_up()
        if not self._thread.abandoned:
            asked = self._asked
            if asked is None or self._answered.wait(asked + _ANSWERS_WITHIN - time.monotonic()):
                return None
            self._thread.abandon()
        return self._blocked()

    def close(self) -> None:
        self._thread.engines.discard(self._engine)
        if self._is_own and not self._thread.abandoned:
            self._thread.close()

    def _ask(self) -> None:
        """Let the loop answer, unless it is asked already."""
        if self._asked is None:
            self._asked = time.monotonic()
            self._answered.clear()
            self._thread.call(self._answer)

    def _answer(self) -> None:
        self._asked = None
        self._answered.set()

    def _blocked(self) -> str:
        """That the loop is blocked, and by which row."""
        task = asyncio.current_task(self._thread.loop)
        row = None if task is None else self._engine.row_of(task)
        whose = "another run or task" if row is None else f"the coroutine of {self._row_name(row)}"
        return (
            f"{whose} blocks revkit's event loop, which was abandoned; make it await instead of "
            "block, or pass a plain function, which runs in threads"
        )


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # Windows, PyPy
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


_background: LoopThread | None = None
_background_lock = threading.Lock()


def background() -> LoopThread:
    """The loop that revkit keeps in a thread of its own: one a process, started at first use.

    A child that was forked gets a new one, because threads do not survive a fork; so does the run
    after one that had to abandon it.
    """
    global _background
    with _background_lock:
        if _background is None or _background.pid != os.getpid() or _background.abandoned:
            _background = LoopThread(_new_loop, "revkit-loop")
        return _background


def runs_here() -> bool:
    """Whether the caller is on revkit's own loop, which must not wait for itself."""
    try:
        running = asyncio.get_running_loop()
    except RuntimeError:
        return False
    return _background is not None and running is _background.loop


#: a loop holds only weak references to its tasks
_kept: set[asyncio.Task[None]] = set()


def _keep(task: asyncio.Task[None]) -> None:
    _kept.add(task)
    task.add_done_callback(_kept.discard)
