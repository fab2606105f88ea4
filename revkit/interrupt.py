"""Ctrl-C and the notebook's stop button, while a run goes on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["first_interrupt"]


@contextmanager
def first_interrupt(tell: Callable[[], object] = lambda: None) -> Iterator[Callable[[], bool]]:
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
