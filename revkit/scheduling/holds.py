"""When no attempt might start though there was a place for it, and why."""

from __future__ import annotations

import math

from .events import Hold, HoldKind

__all__ = ["Holds"]

#: Seconds: a worker that asks again is a little late.
_SAME = 0.02


class Holds:
    """The holds of one run.

    Attributes:
        spans: in order of time.
        held: the row that is held now, and the kind of the hold.
    """

    def __init__(self) -> None:
        self.spans: list[Hold] = []
        self.held: tuple[int, HoldKind] | None = None

    def hold(self, kind: HoldKind, row: int, now: float, until: float) -> bool:
        """A row has to wait; says whether it did not have to for this reason before."""
        held = (row, kind)
        if kind is HoldKind.OUTAGE:
            was, self.held = self.held, held
            return was != held
        if self.held == held:
            self.spans[-1] = self.spans[-1]._replace(end=until)
            return False
        self.release(now)
        self.held = held
        last = self.spans[-1] if self.spans else None
        if last is not None and last.kind is kind and now - last.end < _SAME:
            self.spans[-1] = last._replace(end=until)  # the next row waits for the same reason
        else:
            self.spans.append(Hold(kind, now, until))
        return True

    def release(self, now: float) -> None:
        """The row that was held may start."""
        held, self.held = self.held, None
        if held is None or held[1] is HoldKind.OUTAGE:
            return
        last = self.spans[-1]
        self.spans[-1] = last._replace(end=min(last.end, now))

    def begin_outage(self, now: float) -> None:
        """The server is away: one hold, whatever is held, until :meth:`end_outage`."""
        self.release(now)
        self.spans.append(Hold(HoldKind.OUTAGE, now, math.inf))

    def end_outage(self, now: float) -> None:
        """The server is back."""
        self.held = None
        self.spans[-1] = self.spans[-1]._replace(end=now)
