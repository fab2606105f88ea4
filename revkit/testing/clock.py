"""An event loop on a virtual clock: where everyone waits, time leaps to the next timer."""

from __future__ import annotations

import asyncio
import selectors

__all__ = ["VirtualClockLoop"]


class _Clock:
    def __init__(self) -> None:
        self.now = 0.0


class _LeapingSelector(selectors.DefaultSelector):
    """Where it would sleep until a timer is due, it moves the clock there instead."""

    def __init__(self, clock: _Clock):
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if events or timeout == 0:
            return events
        if timeout is None:  # no timer: only another thread can bring something
            return super().select(None)
        self._clock.now += max(0.0, timeout)
        return []


class VirtualClockLoop(asyncio.SelectorEventLoop):
    """An event loop whose ``time()`` starts at 0 and passes only while all its tasks wait.

    ``asyncio.sleep(3600)`` on it takes no real time and exactly an hour of its own.

    >>> import asyncio
    >>> with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
    ...     runner.run(asyncio.sleep(3600))
    ...     round(runner.get_loop().time())
    3600
    """

    def __init__(self) -> None:
        self._virtual = _Clock()
        super().__init__(_LeapingSelector(self._virtual))

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._virtual.now

    async def shutdown_default_executor(
        self,
        timeout: float | None = None,  # noqa: ASYNC109 - the base class has it
    ) -> None:
        """Wait for the loop's threads without a limit: their time is the real one."""
        await super().shutdown_default_executor()

    def __repr__(self) -> str:
        return f"<VirtualClockLoop at {self.time():.3f} s>"
