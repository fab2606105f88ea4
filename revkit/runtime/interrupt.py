"""Ctrl-C and the notebook's stop button, while a run goes on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Press", "noted_interrupts"]


class Press:
    """What a Ctrl-C does: at first it only sets a flag, so that it never strikes between two
    lines of the drain; the second one raises as usual.

    Attributes:
        tell: called by a press that is noted. It runs between any two steps of the main thread, so
            it must not take a lock: the drain looks for the flag at its next tick.
    """

    def __init__(self) -> None:
        self.tell: Callable[[], object] = lambda: None
        self._pressed = False
        self._raises = self._holds = False

    def __call__(self) -> bool:
        """Whether it was pressed."""
        return self._pressed

    @contextmanager
    def raising(self) -> Iterator[None]:
        """In here the first press raises: what is waited for may take long, and can be left."""
        self._raises = True
        try:
            yield
        finally:
            self._raises = False

    def hold(self) -> None:
        """From here on no press raises: what is done is being written."""
        self._holds = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again, self._pressed = self._pressed, True
        if (again or self._raises) and not self._holds:
            signal.default_int_handler(number, frame)
        self.tell()


@contextmanager
def noted_interrupts() -> Iterator[Press]:
    """Let a :class:`Press` decide what Ctrl-C does.

    Does nothing outside the main thread, and leaves a handler that is not Python's own alone.
    """
    press = Press()
    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if not ours:
        yield press
        return
    signal.signal(signal.SIGINT, press._handle)
    try:
        yield press
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
