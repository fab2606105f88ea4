"""The two ways to run workers: ``threads.py`` and ``loop.py``.

Both are thin: a worker takes an attempt from the scheduler, does the work, settles it with the
scheduler, emits the fact and wakes the drain. Both functions are called from a worker's thread or
loop; the last thing that an engine emits is :class:`Ended`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ...scheduling.events import Attempted, Failure, Held, Started

__all__ = ["OFTEN", "Emit", "Ended", "overran"]

#: A drain for which no row waits is woken at most so often (seconds), and when all is done; it
#: looks up by itself now and then.
OFTEN = 0.01


@dataclass(frozen=True, slots=True)
class Ended:
    """No worker is left.

    Attributes:
        crash: an error of revkit's own that ended them, or None.
        at: when, on the engine's clock; None where none was started.
    """

    crash: BaseException | None = None
    at: float | None = None


def overran(seconds: float) -> Failure:
    """The outcome of an attempt that took longer than it may."""
    message = f"the attempt took longer than attempt_timeout={seconds:g} s"
    return Failure("AttemptTimeout", message, transient=True)


Emit = Callable[[Started | Held | Attempted | Ended], None]
