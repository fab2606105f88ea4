"""How a loop lets the drain, in another thread, have the interpreter for a step."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

__all__ = ["HandOver"]

#: Seconds that the loop stands still, at most, while the drain does what rows wait for: else the
#: two threads compete for the interpreter, which a busy one gives away every 5 ms.
_HAND_OVER = 0.002


class HandOver:
    """Lets a loop stand still while the drain, in another thread, takes a step.

    Args:
        wake: lets the drain take a step soon.

    Attributes:
        patience: seconds that the loop waits at most; None: as long as it takes.
    """

    def __init__(self, wake: Callable[[], None]):
        self._wake = wake
        self._asked: deque[threading.Event] = deque()
        self._over = False
        self.patience: float | None = _HAND_OVER

    def __call__(self) -> None:
        """Wake the drain, and wait for a step that has begun since. Called on the loop."""
        taken = threading.Event()
        self._asked.append(taken)
        self._wake()
        if not self._over:
            taken.wait(self.patience)

    def begin(self) -> list[threading.Event]:
        """A step of the drain begins: gives the waits that end with it."""
        return [self._asked.popleft() for _ in range(len(self._asked))]

    def finish(self, asked: list[threading.Event]) -> None:
        for taken in asked:
            taken.set()

    def end(self) -> None:
        """The drain takes no more steps: nothing waits for one."""
        self._over = True
        self.finish(self.begin())
