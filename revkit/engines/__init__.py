"""The two ways to run workers: ``threads.py`` and ``loop.py``.

Both are thin: a worker takes an attempt from the scheduler, does the work, settles it with the
scheduler, and emits the fact. ``engine.emit`` is called from a worker's thread or loop; the last
thing that an engine emits is :class:`Ended`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..events import Attempted, Failure, Held, Started

__all__ = ["Emit", "Ended", "overran"]


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
