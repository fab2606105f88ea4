"""Ctrl-C and the notebook's stop button, while a run goes on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Interrupts", "noted_interrupts"]


class Interrupts:
    """What a Ctrl-C does: at first it only sets a flag, so that it never strikes between two
    lines of the drain; the second one raises as usual.

    Attributes:
        notify: called by an interrupt that is noted. It runs between any two steps of the main
            thread, so it must not take a lock: the drain looks for the flag at its next tick.
    """

    def __init__(self) -> None:
        self.notify: Callable[[], object] = lambda: None
        self._came = False
        self._raises = self._holds = False

    def __call__(self) -> bool:
        """Whether there was one."""
        return self._came

    @property
    def error(self) -> BaseException | None:
        """What ends the run; None where there was no interrupt."""
        return KeyboardInterrupt() if self._came else None

    @property
    def again(self) -> bool:
        """Whether the user wants it to end at once: here the second interrupt raises instead."""
        return False

    @contextmanager
    def raising(self) -> Iterator[None]:
        """In here the first interrupt raises: this may take long, and can be left."""
        self._raises = True
        try:
            yield
        finally:
            self._raises = False

    def hold(self) -> None:
        """From here on no interrupt raises: the results are being written."""
        self._holds = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again, self._came = self._came, True
        if (again or self._raises) and not self._holds:
            signal.default_int_handler(number, frame)
        self.notify()


@contextmanager
def noted_interrupts() -> Iterator[Interrupts]:
    """Let :class:`Interrupts` decide what Ctrl-C does.

    Does nothing outside the main thread, and leaves a handler that is not Python's own alone.
    """
    interrupts = Interrupts()
    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if not ours:
        yield interrupts
        return
    signal.signal(signal.SIGINT, interrupts._handle)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
