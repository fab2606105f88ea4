"""The ways to run workers: ``threads.py``, ``loop.py``, and ``beside.py``.

All are thin: a worker takes an attempt from the scheduler, does the work, settles it with the
scheduler, emits the fact and wakes the drain. Facts are emitted from a worker's thread or loop; the
last one is :class:`Ended`.

    threads   a pool of threads
    loop      tasks on the running event loop
    beside    the same on a loop in another thread, which may have to be abandoned
    handover  how that loop lets the drain have the interpreter for a step
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ...scheduling.events import Attempted, Failure, Held, Started, Stop

__all__ = ["OFTEN", "Emit", "Ended", "Engine", "overran"]

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


class Engine(Protocol):
    """Runs the workers of one run. The run's drain calls it, from one thread or task."""

    def start(self) -> float:
        """Start the workers; returns when, on the engine's clock."""
        ...

    def clock(self) -> float:
        """Seconds, on the clock that all times of the run are on; valid once it has started."""
        ...

    def stop(self, stop: Stop) -> None:
        """Start nothing more, and cancel the running attempts if the stop says so.

        The scheduler knows of the stop already. Never blocks.
        """

    def apply(self, change: Callable[[], object]) -> None:
        """Change something in the scheduler, and wake the workers that wait for it."""

    def tick(self) -> Stop | None:
        """Look after attempts that overran their time; called several times a second.

        Returns:
            Why the run has to be stopped; None where it need not be.
        """

    def give_up(self) -> str | None:
        """The run ends now, though workers are still busy; their late results are ignored.

        Returns:
            What is left behind, for the user; None where there is nothing to say.
        """

    def close(self) -> None:
        """Release what the engine holds, once the run is over."""


def overran(seconds: float) -> Failure:
    """The outcome of an attempt that took longer than it may."""
    message = f"the attempt took longer than attempt_timeout={seconds:g} s"
    return Failure("AttemptTimeout", message, transient=True)


Emit = Callable[[Started | Held | Attempted | Ended], None]
