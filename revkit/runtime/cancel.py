"""A token by which a run can be cancelled from any thread."""

from __future__ import annotations

import threading
from collections.abc import Callable

__all__ = ["CancelToken", "is_done_to_the_worker"]


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


def is_done_to_the_worker(error: BaseException) -> bool:
    """Whether an exception cancels or interrupts the worker, and is not an error of its row."""
    if isinstance(error, KeyboardInterrupt):
        return threading.current_thread() is threading.main_thread()
    from asyncio import CancelledError

    return isinstance(error, CancelledError | GeneratorExit)
