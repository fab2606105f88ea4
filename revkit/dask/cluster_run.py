"""A run and its sessions, as the coordinator knows them: how many attempts each may run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..scheduling.adaptive import AdaptiveLimit
from ..scheduling.events import Stop, StopKind
from ..scheduling.policy import failure_stop
from .shared_budget import SharedBudget
from .shared_rate_limit import SharedRateLimit
from .shares import fair

__all__ = ["ClusterRun", "Session", "stop_of"]


def stop_of(values: Sequence[Any]) -> Stop:
    """The stop that travelled as ``list(stop)``."""
    kind, reason, cancels = values
    return Stop(StopKind(kind), reason, bool(cancels))


@dataclass(slots=True, eq=False)
class Session:
    """One partition while a worker runs it.

    Attributes:
        worker: the Dask worker that it is on.
        partition: its number.
        demand: rows that are left and could run.
        held: upper bound on the attempts that it may have running, as far as anybody can know.
        running: attempts that it has running, as it reported.
        failed, ok: its rows.
        made: attempts at rows that are settled.
    """

    name: str
    run: ClusterRun
    worker: str
    partition: int
    demand: int
    held: int = 0
    running: int = 0
    failed: int = 0
    ok: int = 0
    made: int = 0


@dataclass(slots=True, eq=False)
class ClusterRun:
    """One computation of a job.

    Attributes:
        key: of the task that began it.
        terms: the options: see :func:`revkit.dask.job.terms_of`.
        began: when, on the coordinator's clock.
        workers: attempts that may run at once.
        collected: ``collect`` computes it: records go to the client, and partitions do not raise.
        adaptive: finds how many of ``workers`` the server can use; None: all may run.
        rate_limit, budget: shared with other runs; None: there is none.
        sessions: the open ones by name, in the order in which they were opened.
        finished: partition -> its failed rows, its good rows and its attempts.
        failed, ok: the sums of these.
        error: message of the first row that failed.
        lost: attempts that were made, or running, on workers that died, as last reported.
        alive: the model's server has replied to one of them.
        ended: all its partitions are finished, and that was reported.
        stop: why nothing more may start.
        paused_until: nothing starts before this time, because the server asked for a pause.
    """

    name: str
    key: str
    terms: Mapping[str, Any]
    began: float
    workers: int
    collected: bool
    adaptive: AdaptiveLimit | None
    rate_limit: SharedRateLimit | None = None
    budget: SharedBudget | None = None
    sessions: dict[str, Session] = field(default_factory=dict)
    finished: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    failed: int = 0
    ok: int = 0
    error: str | None = None
    lost: int = 0
    alive: bool = False
    ended: bool = False
    stop: Stop | None = None
    paused_until: float = float("-inf")
    #: a limit, the sessions' demands, and their shares of the limit
    _shares: tuple[int, list[int], list[int]] = (0, [], [])

    @property
    def limit(self) -> int:
        """How many attempts may run now."""
        return self.workers if self.adaptive is None else min(self.workers, self.adaptive.limit)

    def open(self, name: str, worker: str, partition: int, rows: int) -> Session:
        """Start a partition, or restart it after the worker that had it or its result died."""
        failed, ok, made = self.finished.pop(partition, (0, 0, 0))
        self.failed, self.ok, self.lost = self.failed - failed, self.ok - ok, self.lost + made
        demand = min(rows, self.workers)
        session = self.sessions[name] = Session(name, self, worker, partition, demand)
        return session

    def close(self, session: Session, *, lost: bool) -> None:
        """A partition is finished; ``lost``: its worker died, and its rows will run again."""
        del self.sessions[session.name]
        if lost:
            self.lost += session.running + session.made
            return
        self.finished[session.partition] = session.failed, session.ok, session.made
        self.failed, self.ok = self.failed + session.failed, self.ok + session.ok

    def grant(self, session: Session) -> tuple[int, int]:
        """How many attempts a session may have running now, and its fair share of them.

        The first is less than the second until other sessions have returned what is above theirs.
        """
        demands = [other.demand for other in self.sessions.values()]
        if self._shares[:2] != (self.limit, demands):
            self._shares = self.limit, demands, fair(self.limit, demands)
        share = self._shares[2][list(self.sessions).index(session.name)]
        free = self.limit - sum(other.held for other in self.sessions.values())
        limit = min(share, session.held + max(0, free))
        session.held = max(session.held, limit)
        return limit, share

    def update(self, session: Session, report: Mapping[str, Any], now: float) -> None:
        """Take a session's report: see :meth:`Coordinator.exchange`."""
        session.running = report["running"]
        session.held = max(report["limit"], session.running)
        session.demand = min(report["demand"], self.workers)
        session.failed, session.ok = report.get("failed", 0), report.get("ok", 0)
        session.made = report.get("made", 0)
        self.alive = self.alive or report.get("alive", False)
        self.error = self.error or report.get("error")
        if stop := report.get("stop"):
            self.stop_with(stop_of(stop))
        self._check_failures()
        if pause := report.get("pause"):
            self.paused_until = max(self.paused_until, now + pause)
        if self.adaptive is not None:
            running = sum(other.running for other in self.sessions.values())
            for start, end, outcome in report.get("ended", ()):
                self.adaptive.settled(
                    start=now - start,
                    end=now - end,
                    running=min(self.limit, running),
                    outcome=outcome,
                )

    def _check_failures(self) -> None:
        failed = self.failed + sum(session.failed for session in self.sessions.values())
        fail_fast = bool(self.terms.get("fail_fast"))
        if stop := failure_stop(failed, self.terms.get("max_failures"), fail_fast=fail_fast):
            self.stop_with(stop)

    def stop_with(self, stop: Stop) -> None:
        """Start nothing more."""
        self.stop = stop.after(self.stop)
