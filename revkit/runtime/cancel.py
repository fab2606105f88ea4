"""A token by which a run can be cancelled from any thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asyncio import Task

__all__ = [
    "CancelToken",
    "aborted_by_stop",
    "is_done_to",
    "is_interrupt",
    "may_be_the_engines",
    "works_for",
]

#: The token of the run whose worker this thread is, cancelled by a stop that cancels what runs.
_of_this_worker: ContextVar[CancelToken | None] = ContextVar("revkit-cancel", default=None)


class CancelToken:
    """Cancels the runs that it was given to: ``parallel_map(..., cancel=token)``.

    Usable from any thread, by several runs, and once: a token that is cancelled stays so.

    >>> token = CancelToken()
    >>> token.cancelled
    False
    >>> token.cancel("the user left")
    >>> token.cancelled, token.reason
    (True, 'the user left')
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._event = threading.Event()
        self._callbacks: list[Callable[[], object]] = []
        self.reason = ""

    @property
    def cancelled(self) -> bool:
        """Whether :meth:`cancel` was called."""
        return self._event.is_set()

    def cancel(self, reason: str = "its CancelToken was cancelled") -> None:
        """Cancel every run that has the token; what it has done is kept."""
        with self._lock:
            if self._event.is_set():
                return
            self.reason = reason
            self._event.set()
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def __repr__(self) -> str:
        return f"CancelToken(cancelled={self.cancelled})"

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is cancelled, at most ``timeout`` seconds; says whether it is."""
        return self._event.wait(timeout)

    def on_cancel(self, callback: Callable[[], object]) -> Callable[[], None]:
        """Call ``callback`` once it is cancelled, at once if it is; gives a way to take it back."""
        with self._lock:
            if not self._event.is_set():
                self._callbacks.append(callback)
                return lambda: self._forget(callback)
        callback()
        return lambda: None

    def _forget(self, callback: Callable[[], object]) -> None:
        with self._lock:
            if callback in self._callbacks:
                self._callbacks.remove(callback)


@contextmanager
def works_for(token: CancelToken) -> Iterator[None]:
    """In here, this thread is a worker of the run that the token cancels."""
    before = _of_this_worker.set(token)
    try:
        yield
    finally:
        _of_this_worker.reset(before)


@contextmanager
def aborted_by_stop(abort: Callable[[], object] | None) -> Iterator[None]:
    """In here, a stop of the run whose worker this thread is calls ``abort``, from any thread."""
    token = _of_this_worker.get()
    if token is None or abort is None:
        yield
        return
    take_back = token.on_cancel(abort)
    try:
        yield
    finally:
        take_back()


def is_interrupt(error: BaseException) -> bool:
    """Whether an exception is a Ctrl-C, or cannot be told from one.

    Python raises one in the main thread only.
    """
    main = threading.current_thread() is threading.main_thread()
    return main and issubclass(type(error), KeyboardInterrupt)


def may_be_the_engines(error: BaseException) -> bool:
    """Whether an exception in a task may be no error of its row.

    The engine that runs the task knows: see :func:`is_done_to`.
    """
    from asyncio import CancelledError

    return is_interrupt(error) or issubclass(type(error), CancelledError | GeneratorExit)


def is_done_to(task: Task[Any] | None, error: BaseException) -> bool:
    """Whether an exception in a worker's task cancels, closes or interrupts that task.

    Else the user's own code raised it.
    """
    from asyncio import CancelledError, current_task

    if issubclass(type(error), CancelledError):
        return task is None or task.cancelling() > 0
    if not issubclass(type(error), GeneratorExit):
        return is_interrupt(error)
    try:
        return current_task() is not task  # it is closed, not run
    except RuntimeError:  # its loop has ended
        return True
