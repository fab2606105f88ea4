"""A run and its seats, as the coordinator knows them: how many attempts each may have running."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..scheduling.adaptive import AdaptiveLimit
from ..scheduling.events import Stop, StopKind
from ..scheduling.policy import failure_stop
from .shares import fair

__all__ = ["Run", "Seated", "said_of", "stop_of"]


def stop_of(said: Sequence[Any]) -> Stop:
    """A stop that has travelled."""
    kind, reason, cancels = said
    return Stop(StopKind(kind), reason, bool(cancels))


def said_of(stop: Stop) -> list[Any]:
    """A stop as it travels."""
    return [stop.kind.value, stop.reason, stop.cancels]


@dataclass(slots=True, eq=False)
class Seated:
    """One partition that is being worked off.

    Attributes:
        name: of the seat.
        worker: the Dask worker that it is on.
        partition: its number.
        demand: rows that it has left and might run.
        held: attempts that it may have running, as far as anybody can know.
        running: those that it has, as it said.
        failed, ok: rows of it.
        made: attempts at rows that are settled.
    """

    name: str
    run: Run
    worker: str
    partition: int
    demand: int
    held: int = 0
    running: int = 0
    failed: int = 0
    ok: int = 0
    made: int = 0


@dataclass(slots=True, eq=False)
class Run:
    """One computation.

    Attributes:
        name: of the run.
        key: of the task that began it.
        terms: what was asked for: see :func:`revkit.dask.job.terms_of`.
        began: when, on the coordinator's clock.
        workers: attempts that may run at once.
        collected: its partitions' records go to the client, so that they do not raise.
        adaptive: finds how many of ``workers`` the server can use; None: all may run.
        seats: by name, in the order in which they came.
        through: partitions that are through, with the rows that have failed and that are ok, and
            the attempts made.
        failed, ok: the sums of these.
        error: what the first row that failed says.
        lost: attempts that workers had made or begun that died, as far as they had said so.
        ended: all its partitions are through, and that was told.
        stop: why nothing more may start.
        paused_until: nothing may start before this time, because the server asked for it.
    """

    name: str
    key: str
    terms: Mapping[str, Any]
    began: float
    workers: int
    collected: bool
    adaptive: AdaptiveLimit | None
    seats: dict[str, Seated] = field(default_factory=dict)
    through: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    failed: int = 0
    ok: int = 0
    error: str | None = None
    lost: int = 0
    ended: bool = False
    stop: Stop | None = None
    paused_until: float = float("-inf")
    #: limit and demands of which shares were made, and these
    _shared: tuple[int, list[int], list[int]] = (0, [], [])

    @property
    def limit(self) -> int:
        """How many attempts may run now."""
        return self.workers if self.adaptive is None else min(self.workers, self.adaptive.limit)

    def sit(self, name: str, worker: str, partition: int, rows: int) -> Seated:
        """A partition is begun with; again, where the worker died that had it or its result."""
        failed, ok, made = self.through.pop(partition, (0, 0, 0))
        self.failed, self.ok, self.lost = self.failed - failed, self.ok - ok, self.lost + made
        seat = self.seats[name] = Seated(name, self, worker, partition, min(rows, self.workers))
        return seat

    def leave(self, seat: Seated, *, lost: bool) -> None:
        """A partition is through; or lost with its worker, and its rows will be done anew."""
        del self.seats[seat.name]
        if lost:
            self.lost += seat.running + seat.made
            return
        self.through[seat.partition] = seat.failed, seat.ok, seat.made
        self.failed, self.ok = self.failed + seat.failed, self.ok + seat.ok

    def grant(self, seat: Seated) -> tuple[int, int]:
        """How many attempts a seat may have running now, and how many it should have.

        The first is less where others have to give some back before.
        """
        demands = [other.demand for other in self.seats.values()]
        if self._shared[:2] != (self.limit, demands):
            self._shared = self.limit, demands, fair(self.limit, demands)
        wanted = self._shared[2][list(self.seats).index(seat.name)]
        free = self.limit - sum(other.held for other in self.seats.values())
        limit = min(wanted, seat.held + max(0, free))
        seat.held = max(seat.held, limit)
        return limit, wanted

    def hear(self, seat: Seated, report: Mapping[str, Any], now: float) -> None:
        """A seat says what it has running, and what became of its rows."""
        seat.running = report["running"]
        seat.held = max(report["limit"], seat.running)
        seat.demand = min(report["demand"], self.workers)
        seat.failed, seat.ok = report.get("failed", 0), report.get("ok", 0)
        seat.made = report.get("made", 0)
        self.error = self.error or report.get("error")
        if stop := report.get("stop"):
            self.stop_for(stop_of(stop))
        self._count_failures()
        if pause := report.get("pause"):
            self.paused_until = max(self.paused_until, now + pause)
        if self.adaptive is not None:
            running = sum(other.running for other in self.seats.values())
            for start, end, outcome in report.get("ended", ()):
                self.adaptive.settled(
                    start=now - start,
                    end=now - end,
                    running=min(self.limit, running),
                    outcome=outcome,
                )

    def _count_failures(self) -> None:
        failed = self.failed + sum(seat.failed for seat in self.seats.values())
        fail_fast = bool(self.terms.get("fail_fast"))
        stop = failure_stop(failed, self.terms.get("max_failures"), fail_fast=fail_fast)
        if stop is not None:
            self.stop_for(stop)

    def stop_for(self, stop: Stop) -> None:
        """Start nothing more. The first reason stands, but a later stop may cancel what runs."""
        self.stop = stop.after(self.stop)
