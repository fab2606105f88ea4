"""What the partitions of a run share: every decision about a cluster is made here.

A *run* is one computation of what ``ddf.llm.parallel_map`` returned. A *session* is one of its
partitions while a Dask worker runs it. Sessions report, and the replies say what they may do:

    begin ─> run      open ─> session      exchange, claim …      close

The coordinator is a pure machine, as a run's scheduler is: it knows no Dask, no thread and no
clock. One instance lives on the Dask scheduler (:mod:`revkit.dask.plugin`), or in the process if
Dask runs in one. Requests and replies are plain mappings, because they travel.

No share is granted twice. What a session might still be using counts as its own until it reports
otherwise or is gone. So there are never more attempts running than the run may have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ..scheduling.accounts import ZERO, Amounts
from ..scheduling.adaptive import Adaptive, AdaptiveLimit
from ..scheduling.events import Stop, StopKind
from ..scheduling.policy import worker_count
from .claims import Claims
from .cluster_run import ClusterRun, Session, stop_of
from .shared_budget import SharedBudget
from .shared_rate_limit import SharedRateLimit

__all__ = ["HANDLER", "TICK", "UNKNOWN", "Coordinator"]

#: The name of the handler on the Dask scheduler that passes requests to the coordinator.
HANDLER = "revkit"

#: Seconds between two reports of a session, and of one that waits for its share; and how many
#: reports a second are enough for all sessions.
TICK, _WAITING_TICK = 0.1, 0.02
_REPORTS = 500
#: The error of a session that is not known: its worker was taken for dead, and others have its
#: share.
UNKNOWN = "unknown session"
#: Requests that need the time.
_TIMED = ("open", "exchange", "close")


class Coordinator:
    """Keeps the limits of all sessions of all runs.

    Times are in seconds, on the clock of its owner.

    Args:
        ended: called once for each run whose partitions are all finished: see :meth:`finished`.

    >>> coordinator = Coordinator()
    >>> run = coordinator.begin("a key", {"job": "j", "max_workers": 3}, threads=8, now=0.0)["run"]
    >>> one = coordinator.open(run, worker="w1", partition=0, rows=10, now=0.0)
    >>> two = coordinator.open(run, worker="w2", partition=1, rows=10, now=0.0)
    >>> one["limit"], two["limit"]  # the first one has all, and will return some
    (3, 0)
    >>> name = one["session"]
    >>> coordinator.exchange(name, {"limit": 3, "running": 3, "demand": 9}, now=0.1)["limit"]
    2
    >>> coordinator.exchange(name, {"limit": 2, "running": 2, "demand": 8}, now=0.2)["limit"]
    2
    >>> name = two["session"]
    >>> coordinator.exchange(name, {"limit": 0, "running": 0, "demand": 9}, now=0.2)["limit"]
    1
    """

    def __init__(self, ended: Callable[[Mapping[str, Any]], object] = lambda summary: None) -> None:
        self._ended = ended
        #: jobs that have had a run
        self._known: set[str] = set()
        self._runs: dict[str, ClusterRun] = {}
        self._sessions: dict[str, Session] = {}
        #: key of the task that began a run -> the run
        self._begun: dict[str, ClusterRun] = {}
        #: such keys that were submitted again since
        self._resubmitted: set[str] = set()
        #: jobs whose next run is collected
        self._collected: set[str] = set()
        self._rate_limits: dict[str, SharedRateLimit] = {}
        self._budgets: dict[str, SharedBudget] = {}
        self._claims = Claims()
        #: numbers for the names of runs and sessions
        #: names handed out so far; no iterator, for plugins are pickled
        self._named = 0

    def handle(self, request: str, message: Mapping[str, Any], *, now: float) -> dict[str, Any]:
        """Call a method by its name, with the time if it needs it; what travels is a mapping."""
        if request in _TIMED:
            message = {**message, "now": now}
        reply = getattr(self, request)(**message)
        return reply if isinstance(reply, dict) else {"value": reply}

    # -- runs ----------------------------------------------------------------------------------

    def _next_number(self) -> int:
        self._named += 1
        return self._named

    def begin(
        self, key: str, terms: Mapping[str, Any], *, threads: int, now: float
    ) -> dict[str, Any]:
        """Begin a run, or find the one in progress: its task runs again if its worker died.

        Args:
            key: of the task that begins it.
            terms: the options: see :func:`revkit.dask.job.terms_of`.
            threads: of all Dask workers together.

        Returns:
            ``run``: its name; ``again``: the job has had a run before.
        """
        known = self._begun.get(key)
        if known is not None and key not in self._resubmitted:
            return {"run": known.name, "again": False}
        self._resubmitted.discard(key)
        bounds = terms.get("adaptive")
        job = str(terms["job"])
        run = ClusterRun(
            name=f"{job}-{self._next_number()}",
            key=key,
            terms=terms,
            began=now,
            workers=worker_count(
                10**9,
                threads,
                max_workers=terms.get("max_workers"),
                worker_cap=terms.get("worker_cap", 16),
            ),
            collected=job in self._collected,
            adaptive=AdaptiveLimit(Adaptive(*bounds), now=now) if bounds else None,
        )
        self._collected.discard(job)
        self._runs[run.name] = self._begun[key] = run
        if known is not None:
            self._forget(known)
        again = job in self._known
        self._known.add(job)
        if rate := terms.get("rate_limit"):
            new_rate = SharedRateLimit(rate["requests"], rate["tokens"])
            run.rate_limit = self._rate_limits.setdefault(rate["id"], new_rate)
        if budget := terms.get("budget"):
            limits = (budget["tokens"], budget["pico"])
            new_budget = SharedBudget(limits, Amounts(*budget["spent"]))
            run.budget = self._budgets.setdefault(budget["id"], new_budget)
            run.budget.limits = limits  # the user may have raised them
        return {"run": run.name, "again": again}

    def resubmitted(self, keys: Iterable[str]) -> None:
        """These tasks were submitted to the scheduler, perhaps again."""
        self._resubmitted.update(key for key in keys if key in self._begun)

    def abandoned(self, key: str) -> None:
        """Nobody wants the run that this task began any more: stop what is left of it."""
        run = self._begun.pop(key, None)
        self._resubmitted.discard(key)
        if run is not None:
            if not run.sessions:
                self._report_end(run)
            run.stop_with(Stop(StopKind.INTERRUPTED, "nobody waits for it any more", cancels=True))
            self._forget(run)

    def _forget(self, run: ClusterRun) -> None:
        if not run.sessions and self._begun.get(run.key) is not run:
            self._runs.pop(run.name, None)
            self._report_end(run)

    def finished(self, key: str) -> None:
        """No partition waits any more for the run that this task began.

        The callback ``ended`` gets the ``job``, its number of ``failed`` and ``ok`` rows, and the
        first ``error``. If the run was stopped or is collected, its user learns all that in
        another way, and the callback gets only the ``job``.
        """
        run = self._begun.get(key)
        if run is not None and not run.sessions:
            self._report_end(run)

    def _report_end(self, run: ClusterRun) -> None:
        if run.ended:
            return
        run.ended = True
        summary: dict[str, Any] = {"job": run.terms["job"]}
        if run.stop is None and not run.collected:
            summary |= {"failed": run.failed, "ok": run.ok, "error": run.error}
        self._ended(summary)

    def collect(self, job: str) -> None:
        """The next run of the job is collected: its partitions do not raise."""
        self._collected.add(job)

    def stop(self, job: str, stop: Sequence[Any]) -> None:
        """Stop all runs of a job."""
        self._collected.discard(job)
        for run in self._runs.values():
            if run.terms["job"] == job:
                run.stop_with(stop_of(stop))

    def spent(self, budget: str) -> Amounts:
        """What is spent of a budget, including what may be in flight."""
        known = self._budgets.get(budget)
        return ZERO if known is None else known.granted

    # -- sessions ------------------------------------------------------------------------------

    def open(
        self, run: str, *, worker: str, partition: int, rows: int, now: float
    ) -> dict[str, Any]:
        """A worker starts a partition."""
        found = self._runs.get(run)
        if found is None:
            return {"error": "nobody waits for this run any more"}
        name = f"{run}/{self._next_number()}"
        session = self._sessions[name] = found.open(name, worker, partition, rows)
        timeout = found.terms.get("timeout")
        return {
            "session": name,
            "began": found.began,
            "workers": found.workers,
            "collected": found.collected,
            "timeout": None if timeout is None else max(0.0, found.began + timeout - now),
            **self._reply(session, {}, now),
        }

    def exchange(self, name: str, report: Mapping[str, Any], *, now: float) -> dict[str, Any]:
        """Take a session's report, and reply what it may do.

        Args:
            report: ``limit`` and ``running``: attempts that it may have running, and has;
                ``demand``: rows that it could run; ``failed`` and ``ok``: its rows so far;
                ``made``: attempts at these; ``alive``: the server has replied to one.
                If there are any: ``error`` of its first failed row; ``stop``; ``pause``: seconds
                for which the server asked; ``ended``: attempts, as (seconds since the start,
                seconds since the end, outcome); ``released``: keys that it claims no longer.
                With a rate limit: how many ``starts`` it requests, the ``tokens`` of one, times of
                ``unused`` starts, and ``extra`` tokens to count.
                With a budget: what it holds of all that it was ``granted``, how much of that is
                ``spent``, and for how many ``attempts`` of which ``need`` it requests more.

        Returns:
            ``limit``; ``now``; ``tick``: seconds until the next report. If there are any: ``stop``;
            ``pause``; planned ``starts`` with the ``tokens`` counted for each; ``granted``: an
            addition to its budget; ``freed``: keys it was refused and may claim now; ``alive``:
            the server has replied to a row of any partition. With a budget, ``short``: others wait
            for what it does not use.
        """
        session = self._sessions.get(name)
        if session is None:
            return {"error": UNKNOWN}
        self._update(session, report, now)
        return self._reply(session, report, now)

    def close(self, name: str, report: Mapping[str, Any], *, now: float) -> dict[str, Any]:
        """A session has finished its partition."""
        session = self._sessions.get(name)
        if session is None:
            return {"error": UNKNOWN}
        self._update(session, report, now)
        run = session.run
        self._close(session, lost=False)
        path = [] if run.adaptive is None else run.adaptive.path
        stop = {} if run.stop is None else {"stop": list(run.stop)}
        limits = [list(step) for step in path]
        return {"now": now, "workers": run.workers, "limits": limits, "lost": run.lost, **stop}

    def worker_died(self, worker: str) -> None:
        """A worker is gone, and what its sessions held is free.

        What they held of a budget counts as spent, because it may have been billed.
        """
        for session in list(self._sessions.values()):
            if session.worker == worker:
                self._close(session, lost=True)

    def _close(self, session: Session, *, lost: bool) -> None:
        del self._sessions[session.name]
        session.run.close(session, lost=lost)
        if (budget := session.run.budget) is not None:
            budget.close(session.name, lost=lost)
        self._claims.close(session.name)
        self._forget(session.run)

    def _update(self, session: Session, report: Mapping[str, Any], now: float) -> None:
        run = session.run
        run.update(session, report, now)
        if run.rate_limit is not None and "unused" in report:
            run.rate_limit.update(unused=report["unused"], extra=report["extra"], now=now)
        if run.budget is not None and "granted" in report:
            granted, spent = Amounts(*report["granted"]), Amounts(*report["spent"])
            run.budget.update(session.name, granted=granted, spent=spent)
        for store, keys in report.get("released", ()):
            self._claims.release(session.name, store, keys)

    def _reply(self, session: Session, report: Mapping[str, Any], now: float) -> dict[str, Any]:
        run = session.run
        limit, share = run.grant(session)
        reply: dict[str, Any] = {
            "limit": limit,
            "now": now,
            "tick": max(TICK if limit >= share else _WAITING_TICK, len(self._sessions) / _REPORTS),
        }
        if run.rate_limit is not None and report.get("starts"):
            tokens = report.get("tokens", 0)
            planned = run.rate_limit.plan(report["starts"], tokens=tokens, now=now)
            reply |= {"starts": planned, "tokens": tokens}
        if (budget := run.budget) is not None:
            need = Amounts(*report.get("need", ()))
            granted = budget.grant(session.name, need, attempts=report.get("attempts", 0))
            if granted is not None:
                reply["granted"] = list(granted)
            elif any(need) and (stop := budget.exhausted(need)) is not None:
                run.stop_with(stop)
            reply["short"] = budget.is_short_for(session.name)
        if freed := self._claims.freed(session.name):
            reply["freed"] = freed
        if run.stop is not None:
            reply["stop"] = list(run.stop)
        if run.paused_until > now:
            reply["pause"] = run.paused_until - now
        if run.alive:
            reply["alive"] = True
        return reply

    # -- claims --------------------------------------------------------------------------------

    def claim(
        self, name: str, store: str, keys: Iterable[bytes], *, parts: int, part: str
    ) -> dict[str, Any]:
        """Claim keys for a session, which has not found them in the store.

        Args:
            store: the store's name on all machines.
            parts: the number of part files that the session knows.
            part: the file that the session itself writes to.

        Returns:
            ``taken``: keys that another session has claimed; ``parts``: the other part files.
        """
        if name not in self._sessions:
            return {"error": UNKNOWN}
        taken = self._claims.claim(name, store, keys)
        return {"taken": taken, "parts": self._claims.parts(store, part, known=parts)}
